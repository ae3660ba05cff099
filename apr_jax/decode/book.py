"""The book of a problem: its threads, who sees whom, and the messages that wait to be fed.

A book holds bookkeeping only, no keys and no values, so that protocols may rewrite it freely. Everything here is written
for *one* problem and vmapped by the loop. Axes: M threads, Z pieces of messages, R runs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.decode.sizes import Sizes
from apr_jax.record import Stop

# States of a thread.
EMPTY, OPENED, READY, WAITING, FINISHED, DECIDING = range(6)
# Where the tokens of a message piece stand.
TEMPLATE, PROMPT, SPAN = range(3)

NOBODY = -1
# The random generator, whatever `jax_default_prng_impl` says: keys are kept as their two words.
RANDOM = "threefry2x32"


def pytree(cls):
    """A frozen dataclass whose fields are all arrays (or trees of them)."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def cast(new: Any, old: Any) -> Any:
    """The tree `new` in the dtypes of the tree `old`."""
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)


@pytree
class Threads:
    """The thread table; every field has the shape [M] unless said.

    Attributes:
        status: EMPTY, OPENED (its message is still being written), READY, WAITING, FINISHED or DECIDING (its event or its
            end awaits a decision, see `apr_jax.decode.races`).
        stop: a `Stop`.
        parent: thread number, NOBODY for the root.
        ordinal: its place among all children that its parent ever opened.
        segment: how often its line of reasoning had gone on as a new thread before it.
        level: forks above it.
        opened: children it ever opened.
        fork: ordinal of the first child of the fork that is open or waited for.
        pending: unfinished children it waits for.
        samples: it samples when nothing waits; otherwise it only reports that it is drained.
        released: its slots may be reused once nobody unreleased sees it.
        fed: tokens fed, the index of the next one.
        position: position of the next token.
        clock: largest clock it wrote or must be later than.
        depth: critical-path count.
        told, told_before: count of the token it fed last, and of the one before.
        generated: tokens it sampled.
        stitched: its parent will see it: its last token is fed at its end, and its slots are held until the join.
        group: number of the parent whose live children it and its siblings are, NOBODY if it is not live.
        arena: number of the parent of the outermost group, live or racing, that it stands in; NOBODY if there is none.
        first: of the children it waits for, the first to end is the only one.
        shared: tokens that the children it waits for may sample together, with all below them; 0 is any number.
        unfed: its last sampled token has not been fed.
        token: that token.
        entry: log entry of that token.
        message, message_end: pieces of the waiting message, from and to.
        cursor: tokens of that message already fed.
        waiting: tokens of it not yet fed.
        span, span_end: a range of its parent's log (while OPENED) or of its own, kept for the protocol. What was split off
            keeps in `span` where it stands in its parent's log.
        length: entries of its log.
        slot_run, log_run: the run it writes to.
        last: log entry of its last fed token, the predictor of what it samples next.
        key, draw_key: UInt32 [M, 2], of its path and of its draws.
        temperature, top_k, top_p: sampling parameters.
    """

    status: Int[Array, "M"]
    stop: Int[Array, "M"]
    parent: Int[Array, "M"]
    ordinal: Int[Array, "M"]
    segment: Int[Array, "M"]
    level: Int[Array, "M"]
    opened: Int[Array, "M"]
    fork: Int[Array, "M"]
    pending: Int[Array, "M"]
    samples: Bool[Array, "M"]
    released: Bool[Array, "M"]
    fed: Int[Array, "M"]
    position: Int[Array, "M"]
    clock: Int[Array, "M"]
    depth: Int[Array, "M"]
    told: Int[Array, "M"]
    told_before: Int[Array, "M"]
    generated: Int[Array, "M"]
    stitched: Bool[Array, "M"]
    group: Int[Array, "M"]
    arena: Int[Array, "M"]
    first: Bool[Array, "M"]
    shared: Int[Array, "M"]
    unfed: Bool[Array, "M"]
    token: Int[Array, "M"]
    entry: Int[Array, "M"]
    message: Int[Array, "M"]
    message_end: Int[Array, "M"]
    cursor: Int[Array, "M"]
    waiting: Int[Array, "M"]
    span: Int[Array, "M"]
    span_end: Int[Array, "M"]
    length: Int[Array, "M"]
    slot_run: Int[Array, "M"]
    log_run: Int[Array, "M"]
    last: Int[Array, "M"]
    key: UInt32[Array, "M 2"]
    draw_key: UInt32[Array, "M 2"]
    temperature: Float[Array, "M"]
    top_k: Int[Array, "M"]
    top_p: Float[Array, "M"]

    def where(self, mask: Bool[Array, "M"], **values: Any) -> "Threads":
        """A copy in which the named fields of the masked threads have new values (broadcast over threads)."""

        def put(old, new):
            return jnp.where(mask.reshape(mask.shape + (1,) * (old.ndim - 1)), jnp.asarray(new).astype(old.dtype), old)

        return dataclasses.replace(self, **{name: put(getattr(self, name), value) for name, value in values.items()})


