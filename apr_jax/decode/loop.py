"""The compiled loop: one step, the two inner loops around it, and the program that runs a slice of steps.

    rows     = schedule.choose(...)       which threads compute
    x        = model(tokens of the rows)  per layer: write K and V into their slots, then attend
    token    = sample(logits)
    books    = protocol handlers          spawn, wait, join, finish
    finished problems leave, the next of the queue enter

Feed steps [G, C] serve threads with long messages, decode steps [A, 1] everybody else; each has a `while_loop` of its own
inside an outer one, because a `cond` between them would copy the pool on XLA:CPU. Steps without events stay in the inner loops;
events are handled, and problems come and go, in the outer one, so that all of that is compiled once.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax import sharding
from apr_jax.decode import book as books
from apr_jax.decode import lines, messages, pool, races, schedule
from apr_jax.decode.book import NOBODY, READY, WAITING, Book
from apr_jax.decode.sampling import sample
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.state import LogArrays, State, leaving, refill, retire, room
from apr_jax.model import transformer
from apr_jax.record import Source, Stop


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run compiles for: hashable, static. `kernel`: whether attention is that of `apr_jax.decode.native`."""

    graph: transformer.Graph
    protocol: Any
    sizes: Sizes
    kernel: bool = False

    def __post_init__(self):
        fit(self.protocol, self.sizes)

    # Events of the loop itself; those of the protocol are 1 .. len(handlers).
    @property
    def drained(self) -> int:
        return len(self.protocol.handlers) + 1

    @property
    def broken(self) -> int:
        return len(self.protocol.handlers) + 2

    @property
    def length(self) -> int:
        return len(self.protocol.handlers) + 3

    @property
    def groups(self) -> bool:
        """Whether threads must keep step with others."""
        return self.protocol.live or self.protocol.races

    def due(self, held: Book) -> tuple[Int[Array, "P"], Int[Array, "P"]]:
        """What is to be decided in each problem, 0 for nothing, and the thread concerned."""
        if not self.protocol.races:
            nothing = jnp.zeros_like(held.stop)
            return nothing, nothing
        return jax.vmap(races.due)(held)


