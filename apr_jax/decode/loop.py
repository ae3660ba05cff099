"""The compiled loop: one step, the two inner loops around it, and the program that runs a slice of steps.

    rows     = schedule.choose(...)       which threads compute
    x        = model(tokens of the rows)  per layer: write K and V into their slots, then attend
    token    = sample(logits)
    books    = protocol handlers          spawn, wait, join, finish
    finished problems leave, the next of the queue enter

Feed steps [G, C] serve threads with long messages, decode steps [A, 1] all other threads. Each kind has its own `while_loop`
inside an outer loop, because a `cond` between the two kinds would copy the pool on XLA:CPU. Steps without events stay in the
inner loops. The outer loop handles events and moves problems in and out, so that this code is compiled once.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import messages, pool, schedule, signals, transitions, views
from apr_jax.decode.book import ASKING, NOBODY, Book
from apr_jax.decode.drawing import Seen, draw, observe, score
from apr_jax.decode.program import Program, Weights
from apr_jax.decode.protocol import Drawn
from apr_jax.decode.replies import Reply, deliver
from apr_jax.decode.state import LogArrays, State, leaving, refill, retire, room
from apr_jax.decode.threads import Cursor, LastDrawn
from apr_jax.decode.transitions import DRAINED, NOT_FINITE, SPENT
from apr_jax.model import transformer
from apr_jax.record import Source, Stop


class Step(enum.Enum):
    """The two kinds of steps. FEED: tiles of several tokens, for threads with long messages. DECODE: one row per running thread."""

    FEED = enum.auto()
    DECODE = enum.auto()


def step(program: Program, weights: Weights, state: State, tiles: schedule.Tiles, kind: Step) -> State:
    """One step of either kind: feed the tiles' tokens, sample for threads that have fed all their tokens, note events."""
    sizes, feeds = program.sizes, kind is Step.FEED
    chunk = sizes.feed_chunk if feeds else 1
    with jax.named_scope("place"):
        placed, places = schedule.place(state.books, tiles, chunk, sizes)
        tokens = read_tokens(program, state, placed, tiles, places, kind)
        at = jnp.minimum(tiles.problem, sizes.problems - 1)
        table = state.books.threads
        if program.protocol.needs.live:
            longest = jnp.maximum(table.cursor.critical_path, schedule.critical_path_seen(table))
            table = dataclasses.replace(table, cursor=dataclasses.replace(table.cursor, critical_path=longest))
        threads = jax.tree.map(lambda field: field[at, tiles.thread], table)
        offset = jnp.arange(chunk, dtype=jnp.int32)[None, :]
        position, clock = threads.cursor.position[:, None] + offset, threads.cursor.clock[:, None] + 1 + offset
        branch = threads.line.branch if threads.line.branch is None else threads.line.branch[:, None] + 0 * offset
        slots = pool.write(state.slots, tiles, places, clock)
        view = pool.visibility(placed, slots, tiles, clock, sizes)
        if program.protocol.needs.views:
            config, dtype = program.graph.config, weights.model["norm"]["scale"].dtype
            view = dataclasses.replace(view, turns=views.turns(placed, slots, tiles, not feeds, sizes, config, dtype))
    attend = pool.attention(view, tiles, places, sizes.block, program.kernel)
    placed_tokens = places.slot < sizes.slots  # False: padding of a tile, or a token of a halted problem
    real = jnp.where(placed_tokens, tokens, -1)
    x, cache = transformer.hidden(program.graph, weights.model, real, position, attend, state.pool, branches=branch)
    with jax.named_scope("sample"):
        finite = jnp.all(jnp.isfinite(x) | ~placed_tokens[..., None], axis=(1, 2))
        last = jnp.maximum(tiles.count - 1, 0)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        logits = transformer.logits(program.graph, weights.model, x)
        token, logprob, behaviour, possible = draw(program, state, tiles, threads, logits)
    with jax.named_scope("record"):
        measured = signals.measure(program.protocol.needs.signals, logits, x, weights.scorer)
        drawn = Drawn(token, logprob, behaviour, measured)
        draws = places.drawn < sizes.log
        finite &= ~draws | (jnp.isfinite(logprob) & possible)
        bulk, seen = observe(program, state, tiles, threads, drawn, draws, finite)
        if program.protocol.needs.scores and not feeds:
            seen = score(program, state, placed, tiles, places, threads, seen, logits)
        log = record(state.log, tiles, places, (tokens, position, clock), threads, seen.token, drawn)
        new_threads = advance(program, placed, tiles, places, threads, seen)
    counters = dataclasses.replace(
        state.counters,
        feed_steps=state.counters.feed_steps + int(feeds),
        decode_steps=state.counters.decode_steps + int(not feeds),
        decode_rows=state.counters.decode_rows + (0 if feeds else jnp.sum(tiles.busy, dtype=jnp.int32)),
        fed=state.counters.fed + jnp.sum(placed_tokens, dtype=jnp.int32),
        sampled=state.counters.sampled + jnp.sum(draws, dtype=jnp.int32),
    )
    return state.replace(
        pool=cache, slots=slots, log=log, books=placed.replace(threads=new_threads), bulk=bulk, counters=counters
    )