@pytree
class Pieces:
    """The pieces of all messages of a problem, append-only; every field has the shape [Z].

    Attributes:
        kind: TEMPLATE, PROMPT or SPAN.
        thread: whose log a SPAN is taken from.
        start: first token of the piece in the template table, the prompt or the log of that thread.
        offset: tokens of the same message that come before this piece.
        length: tokens of the piece.
    """

    kind: Int[Array, "Z"]
    thread: Int[Array, "Z"]
    start: Int[Array, "Z"]
    offset: Int[Array, "Z"]
    length: Int[Array, "Z"]


@pytree
class Book:
    """Everything a protocol may read and write about a problem.

    Attributes:
        threads: the thread table.
        sees: UInt32 [M, words]; bit b of row a: thread a may see thread b.
        used: threads opened so far.
        pieces, piece_count: the messages.
        run_owner: Int [runs]; thread that owns a run of the pool, NOBODY if it is free.
        log_owner, log_first: Int [log_runs]; thread that owns a run of the log and the place of the run's first entry in it.
        log_used: log runs handed out.
        prompt, prompt_length: the prompt.
        problem, sample: the caller's numbers.
        budgets: Int [2], tokens that the root and that any other thread may generate.
        key: UInt32 [2], the key of the problem.
        active: a problem is here; stop: why it ended, Stop.RUNNING before that.
    """

    threads: Threads
    sees: UInt32[Array, "M words"]
    used: Int[Array, ""]
    pieces: Pieces
    piece_count: Int[Array, ""]
    run_owner: Int[Array, "runs"]
    log_owner: Int[Array, "log_runs"]
    log_first: Int[Array, "log_runs"]
    log_used: Int[Array, ""]
    prompt: Int[Array, "prompt"]
    prompt_length: Int[Array, ""]
    problem: Int[Array, ""]
    sample: Int[Array, ""]
    budgets: Int[Array, "2"]
    key: UInt32[Array, "2"]
    active: Bool[Array, ""]
    stop: Int[Array, ""]

    def budget(self, level: Int[Array, ""]) -> Int[Array, ""]:
        """Tokens that a thread with so many forks above it may generate."""
        return self.budgets[jnp.minimum(level, 1)]

    def replace(self, **values: Any) -> "Book":
        """A copy with other values, in the dtypes of the old ones: a loop's carry must not widen under `jax_enable_x64`."""
        return dataclasses.replace(self, **{name: cast(new, getattr(self, name)) for name, new in values.items()})

    def thread(self, number: Int[Array, ""]) -> Threads:
        """One row of the thread table, as scalars."""
        return jax.tree.map(lambda field: field[number], self.threads)

    def halt(self, condition: Bool[Array, ""], stop: Stop) -> "Book":
        """End the whole problem with `stop` if `condition` holds and it has not ended before."""
        return self.replace(stop=jnp.where(condition & (self.stop == Stop.RUNNING), int(stop), self.stop))


