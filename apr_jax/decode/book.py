"""The book of a problem: its threads, who sees whom, and the messages that wait to be fed.

A book holds bookkeeping only, no keys and no values, so that protocols may rewrite it freely. Everything here is written
for *one* problem and vmapped by the loop. Axes: M threads, Z pieces of messages, R runs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.decode import threads as tables
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.threads import (
    DECIDING,
    FINISHED,
    NOBODY,
    OPENED,
    READY,
    WAITING,
    Threads,
    pytree,
)  # fmt: skip
from apr_jax.record import Stop

# Where the tokens of a message piece stand.
TEMPLATE, PROMPT, SPAN = range(3)

# The random generator, whatever `jax_default_prng_impl` says: keys are kept as their two words.
RANDOM = "threefry2x32"


def cast(new: Any, old: Any) -> Any:
    """The tree `new` in the dtypes of the tree `old`."""
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)


@pytree
class Request:
    """How a problem is to be sampled; see `apr_jax.decode.problem.Problem`."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    max_tokens: Int[Array, ""]
    child_max_tokens: Int[Array, ""]


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
        request: how the problem is to be sampled.
        arguments: what the protocol is told of the problem.
        shared: the state that the protocol keeps of the problem, a tree of arrays.
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
    request: Request
    arguments: Int[Array, "n"]
    shared: Any
    key: UInt32[Array, "2"]
    active: Bool[Array, ""]
    stop: Int[Array, ""]

    def replace(self, **values: Any) -> "Book":
        """A copy with other values, in the dtypes of the old ones: a loop's carry must not widen under `jax_enable_x64`."""
        return dataclasses.replace(self, **{name: cast(new, getattr(self, name)) for name, new in values.items()})

    def update(self, who: Bool[Array, "M"] | Int[Array, ""], **columns: Any) -> "Book":
        """A copy in which columns of the thread table have new values.

        Args:
            who: a mask of threads, or the number of one.
            columns: by name, of whatever part of the table; broadcast over the threads.
        """
        mask = who if who.dtype == bool else numbers(self) == who
        return self.replace(threads=self.threads.where(mask, **columns))

    def update_own(self, mask: Bool[Array, "M"], **values: Any) -> "Book":
        """A copy in which the named fields of the protocol's own state have new values for the masked threads."""
        own = self.threads.own
        new = {name: tables.masked(mask, getattr(own, name), value) for name, value in values.items()}
        return self.replace(threads=dataclasses.replace(self.threads, own=dataclasses.replace(own, **new)))

    def thread(self, number: Int[Array, ""]) -> Threads:
        """One row of the thread table, as scalars."""
        return jax.tree.map(lambda field: field[number], self.threads)

    def halt(self, condition: Bool[Array, ""], stop: Stop) -> "Book":
        """End the whole problem with `stop` if `condition` holds and it has not ended before."""
        return self.replace(stop=jnp.where(condition & (self.stop == Stop.RUNNING), int(stop), self.stop))