def read_tokens(program: Program, state: State, placed: Book, tiles, places, kind: Step) -> Int[Array, "B C"]:
    """The tokens to feed. Most decode steps read no message; they skip the look-up."""

    def read():
        return messages.read(placed, state.log.queued[:, 0], tiles, places, program.sizes)

    if kind is Step.FEED:
        return read()
    at = jnp.minimum(tiles.problem, program.sizes.problems - 1)
    reads = jnp.any((places.message >= 0) & tiles.busy[:, None])
    return jax.lax.cond(reads, read, lambda: placed.threads.drawn.token[at, tiles.thread][:, None])


def record(log: LogArrays, tiles, places, fed, threads, token: Int[Array, "B"], drawn: Drawn) -> LogArrays:
    """Write fed and sampled tokens into the logs.

    Args:
        tiles, places: the step's tiles, and the slots and log entries of their tokens.
        fed: tokens, positions and clocks of the tiles, [B, C] each.
        threads: rows of the thread table before the step, one per tile, [B] each.
        token: the token that each tile's thread continues with; the protocol may have rewritten the sampled one.
        drawn: the sampled tokens, [B] each.
    """
    tokens, position, clock = fed
    nowhere = log.queued.shape[2]
    row = jnp.broadcast_to(tiles.problem[:, None], tokens.shape)
    fed = log.fed.at[row, :, places.entry].set(jnp.stack([places.index, position, clock], axis=-1), mode="drop")
    depth = jnp.broadcast_to(threads.cursor.critical_path[:, None], tokens.shape)
    nothing = jnp.full_like(tokens, -1)
    leads = places.message < 0
    source = jnp.where(leads, int(Source.HANDED), int(Source.FED))
    said = jnp.stack([tokens, source, nothing, depth, nothing], axis=-1)
    # A sampled token that is fed now was recorded in the step that sampled it.
    entry = jnp.where(leads & threads.drawn.unfed[:, None], nowhere, places.entry)
    last = jnp.take_along_axis(places.entry, jnp.maximum(tiles.count - 1, 0)[:, None], axis=1)[:, 0]
    source = jnp.where(token == drawn.token, int(Source.SAMPLED), int(Source.REWRITTEN))
    new = jnp.stack([token, source, last, threads.cursor.critical_path + 1, drawn.token], axis=-1)
    where = jnp.concatenate([row.reshape(-1), tiles.problem]), jnp.concatenate([entry.reshape(-1), places.drawn])
    values = jnp.concatenate([said.reshape(-1, 5), new])
    queued = log.queued.at[where[0], :, where[1]].set(values, mode="drop")
    numbers = jnp.concatenate([drawn.logprob[:, None], drawn.behaviour_logprob[:, None], drawn.signals], axis=-1)
    numbers = numbers[:, : log.numbers.shape[1]].astype(log.numbers.dtype)  # without signals that are not logged
    return LogArrays(queued, fed, log.numbers.at[tiles.problem, :, places.drawn].set(numbers, mode="drop"))