def empty(sizes: Sizes) -> Book:
    """A book without a problem."""
    m = sizes.threads

    def ints(shape, value=0):
        return jnp.full(shape, value, jnp.int32)

    special = {
        "samples": jnp.zeros(m, bool),
        "released": jnp.zeros(m, bool),
        "unfed": jnp.zeros(m, bool),
        "stitched": jnp.zeros(m, bool),
        "first": jnp.zeros(m, bool),
        "group": ints(m, NOBODY),
        "arena": ints(m, NOBODY),
        "key": jnp.zeros((m, 2), jnp.uint32),
        "draw_key": jnp.zeros((m, 2), jnp.uint32),
        "temperature": jnp.zeros(m, jnp.float32),
        "top_p": jnp.ones(m, jnp.float32),
        "parent": ints(m, NOBODY),
        "last": ints(m, -1),
    }
    names = [field.name for field in dataclasses.fields(Threads)]
    return Book(
        threads=Threads(**{name: special.get(name, ints(m)) for name in names}),
        sees=jnp.zeros((m, sizes.words), jnp.uint32),
        used=ints(()),
        pieces=Pieces(*(ints(sizes.pieces) for _ in range(5))),
        piece_count=ints(()),
        run_owner=ints(sizes.runs, NOBODY),
        log_owner=ints(sizes.log_runs, NOBODY),
        log_first=ints(sizes.log_runs),
        log_used=ints(()),
        prompt=ints(sizes.prompt),
        prompt_length=ints(()),
        problem=ints(()),
        sample=ints(()),
        budgets=ints(2),
        key=jnp.zeros(2, jnp.uint32),
        active=jnp.zeros((), bool),
        stop=ints((), int(Stop.RUNNING)),
    )


def fold(key: UInt32[Array, "2"], number: Int[Array, ""]) -> UInt32[Array, "2"]:
    """`jax.random.fold_in` on raw key data."""
    return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key, impl=RANDOM), number))


def one_bit(number: Int[Array, ""], words: int) -> UInt32[Array, "words"]:
    """The row of the visibility matrix in which only `number` is set."""
    return jnp.where(
        jnp.arange(words) == number // 32, jnp.uint32(1) << (number % 32).astype(jnp.uint32), jnp.uint32(0)
    )


def numbers(book: Book) -> Int[Array, "M"]:
    return jnp.arange(book.threads.status.shape[0], dtype=jnp.int32)


def open_root(book: Book, temperature, top_k, top_p, samples: bool) -> Book:
    """Put the root thread into an empty book."""
    root = numbers(book) == 0
    threads = book.threads.where(
        root, status=READY, samples=samples, key=book.key, draw_key=fold(book.key, jnp.int32(0))
    ).where(root, temperature=temperature, top_k=top_k, top_p=top_p)
    sees = jnp.where(root[:, None], one_bit(jnp.int32(0), book.sees.shape[1]), book.sees)
    return book.replace(threads=threads, sees=sees, used=jnp.int32(1))


def open_child(book: Book, parent: Int[Array, ""]) -> Book:
    """Open a child of `parent`; it stays OPENED, and sees itself alone, until `commit`. A full thread table ends the problem."""
    full = book.used >= book.threads.status.shape[0]
    new = (numbers(book) == book.used) & ~full
    mother = book.thread(parent)
    key = fold(mother.key, 1 + mother.opened)
    threads = book.threads.where(
        new, status=OPENED, parent=parent, ordinal=mother.opened, level=mother.level + 1, samples=True
    ).where(new, key=key, draw_key=fold(key, jnp.int32(0)))
    threads = threads.where(new, temperature=mother.temperature, top_k=mother.top_k, top_p=mother.top_p)
    threads = threads.where(numbers(book) == parent, opened=mother.opened + 1)
    sees = jnp.where(new[:, None], one_bit(book.used, book.sees.shape[1]), book.sees)
    return book.replace(threads=threads, sees=sees, used=book.used + jnp.where(full, 0, 1)).halt(
        full, Stop.THREADS_FULL
    )


