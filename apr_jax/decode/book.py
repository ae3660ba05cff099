"""The book of a problem: its threads, who sees whom, and the messages that wait to be fed.

A book holds bookkeeping only, no keys and no values, so that protocols may rewrite it freely. Everything here is written
for *one* problem and vmapped by the loop. Axes: M threads, Z pieces of messages, R pages.
"""

import dataclasses
from typing import Any, runtime_checkable
from typing import Protocol as Interface

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.decode import threads as tables
from apr_jax.decode.needs import Needs
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.threads import DECIDING, EMPTY, NOBODY, OPENED, READY, WAITING, Threads, pytree
from apr_jax.record import Stop

# Where the tokens of a message piece stand.
TEMPLATE, PROMPT, SPAN = range(3)

# The random generator, whatever `jax_default_prng_impl` says: keys are kept as their two words.
RANDOM = "threefry2x32"


def cast(new: Any, old: Any) -> Any:
    """The tree `new` in the dtypes of the tree `old`."""
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)


@runtime_checkable
class Owner(Interface):
    """What a book asks of its protocol, see `apr_jax.decode.protocol.Protocol`."""

    needs: Needs

    def own_state(self) -> Any:
        """The state of its own of a thread that nobody forked."""

    def shared_state(self) -> Any:
        """The state of a new problem."""

    def bulk_state(self) -> Any:
        """What is kept of every line outside the book."""

    def fresh(self, shared: Any, parent: Any) -> Any:
        """The state that a child has of its own."""


@dataclasses.dataclass(frozen=True)
class Nobodys:
    """In place of a protocol, for books without one: all is allowed, nothing is kept."""

    needs: Needs = Needs(beside=True, live=True, races=True, splits=True)

    def own_state(self) -> Any:
        return ()

    def shared_state(self) -> Any:
        return ()

    def bulk_state(self) -> Any:
        return ()

    def fresh(self, shared: Any, parent: Any) -> Any:
        return parent


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
        page_owner: Int [pages]; thread that owns a page of the pool, NOBODY if it is free.
        log_owner, log_first: Int [log_pages]; thread that owns a page of the log, and the place of the page's first entry in the
            thread's log.
        log_used: pages of the log handed out.
        prompt, prompt_length: the prompt.
        problem, sample: the caller's numbers.
        request: how the problem is to be sampled.
        parts: Int [parts, 2]; start and length of the parts of the prompt that the protocol names.
        arguments: what the protocol is told of the problem.
        shared: the state that the protocol keeps of the problem, a tree of arrays.
        key: UInt32 [2], the key of the problem.
        active: a problem is here; stop: why it ended, Stop.RUNNING before that.
        protocol: whose book it is; static.
    """

    threads: Threads
    sees: UInt32[Array, "M words"]
    used: Int[Array, ""]
    pieces: Pieces
    piece_count: Int[Array, ""]
    page_owner: Int[Array, "pages"]
    log_owner: Int[Array, "log_pages"]
    log_first: Int[Array, "log_pages"]
    log_used: Int[Array, ""]
    prompt: Int[Array, "prompt"]
    prompt_length: Int[Array, ""]
    problem: Int[Array, ""]
    sample: Int[Array, ""]
    request: Request
    parts: Int[Array, "parts 2"]
    arguments: Int[Array, "arguments"]
    shared: Any
    key: UInt32[Array, "2"]
    active: Bool[Array, ""]
    stop: Int[Array, ""]
    protocol: Owner = dataclasses.field(default=Nobodys(), metadata={"static": True})

    def replace(self, **values: Any) -> "Book":
        """A copy with other values, in the dtypes of the old ones: a loop's carry must not widen under `jax_enable_x64`."""
        return dataclasses.replace(self, **{name: cast(new, getattr(self, name)) for name, new in values.items()})

    def mask(self, who: Bool[Array, "M"] | Int[Array, ""]) -> Bool[Array, "M"]:
        """Threads as a mask, from a mask or the number of one."""
        return who if who.dtype == bool else numbers(self) == who

    def update(self, who: Bool[Array, "M"] | Int[Array, ""], **columns: Any) -> "Book":
        """A copy in which columns of the thread table have new values.

        Args:
            who: a mask of threads, or the number of one.
            columns: by name, of whatever part of the table; broadcast over the threads.
        """
        return self.replace(threads=self.threads.where(self.mask(who), **columns))

    def update_own(self, mask: Bool[Array, "M"], **values: Any) -> "Book":
        """A copy in which the named fields of the protocol's own state have new values for the masked threads."""
        own = self.threads.own
        new = {name: tables.masked(mask, getattr(own, name), value) for name, value in values.items()}
        return self.replace(threads=dataclasses.replace(self.threads, own=dataclasses.replace(own, **new)))

    def thread(self, number: Int[Array, ""]) -> Threads:
        """One row of the thread table, as scalars."""
        return jax.tree.map(lambda field: field[number], self.threads)

    def halt(self, condition: Bool[Array, "*P"], stop: Stop) -> "Book":
        """End the whole problem, or those of P, with `stop` where `condition` holds and it has not ended before."""
        return self.replace(stop=jnp.where(condition & (self.stop == Stop.RUNNING), int(stop), self.stop))