def advance(program: Program, placed: Book, tiles, places, old: books.Threads, seen: Seen) -> books.Threads:
    """The thread table [P, M] after the step, with the step's events; `old`: its rows [B] of the tiles' threads before the step."""
    sizes = program.sizes
    good = places.slot[:, 0] < sizes.slots
    row = jnp.where(good, tiles.problem, sizes.problems)
    lead = schedule.leading(old)
    said = tiles.count - lead
    appended = tiles.count - old.drawn.unfed.astype(jnp.int32)  # unlike a handed token, an unfed one is logged already
    token, draws = seen.token, seen.draws
    sampled = draws.astype(jnp.int32)
    generated = old.cursor.generated + sampled
    last = jnp.maximum(tiles.count - 1, 0)[:, None]
    pick = lambda values: jnp.take_along_axis(values, last, axis=1)[:, 0]
    last_message = jnp.where(appended > 0, pick(places.entry), -1)
    entry = jnp.where(draws, places.drawn, last_message)
    threads = placed.threads
    put = lambda column, new: column.at[row, tiles.thread].set(new.astype(column.dtype), mode="drop")
    cursor = Cursor(
        fed=old.cursor.fed + tiles.count,
        length=old.cursor.length + appended + sampled,
        position=old.cursor.position + tiles.count,
        clock=old.cursor.clock + tiles.count,
        generated=generated,
        critical_path=old.cursor.critical_path + sampled,
        critical_path_fed=threads.cursor.critical_path[tiles.problem, tiles.thread],
        critical_path_before=old.cursor.critical_path_fed,
        page=pick(places.slot) // sizes.page_size,
        log_page=jnp.where(entry >= 0, entry // sizes.log_page_size, old.cursor.log_page),
        predictor=pick(places.entry),
    )
    drawn = LastDrawn(
        token=jnp.where(draws, token, old.drawn.token),
        entry=jnp.where(draws, places.drawn, old.drawn.entry),
        unfed=draws,
        handed=jnp.zeros_like(draws),
        drawn_at=jnp.where(draws, old.cursor.clock + tiles.count, old.drawn.drawn_at),
        logprob=seen.drawn.logprob,
        signals=seen.drawn.signals,
    )
    inbox = dataclasses.replace(
        threads.inbox,
        done=put(threads.inbox.done, old.inbox.done + said),
        left=put(threads.inbox.left, old.inbox.left - said),
    )
    keeping = jnp.where(seen.kept, row, sizes.problems)
    keep = lambda column, new: column.at[keeping, tiles.thread].set(new.astype(column.dtype), mode="drop")
    threads = dataclasses.replace(
        threads,
        cursor=jax.tree.map(put, threads.cursor, cursor),
        drawn=jax.tree.map(put, threads.drawn, drawn),
        inbox=inbox,
        own=jax.tree.map(keep, threads.own, seen.own),
    )

    noted = lambda name: transitions.event(program.protocol, name)
    event = jnp.where(draws & (seen.event == 0) & (generated >= old.sampling.budget), noted(SPENT), seen.event)
    dry = good & ~old.samples & (schedule.waiting(old) == tiles.count)
    event = jnp.where(dry, noted(DRAINED), event)
    event = jnp.where(good & ~seen.finite, noted(NOT_FINITE), event)
    return dataclasses.replace(threads, event=put(threads.event, event))


def handle(program: Program, state: State) -> State:
    """Apply the transitions that the last steps made ready, and relabel the slots of split threads. Never touches the pool."""
    held, slots = transitions.settle(program.protocol, state.books), state.slots
    if program.protocol.needs.splits:
        new = jnp.arange(held.threads.status.shape[1])[None, :] >= state.books.used[:, None]
        cut = jnp.any(new & (held.threads.stop == Stop.SPLIT))
        relabel = lambda: pool.relabel(slots, state.log.fed[:, 2], held, program.sizes)
        slots, held = jax.lax.cond(cut, relabel, lambda: (slots, held))
    return state.replace(books=held, slots=slots)


def changes(state: State) -> Bool[Array, ""]:
    """Whether an ended problem can leave, or a queued problem can enter."""
    enters = jnp.any(~state.books.active) & (state.queue.next < state.queue.count)
    return (jnp.any(leaving(state)) & room(state)) | enters


def change(program: Program, state: State) -> State:
    """Move ended problems out and queued problems in. The pool is kept out of the `cond`, which would copy it."""

    def run(rest):
        return refill(retire(rest, program.protocol.needs.recorded), program.protocol, program.sizes)

    rest = jax.lax.cond(changes(state), run, lambda rest: rest, state.replace(pool=()))
    return rest.replace(pool=state.pool)


def asking(held: Book) -> Bool[Array, "*P M"]:
    """Threads that ask the host and have no reply."""
    live = held.active & (held.stop == Stop.RUNNING)
    return (held.threads.status == ASKING) & live[..., None]


def answer(program: Program, state: State, reply: Reply, tokens: Int[Array, "P host"], count: Int[Array, "P"]) -> State:
    """Give threads the host's replies, see `replies.deliver`, and let the protocol act on them. Never touches the pool."""
    held, full = jax.vmap(deliver)(state.books, reply, tokens, count)
    questions = state.counters.questions + jnp.sum(reply.given, dtype=jnp.int32)
    counters = dataclasses.replace(state.counters, questions=questions)
    return handle(program, state.replace(books=held.halt(full, Stop.HOST_FULL), counters=counters))


def run_slice(program: Program, weights: Weights, state: State, steps: Int[Array, ""]) -> State:
    """Run until `steps` more steps are done, nothing is left to run, a finished problem finds the outbox full, or enough ask."""
    sizes, needs = program.sizes, program.protocol.needs
    taken = lambda s: s.counters.feed_steps + s.counters.decode_steps
    limit = taken(state) + steps

    def runnable(s):
        return schedule.runnable(s.books, needs.groups, needs.together > 0)

    def goes_on(s):
        blocked = jnp.any(leaving(s)) & ~room(s)
        going = (taken(s) < limit) & ~blocked & (jnp.any(runnable(s)) | changes(s))
        return going & (jnp.sum(asking(s.books)) < sizes.asking) if sizes.asking else going

    def calm(s):
        """Whether the outer loop has nothing to do."""
        halted = jnp.any(leaving(s))
        noted = jnp.any(s.books.threads.event > 0)
        return (taken(s) < limit) & ~noted & ~halted & ~transitions.decides(program.protocol, s.books)

    def long(s):
        """Threads for feed steps; those that keep step with others feed one token a step."""
        threads = s.books.threads
        found = runnable(s) & (schedule.waiting(threads) > sizes.feed_threshold) & (threads.pace.scope == NOBODY)
        return found & ~jax.vmap(jax.vmap(program.protocol.scored))(threads.own) if needs.scores else found

    def feed(s):
        lanes = min(sizes.lanes, sizes.feed_tiles)
        tiles = schedule.choose(s.books, long(s), lanes, sizes.feed_tiles, sizes.feed_chunk)
        with jax.named_scope("feed"):
            return step(program, weights, s, tiles, Step.FEED)

    def decode(s):
        tiles = schedule.choose(s.books, runnable(s), sizes.lanes, sizes.rows, 1)
        with jax.named_scope("decode"):
            return step(program, weights, s, tiles, Step.DECODE)

    def outer(s):
        s = change(program, s)
        s = jax.lax.while_loop(lambda s: calm(s) & jnp.any(long(s)), feed, s)
        s = jax.lax.while_loop(lambda s: calm(s) & ~jnp.any(long(s)) & jnp.any(runnable(s)), decode, s)
        with jax.named_scope("events"):
            return handle(program, s)

    return jax.lax.while_loop(goes_on, outer, state)