def fit(protocol: Any, sizes: Sizes) -> None:
    """Refuse sizes under which no problem of the protocol could come to its end.

    Raises:
        ValueError: with the size, its value and the least that would do.
    """
    name, least, together = type(protocol).__name__, protocol.threads, protocol.together
    holds = {"threads": (sizes.threads, 1), "slots": (sizes.runs, sizes.run), "log": (sizes.log_runs, sizes.log_run)}
    for size, (most, unit) in holds.items():  # a thread has a run of slots and a run of the log at least
        if most < least:
            raise ValueError(
                f"sizes.{size} = {getattr(sizes, size)}: {name} opens {least} threads, so at least {least * unit} are needed"
            )
    if together > min(sizes.lanes, sizes.rows // sizes.problems):
        raise ValueError(
            f"sizes.lanes = {sizes.lanes}, sizes.rows = {sizes.rows}: up to {together} threads of a problem go together, so "
            f"lanes must be at least {together} and rows at least problems x {together} = {sizes.problems * together}"
        )


def step(program: Program, params: Any, state: State, tiles: schedule.Tiles, chunk: int) -> State:
    """One step of either kind: feed the tiles' tokens, sample where a thread has fed all it had, note the events."""
    sizes = program.sizes
    with jax.named_scope("place"):
        placed, places = schedule.place(state.books, tiles, chunk, sizes)
        tokens = read_tokens(program, state, placed, tiles, places, chunk)
        at = jnp.minimum(tiles.problem, sizes.problems - 1)
        table = state.books.threads
        if program.protocol.live:
            table = dataclasses.replace(table, depth=jnp.maximum(table.depth, schedule.heard(table)))
        threads = jax.tree.map(lambda field: field[at, tiles.thread], table)
        offset = jnp.arange(chunk, dtype=jnp.int32)[None, :]
        position, clock = threads.position[:, None] + offset, threads.clock[:, None] + 1 + offset
        slots = pool.write(state.slots, tiles, places, clock)
        view = pool.look(placed, slots, tiles, clock, sizes, program.protocol.together > 0)
    attend = pool.attention(view, tiles, places, sizes.block, program.kernel)
    placed_tokens = places.slot < sizes.slots  # the rest are none
    real = jnp.where(placed_tokens, tokens, -1)
    x, memory = transformer.hidden(program.graph, params, real, position, attend, state.pool)
    with jax.named_scope("sample"):
        finite = jnp.all(jnp.isfinite(x) | ~placed_tokens[..., None], axis=(1, 2))
        last = jnp.maximum(tiles.count - 1, 0)
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        logits = transformer.logits(program.graph, params, x)
        parameters = threads.temperature, threads.top_k, threads.top_p
        token, logprob, behaviour = sharding.by_rows(sample, logits, _uniform(threads), *parameters)
    with jax.named_scope("record"):
        drawn = places.drawn < sizes.log
        log = record(state.log, tiles, places, (tokens, position, clock), threads, (token, logprob, behaviour))
        finite &= ~drawn | jnp.isfinite(logprob)
        new_threads, events = advance(program, placed, tiles, places, threads, token, drawn, finite)
    counters = dataclasses.replace(
        state.counters,
        feed_steps=state.counters.feed_steps + int(chunk > 1),
        decode_steps=state.counters.decode_steps + int(chunk == 1),
        decode_rows=state.counters.decode_rows + (jnp.sum(tiles.busy, dtype=jnp.int32) if chunk == 1 else 0),
        fed=state.counters.fed + jnp.sum(placed_tokens, dtype=jnp.int32),
        sampled=state.counters.sampled + jnp.sum(drawn, dtype=jnp.int32),
    )
    return state.replace(
        pool=memory, slots=slots, log=log, books=placed.replace(threads=new_threads), events=events, counters=counters
    )


def read_tokens(program: Program, state: State, placed: Book, tiles, places, chunk: int) -> Int[Array, "B C"]:
    """The tokens to feed. Decode steps in which nobody reads a message, the usual ones, skip the look-up."""

    def read():
        templates = jnp.array(program.protocol.templates, jnp.int32)
        return messages.read(placed, state.log.queued[:, 0], templates, tiles, places, program.sizes)

    if chunk > 1:
        return read()
    at = jnp.minimum(tiles.problem, program.sizes.problems - 1)
    reads = jnp.any((places.message >= 0) & tiles.busy[:, None])
    return jax.lax.cond(reads, read, lambda: placed.threads.token[at, tiles.thread][:, None])


def _uniform(threads: books.Threads) -> Array:
    """One uniform a tile, from the thread's own key and the number of the draw."""

    def draw(key, number):
        return jax.random.uniform(
            jax.random.wrap_key_data(books.fold(key, number), impl=books.RANDOM), dtype=jnp.float32
        )

    return jax.vmap(draw)(threads.draw_key, threads.generated)


def record(log: LogArrays, tiles, places, fed, threads, drawn) -> LogArrays:
    """Write what was fed and what was sampled into the logs.

    Args:
        fed: tokens, positions, clocks of the tiles, [B, C] each.
        drawn: token, logprob, behaviour logprob of each tile, [B] each.
    """
    tokens, position, clock = fed
    token, logprob, behaviour = drawn
    nowhere = log.queued.shape[2]
    row = jnp.broadcast_to(tiles.problem[:, None], tokens.shape)
    fed = log.fed.at[row, :, places.entry].set(jnp.stack([places.index, position, clock], axis=-1), mode="drop")
    depth = jnp.broadcast_to(threads.depth[:, None], tokens.shape)
    said = jnp.stack([tokens, jnp.full_like(tokens, Source.FED), jnp.full_like(tokens, -1), depth], axis=-1)
    # The unfed sampled token was recorded when it was sampled.
    entry = jnp.where(places.message < 0, nowhere, places.entry)
    last = jnp.take_along_axis(places.entry, jnp.maximum(tiles.count - 1, 0)[:, None], axis=1)[:, 0]
    new = jnp.stack([token, jnp.full_like(token, Source.SAMPLED), last, threads.depth + 1], axis=-1)
    where = jnp.concatenate([row.reshape(-1), tiles.problem]), jnp.concatenate([entry.reshape(-1), places.drawn])
    values = jnp.concatenate([said.reshape(-1, 4), new])
    queued = log.queued.at[where[0], :, where[1]].set(values, mode="drop")
    both = jnp.stack([logprob, behaviour], axis=-1).astype(log.logprob.dtype)
    return LogArrays(queued, fed, log.logprob.at[tiles.problem, :, places.drawn].set(both, mode="drop"))


def advance(
    program: Program,
    placed: Book,
    tiles,
    places,
    old: books.Threads,
    token: Int[Array, "B"],
    drawn: Bool[Array, "B"],
    finite: Bool[Array, "B"],
) -> tuple[books.Threads, Int[Array, "P M"]]:
    """The thread table after the step, and the events it brought: Int [P, M].

    Args:
        drawn: a token was sampled.
        finite: neither the tile's hidden states nor its logits hold NaN or infinity.
    """
    sizes = program.sizes
    good = places.slot[:, 0] < sizes.slots
    row = jnp.where(good, tiles.problem, sizes.problems)
    unfed = old.unfed.astype(jnp.int32)
    said = tiles.count - unfed
    sampled = drawn.astype(jnp.int32)
    generated = old.generated + sampled
    last = jnp.maximum(tiles.count - 1, 0)[:, None]
    pick = lambda values: jnp.take_along_axis(values, last, axis=1)[:, 0]
    last_message = jnp.where(said > 0, pick(places.entry), -1)
    entry = jnp.where(drawn, places.drawn, last_message)
    values = {
        "fed": old.fed + tiles.count,
        "position": old.position + tiles.count,
        "clock": old.clock + tiles.count,
        "depth": old.depth + sampled,
        "told": placed.threads.depth[tiles.problem, tiles.thread],
        "told_before": old.told,
        "generated": generated,
        "unfed": drawn,
        "token": jnp.where(drawn, token, old.token),
        "entry": jnp.where(drawn, places.drawn, old.entry),
        "cursor": old.cursor + said,
        "waiting": old.waiting - said,
        "length": old.length + said + sampled,
        "slot_run": pick(places.slot) // sizes.run,
        "log_run": jnp.where(entry >= 0, entry // sizes.log_run, old.log_run),
        "last": pick(places.entry),
    }
    threads = placed.threads
    write = lambda name, new: getattr(threads, name).at[row, tiles.thread].set(new, mode="drop")
    threads = dataclasses.replace(threads, **{name: write(name, new) for name, new in values.items()})

    max_tokens = placed.budgets[jnp.minimum(tiles.problem, sizes.problems - 1), jnp.minimum(old.level, 1)]
    event = jnp.where(drawn, program.protocol.event(token).astype(jnp.int32), 0)
    event = jnp.where(drawn & (event == 0) & (generated >= max_tokens), program.length, event)
    dry = good & ~old.samples & (old.waiting + unfed == tiles.count)
    event = jnp.where(dry, program.drained, event)
    event = jnp.where(good & ~finite, program.broken, event)
    events = jnp.zeros(threads.status.shape, jnp.int32).at[row, tiles.thread].set(event, mode="drop")
    return threads, events


def handle(program: Program, state: State) -> State:
    """Handle the events of all problems, one a problem at a time, until none is left. Never touches the pool.

    What is sampled is dealt with first, and the joins that follow from it; then what is to be decided by clock.
    """

    def joinable(held: Book) -> Bool[Array, "P M"]:
        live = held.active & (held.stop == Stop.RUNNING)
        return (held.threads.status == WAITING) & (held.threads.pending == 0) & live[:, None]

    def more(carry):
        held, events = carry
        return jnp.any(events > 0) | jnp.any(joinable(held)) | jnp.any(program.due(held)[0] > 0)

    def once(carry):
        held, events = carry
        join = program.length + 1
        due = jnp.where(joinable(held), join, events)
        thread = jnp.argmax(due > 0, axis=1).astype(jnp.int32)
        kind = jnp.take_along_axis(due, thread[:, None], axis=1)[:, 0]
        decision, decider = program.due(held)
        decides = (kind == 0) & (decision > 0)
        kind, thread = jnp.where(decides, join + decision, kind), jnp.where(decides, decider, thread)
        for number, handler in enumerate(_handlers(program), start=1):
            held = _apply(handler, kind == number, held, thread)
        if program.protocol.together:
            held = held.halt(schedule.crowded(held.threads, program.protocol.together), Stop.LANES_FULL)
        last = jax.vmap(lines.heir)(held, thread)
        after = jax.tree.map(lambda field: field[jnp.arange(thread.shape[0]), last], held.threads)
        spent = (
            (kind > 0)
            & (held.stop == Stop.RUNNING)
            & (after.status == READY)
            & (after.generated >= jax.vmap(Book.budget)(held, after.level))
            & after.samples
        )
        number = jnp.arange(events.shape[1])[None, :]
        events = jnp.where(number == thread[:, None], 0, events)
        again = (spent & (kind != program.length))[:, None] & (number == last[:, None])
        events = jnp.where(again, program.length, events)
        return jax.vmap(lines.free_runs)(held), events

    held, events = jax.lax.while_loop(more, once, (state.books, state.events))
    slots = state.slots
    if program.protocol.splits:
        new = jnp.arange(events.shape[1])[None, :] >= state.books.used[:, None]
        cut = jnp.any(new & (held.threads.stop == Stop.SPLIT))
        resign = lambda: pool.resign(slots, state.log.fed[:, 2], held, program.sizes)
        slots, held = jax.lax.cond(cut, resign, lambda: (slots, held))
    return state.replace(books=held, slots=slots, events=events)


def _handlers(program: Program):
    """Handlers by event number."""
    protocol = program.protocol

    def spent(book, thread):
        return books.close(book, thread, jnp.int32(Stop.LENGTH))

    def broken(book, thread):
        """The problem ends: what the other threads still do would be an answer of a model that is not sound."""
        return books.finish(book, thread, jnp.int32(Stop.NOT_FINITE)).halt(jnp.bool(True), Stop.NOT_FINITE)

    def join(book, thread):
        return lines.resume(protocol.joined(book, thread), thread)

    def drained(book, thread):
        return lines.drain(book, thread, protocol.drained)

    def event(book, thread):
        return races.event(book, thread, protocol.decided)

    decisions = (races.win, races.exhaust, event) if protocol.races else ()
    return (*protocol.handlers, drained, broken, spent, join, *decisions)


def _apply(handler, mask: Bool[Array, "P"], held: Book, thread: Int[Array, "P"]) -> Book:
    """Apply a handler to the masked problems; costs nothing where there are none."""

    def run(held):
        new = jax.vmap(handler)(held, thread)
        return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, held)

    return jax.lax.cond(jnp.any(mask), run, lambda held: held, held)


def changes(state: State) -> Bool[Array, ""]:
    """An ended problem can leave, or one of the queue can enter."""
    enters = jnp.any(~state.books.active) & (state.queue.next < state.queue.count)
    return (jnp.any(leaving(state)) & room(state)) | enters


def change(program: Program, state: State) -> State:
    """Ended problems leave, the next enter. The pool is no part of it."""

    def run(rest):
        return refill(retire(rest), program.protocol, program.sizes)

    rest = jax.lax.cond(changes(state), run, lambda rest: rest, state.replace(pool=()))
    return rest.replace(pool=state.pool)


def run_slice(program: Program, params: Any, state: State, steps: Int[Array, ""]) -> State:
    """Run until `steps` more steps are done, nothing is left to run, or a finished problem finds the outbox full."""
    sizes = program.sizes
    taken = lambda s: s.counters.feed_steps + s.counters.decode_steps
    limit = taken(state) + steps

    def runnable(s):
        return schedule.runnable(s.books, program.groups, program.protocol.together > 0)

    def goes_on(s):
        blocked = jnp.any(leaving(s)) & ~room(s)
        return (taken(s) < limit) & ~blocked & (jnp.any(runnable(s)) | changes(s))

    def calm(s):
        """Nothing has happened that the outer loop must see to."""
        halted = jnp.any(leaving(s))
        return (taken(s) < limit) & ~jnp.any(s.events > 0) & ~halted & ~jnp.any(program.due(s.books)[0] > 0)

    def long(s):
        """Threads for feed steps; those that keep step with others feed one token a step."""
        return (
            runnable(s) & (schedule.waiting(s.books.threads) > sizes.feed_threshold) & (s.books.threads.arena == NOBODY)
        )

    def feed(s):
        lanes = min(sizes.lanes, sizes.feed_tiles)
        tiles = schedule.choose(s.books, long(s), lanes, sizes.feed_tiles, sizes.feed_chunk)
        with jax.named_scope("feed"):
            return step(program, params, s, tiles, sizes.feed_chunk)

    def decode(s):
        tiles = schedule.choose(s.books, runnable(s), sizes.lanes, sizes.rows, 1)
        with jax.named_scope("decode"):
            return step(program, params, s, tiles, 1)

    def outer(s):
        s = change(program, s)
        s = jax.lax.while_loop(lambda s: calm(s) & jnp.any(long(s)), feed, s)
        s = jax.lax.while_loop(lambda s: calm(s) & ~jnp.any(long(s)) & jnp.any(runnable(s)), decode, s)
        with jax.named_scope("events"):
            return handle(program, s)

    return jax.lax.while_loop(goes_on, outer, state)