def empty(sizes: Sizes, own: Any = (), shared: Any = (), arguments: int = 0) -> Book:
    """A book without a problem.

    Args:
        own, shared: the protocol's state of a new thread and of a new problem.
        arguments: numbers that a problem gives to the protocol.
    """
    m = sizes.threads

    def ints(shape, value=0):
        return jnp.full(shape, value, jnp.int32)

    return Book(
        threads=tables.empty(m, own),
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
        request=Request(jnp.zeros((), jnp.float32), ints(()), jnp.ones((), jnp.float32), ints(()), ints(())),
        arguments=ints(arguments),
        shared=jax.tree.map(jnp.asarray, shared),
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


def open_root(book: Book, samples: bool) -> Book:
    """Put the root thread into an empty book."""
    root, request = numbers(book) == 0, book.request
    sampling = dict(temperature=request.temperature, top_k=request.top_k, top_p=request.top_p)
    draws = fold(book.key, jnp.int32(0))
    book = book.update(
        root, status=READY, samples=samples, key=book.key, draw_key=draws, budget=request.max_tokens, **sampling
    )
    sees = jnp.where(root[:, None], one_bit(jnp.int32(0), book.sees.shape[1]), book.sees)
    return book.replace(sees=sees, used=jnp.int32(1))


def open_child(book: Book, parent: Int[Array, ""]) -> Book:
    """Open a child of `parent`; it stays OPENED, and sees itself alone, until `commit`. A full thread table ends the problem."""
    full = book.used >= book.threads.status.shape[0]
    new = (numbers(book) == book.used) & ~full
    mother = book.thread(parent)
    key = fold(mother.line.key, 1 + mother.line.opened)
    drawing = mother.sampling
    limit = book.request.child_max_tokens
    threads = book.threads.where(
        new,
        status=OPENED,
        samples=True,
        parent=parent,
        ordinal=mother.line.opened,
        nesting=mother.line.nesting + 1,
        key=key,
        draw_key=fold(key, jnp.int32(0)),
        temperature=drawing.temperature,
        top_k=drawing.top_k,
        top_p=drawing.top_p,
        budget=jnp.where(limit > 0, limit, book.request.max_tokens),
    )
    threads = threads.where(numbers(book) == parent, opened=mother.line.opened + 1)
    sees = jnp.where(new[:, None], one_bit(book.used, book.sees.shape[1]), book.sees)
    return book.replace(threads=threads, sees=sees, used=book.used + jnp.where(full, 0, 1)).halt(
        full, Stop.THREADS_FULL
    )


def family(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """All threads that the fork, which `parent` has open or waits for, ever had."""
    threads = book.threads
    born = (threads.line.parent == parent) & (threads.stop != Stop.SPLIT) & (numbers(book) < book.used)
    return born & (threads.line.ordinal >= threads.wait.fork[parent])


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
    threads = book.threads.where(
        born,
        status=READY,
        clock=mother.cursor.clock,
        critical_path=mother.cursor.critical_path,
        scope=mother.bond.scope,
    )
    threads = threads.where(numbers(book) == parent, status=WAITING, pending=jnp.sum(born))
    row = book.sees
    if shares:
        threads = threads.where(born, position=mother.cursor.position)
        row = row | book.sees[parent][None]
    if live:
        threads = threads.where(born, group=parent, scope=outermost(book, parent))
        row = row | union(row, born)
    return book.replace(threads=threads, sees=jnp.where(born[:, None], row, book.sees))


def outermost(book: Book, parent: Int[Array, ""]) -> Int[Array, ""]:
    """The scope of a group of children of `parent`."""
    scope = book.threads.bond.scope[parent]
    return jnp.where(scope == NOBODY, parent, scope)


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
    parent = threads.line.parent[thread]
    contests = (parent != NOBODY) & threads.wait.first_wins[parent]
    deciding = book.update(thread, status=DECIDING, stop=stop)
    return choose(contests, deciding, leave(book, thread, stop))


def leave(book: Book, thread: Int[Array, ""], stop: Int[Array, ""]) -> Book:
    """End a thread: at once, or if it is to be stitched when its last token is fed (`lines.drain` finishes it then)."""
    flush = book.threads.bond.stitched[thread] & book.threads.drawn.unfed[thread]
    mine = (numbers(book) == thread) & flush
    flushing = book.update(mine, samples=False, stop=stop, left=0)
    return choose(flush, flushing, finish(book, thread, stop))


def choose(condition: Bool[Array, ""], yes: Book, no: Book) -> Book:
    """`yes` where the condition holds, else `no`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def finish(book: Book, thread: Int[Array, ""], stop: Int[Array, ""]) -> Book:
    """End a thread, drop the children it opened but never started, and tell its parent. The root's end is the problem's."""
    threads = book.threads.where(opened(book, thread), status=FINISHED, stop=int(Stop.DROPPED), released=True)
    threads = threads.where(
        numbers(book) == thread, status=FINISHED, stop=stop, released=~threads.bond.stitched, unfed=False, left=0
    )
    parent = threads.line.parent[thread]
    threads = threads.where(numbers(book) == parent, pending=threads.wait.pending[parent] - 1)
    is_root = parent == NOBODY
    return book.replace(threads=threads, stop=jnp.where(is_root & (book.stop == Stop.RUNNING), stop, book.stop))