def family(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """All threads that the fork, which `parent` has open or waits for, ever had."""
    threads = book.threads
    born = (threads.parent == parent) & (threads.stop != Stop.SPLIT) & (numbers(book) < book.used)
    return born & (threads.ordinal >= threads.fork[parent])


def children(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """One thread for each line of the fork that `parent` has open or waits for, its last; none for a line that was killed."""
    stop = book.threads.stop
    return family(book, parent) & (stop != Stop.KILLED) & (stop != Stop.CONTINUED)


def opened(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """The children that `parent` has opened and not started."""
    return children(book, parent) & (book.threads.status == OPENED)


def commit(book: Book, parent: Int[Array, ""], shares: bool, live: bool = False) -> Book:
    """Start the opened children of `parent` and let it wait for them; they are later than the row that sampled the fork.

    Args:
        shares: a child sees what the parent sees, and the parent; its positions go on from the parent's. Otherwise it sees
            itself alone and counts positions from 0.
        live: the children see each other.
    """
    mother = book.thread(parent)
    born = opened(book, parent)
    threads = book.threads.where(born, status=READY, clock=mother.clock, depth=mother.depth, arena=mother.arena)
    threads = threads.where(numbers(book) == parent, status=WAITING, pending=jnp.sum(born))
    row = book.sees
    if shares:
        threads = threads.where(born, position=mother.position)
        row = row | book.sees[parent][None]
    if live:
        threads = threads.where(born, group=parent, arena=outermost(book, parent))
        row = row | union(row, born)
    return book.replace(threads=threads, sees=jnp.where(born[:, None], row, book.sees))


def outermost(book: Book, parent: Int[Array, ""]) -> Int[Array, ""]:
    """The arena of a group of children of `parent`."""
    arena = book.threads.arena[parent]
    return jnp.where(arena == NOBODY, parent, arena)


def union(rows: UInt32[Array, "M words"], chosen: Bool[Array, "M"]) -> UInt32[Array, "words"]:
    """Everybody whom some chosen row sees."""
    return jax.lax.reduce(jnp.where(chosen[:, None], rows, jnp.uint32(0)), jnp.uint32(0), jax.lax.bitwise_or, (0,))


def has(row: UInt32[Array, "... words"], number: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a row of the visibility matrix names a thread."""
    return ((row[..., number // 32] >> (number % 32).astype(jnp.uint32)) & 1).astype(bool)


def bits(book: Book, chosen: Bool[Array, "M"]) -> UInt32[Array, "words"]:
    """The row of the visibility matrix in which just the chosen threads are set."""
    words = book.sees.shape[1]
    return union(jax.vmap(lambda number: one_bit(number, words))(numbers(book)), chosen)


def close(book: Book, thread: Int[Array, ""], stop: Int[Array, ""]) -> Book:
    """End a thread; if the first of its siblings to end is the only one, when that is decided."""
    threads = book.threads
    parent = threads.parent[thread]
    contests = (parent != NOBODY) & threads.first[parent]
    deciding = book.replace(threads=threads.where(numbers(book) == thread, status=DECIDING, stop=stop))
    return choose(contests, deciding, leave(book, thread, stop))


def leave(book: Book, thread: Int[Array, ""], stop: Int[Array, ""]) -> Book:
    """End a thread: at once, or if it is to be stitched when its last token is fed (`lines.drain` finishes it then)."""
    flush = book.threads.stitched[thread] & book.threads.unfed[thread]
    mine = (numbers(book) == thread) & flush
    flushing = book.replace(threads=book.threads.where(mine, samples=False, stop=stop, waiting=0))
    return choose(flush, flushing, finish(book, thread, stop))


def choose(condition: Bool[Array, ""], yes: Book, no: Book) -> Book:
    """`yes` where the condition holds, else `no`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def finish(book: Book, thread: Int[Array, ""], stop: Int[Array, ""]) -> Book:
    """End a thread, drop the children it opened but never started, and tell its parent. The root's end is the problem's."""
    threads = book.threads.where(opened(book, thread), status=FINISHED, stop=int(Stop.DROPPED), released=True)
    threads = threads.where(
        numbers(book) == thread, status=FINISHED, stop=stop, released=~threads.stitched, unfed=False, waiting=0
    )
    parent = threads.parent[thread]
    threads = threads.where(numbers(book) == parent, pending=threads.pending[parent] - 1)
    is_root = parent == NOBODY
    return book.replace(threads=threads, stop=jnp.where(is_root & (book.stop == Stop.RUNNING), stop, book.stop))