def empty(sizes: Sizes, protocol: Owner = Nobodys()) -> Book:  # noqa: B008 - frozen
    """A book of the protocol without a problem."""
    m, needs = sizes.threads, protocol.needs

    def ints(shape, value=0):
        return jnp.full(shape, value, jnp.int32)

    return Book(
        threads=tables.empty(m, protocol.own_state(), len(needs.signals)),
        sees=jnp.zeros((m, sizes.words), jnp.uint32),
        used=ints(()),
        pieces=Pieces(*(ints(needs.room(m)) for _ in range(5))),
        piece_count=ints(()),
        page_owner=ints(sizes.pages, NOBODY),
        log_owner=ints(sizes.log_pages, NOBODY),
        log_first=ints(sizes.log_pages),
        log_used=ints(()),
        prompt=ints(sizes.prompt),
        prompt_length=ints(()),
        problem=ints(()),
        sample=ints(()),
        request=Request(jnp.zeros((), jnp.float32), ints(()), jnp.ones((), jnp.float32), ints(()), ints(())),
        parts=ints((len(needs.parts), 2)),
        arguments=ints(needs.arguments),
        shared=jax.tree.map(jnp.asarray, protocol.shared_state()),
        key=jnp.zeros(2, jnp.uint32),
        active=jnp.zeros((), bool),
        stop=ints((), int(Stop.RUNNING)),
        protocol=protocol,
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
    """Open a child of `parent`; it stays OPENED, and sees itself alone, until a fork. A full thread table ends the problem."""
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
        first=book.used,
        nesting=mother.line.nesting + 1,
        key=key,
        draw_key=fold(key, jnp.int32(0)),
        temperature=drawing.temperature,
        top_k=drawing.top_k,
        top_p=drawing.top_p,
        budget=jnp.where(limit > 0, limit, book.request.max_tokens),
        own=book.protocol.fresh(book.shared, mother.own),
    )
    threads = threads.where(numbers(book) == parent, opened=mother.line.opened + 1)
    sees = jnp.where(new[:, None], one_bit(book.used, book.sees.shape[1]), book.sees)
    return book.replace(threads=threads, sees=sees, used=book.used + jnp.where(full, 0, 1)).halt(
        full, Stop.THREADS_FULL
    )


def opened(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """The children that `parent` has opened and not started."""
    return (book.threads.line.parent == parent) & (book.threads.status == OPENED)


def is_outstanding(book: Book) -> Bool[Array, "M"]:
    """All threads of lines that were started and not joined, running, ended or killed."""
    threads = book.threads
    started = (threads.status != EMPTY) & (threads.status != OPENED)
    gone = (threads.stop == Stop.SPLIT) | (threads.stop == Stop.DROPPED)
    return started & ~gone & ~threads.bond.joined & (threads.line.parent != NOBODY)


def outstanding(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """All threads of the lines that `parent` has started and not joined, running, ended or killed."""
    return is_outstanding(book) & (book.threads.line.parent == parent)


def last_of_lines(book: Book, chosen: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """Of the chosen threads one for each line, its last; none for a line that was killed."""
    stop = book.threads.stop
    return chosen & (stop != Stop.KILLED) & (stop != Stop.CONTINUED)


def lines_of(book: Book, chosen: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """All threads of the lines that the chosen threads belong to."""
    first = book.threads.line.first
    named = tables.collect(first, chosen.astype(jnp.int32), "max") > 0
    return named[first] & (numbers(book) < book.used)


def awaited(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """One thread for each line that `parent` waits for, or joins just now: its last; none for a line that was killed."""
    return last_of_lines(book, (book.threads.line.parent == parent) & book.threads.bond.awaited)


def unfinished(book: Book) -> Bool[Array, "M"]:
    """Threads that were started and have not ended."""
    status = book.threads.status
    return (status == READY) | (status == WAITING) | (status == DECIDING)


def eldest(book: Book, chosen: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """Of the chosen children of one parent the one that was opened first."""
    ordinal = book.threads.line.ordinal
    return chosen & (ordinal == jnp.min(jnp.where(chosen, ordinal, jnp.iinfo(jnp.int32).max)))


def by_parent(book: Book, values: Int[Array, "M"]) -> Int[Array, "M"]:
    """For every thread the sum of its children's values."""
    return tables.collect(book.threads.line.parent, values, "add")


def mates(book: Book, thread: Int[Array, ""]) -> Bool[Array, "M"]:
    """The threads of all other lines that `thread` is live with."""
    threads = book.threads
    same = (threads.pace.group == threads.pace.group[thread]) & (threads.pace.group != NOBODY)
    return same & (threads.line.ordinal != threads.line.ordinal[thread])


def union(rows: UInt32[Array, "M words"], chosen: Bool[Array, "M"]) -> UInt32[Array, "words"]:
    """Everybody whom some chosen row sees."""
    return jax.lax.reduce(jnp.where(chosen[:, None], rows, jnp.uint32(0)), jnp.uint32(0), jax.lax.bitwise_or, (0,))


def has(row: UInt32[Array, "... words"], number: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a row of the visibility matrix names a thread."""
    return ((row[..., number // 32] >> (number % 32).astype(jnp.uint32)) & 1).astype(bool)


def bits(chosen: Bool[Array, "M"], words: int) -> UInt32[Array, "words"]:
    """The row of the visibility matrix in which just the chosen threads are set."""
    padded = jnp.pad(chosen, (0, 32 * words - chosen.shape[0])).reshape(words, 32)
    return jnp.sum(jnp.where(padded, jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32), 0), axis=1, dtype=jnp.uint32)


def stream(book: Book, thread: Int[Array, ""], number: Int[Array, ""]) -> UInt32[Array, "2"]:
    """A key for the `number`-th random choice that a handler makes for the line of `thread`.

    It is none of the keys of the line's draws and children, and the same whatever the schedule.
    """
    return fold(fold(book.threads.line.key[thread], jnp.int32(-1)), number)


def choose(condition: Bool[Array, ""], yes: Book, no: Book) -> Book:
    """`yes` where the condition holds, else `no`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
