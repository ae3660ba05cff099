"""The book of a problem: its threads, who sees whom, and the messages that wait to be fed.

A book holds bookkeeping only, no keys and no values, so that protocols may rewrite it freely. All functions here are written
for *one* problem; the loop vmaps them. Axes: M threads, Z pieces of messages, R pages.
"""

import dataclasses
from typing import Any, runtime_checkable
from typing import Protocol as Interface

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.decode import replies
from apr_jax.decode import threads as tables
from apr_jax.decode.needs import Needs
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.threads import ASKING, DECIDING, EMPTY, NOBODY, OPENED, READY, WAITING, Threads, pytree
from apr_jax.record import Stop

# The kinds of message pieces, by the place of their tokens.
TEMPLATE, PROMPT, SPAN, HOST = range(4)

# The random generator, independent of `jax_default_prng_impl`, because the book keeps keys as two words.
RANDOM = "threefry2x32"


def cast(new: Any, old: Any) -> Any:
    """The tree `new` in the dtypes of the tree `old`."""
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)


@runtime_checkable
class Owner(Interface):
    """The part of `apr_jax.decode.protocol.Protocol` that a book uses."""

    needs: Needs
    templates: tuple[int, ...]

    def own_state(self) -> Any:
        """The protocol's state of a root thread."""

    def shared_state(self) -> Any:
        """The protocol's state of a new problem."""

    def bulk_state(self) -> Any:
        """The protocol's state of every line that is kept outside the book."""

    def fresh(self, shared: Any, parent: Any) -> Any:
        """The protocol's state of a new child."""


@dataclasses.dataclass(frozen=True)
class Nobodys:
    """Stands for the protocol in books without one: every feature is allowed, no state is kept."""

    needs: Needs = Needs(beside=True, live=True, races=True, splits=True)
    templates: tuple[int, ...] = (0,)

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
    """The sampling parameters and budgets of a problem; see `apr_jax.decode.problem.Problem`."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    max_tokens: Int[Array, ""]
    child_max_tokens: Int[Array, ""]


@pytree
class Pieces:
    """The pieces of all messages of a problem, append-only; every field has the shape [Z].

    Attributes:
        kind: TEMPLATE, PROMPT, SPAN or HOST.
        thread: the thread whose log a SPAN quotes.
        start: index of the piece's first token in the template table, the prompt, that thread's log or the store.
        offset: tokens of the same message before this piece.
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
        log_owner, log_first: Int [log_pages]; thread that owns a page of the log, and the index in that thread's log of the
            page's first entry.
        log_used: pages of the log handed out.
        prompt, prompt_length: the prompt.
        problem, sample: the caller's numbers of the problem and of the sample.
        request: sampling parameters and budgets.
        parts: Int [parts, 2]; start and length of the parts of the prompt that the protocol names.
        arguments: the problem's numbers for the protocol (`Problem.arguments`).
        store, stored: Int [host]; all that the host has said, and its number of tokens.
        shared: the protocol's state of the problem, a tree of arrays.
        key: UInt32 [2], the random key of the problem.
        active: the book holds a problem.
        stop: why the problem ended; Stop.RUNNING until then.
        protocol: the protocol that the book serves; static.
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
    store: Int[Array, "host"]
    stored: Int[Array, ""]
    shared: Any
    key: UInt32[Array, "2"]
    active: Bool[Array, ""]
    stop: Int[Array, ""]
    protocol: Owner = dataclasses.field(default=Nobodys(), metadata={"static": True})

    def replace(self, **values: Any) -> "Book":
        """A copy with new values, cast to the old dtypes: the carry of a loop must not widen under `jax_enable_x64`."""
        return dataclasses.replace(self, **{name: cast(new, getattr(self, name)) for name, new in values.items()})

    def mask(self, who: Bool[Array, "M"] | Int[Array, ""]) -> Bool[Array, "M"]:
        """The mask of the given threads: a mask is returned as given, a thread number becomes a mask."""
        return who if who.dtype == bool else numbers(self) == who

    def update(self, who: Bool[Array, "M"] | Int[Array, ""], **columns: Any) -> "Book":
        """A copy in which columns of the thread table have new values.

        Args:
            who: a mask of threads, or a thread number.
            columns: new values by column name, from any part of the table; broadcast over the threads.
        """
        return self.replace(threads=self.threads.where(self.mask(who), **columns))

    def update_own(self, mask: Bool[Array, "M"], **values: Any) -> "Book":
        """A copy in which the named fields of the protocol's own state have new values for the masked threads."""
        own = self.threads.own
        new = {name: tables.masked(mask, getattr(own, name), value) for name, value in values.items()}
        return self.replace(threads=dataclasses.replace(self.threads, own=dataclasses.replace(own, **new)))

    def thread(self, number: Int[Array, ""]) -> Threads:
        """The row of one thread in the thread table; each [M, ...] column becomes [...]."""
        return jax.tree.map(lambda field: field[number], self.threads)

    def halt(self, condition: Bool[Array, "*P"], stop: Stop) -> "Book":
        """End the problem with `stop` if `condition` holds and it still runs; elementwise for the books of P problems."""
        return self.replace(stop=jnp.where(condition & (self.stop == Stop.RUNNING), int(stop), self.stop))


def empty(sizes: Sizes, protocol: Owner = Nobodys()) -> Book:  # noqa: B008 - frozen
    """A book for the protocol, without a problem."""
    m, needs = sizes.threads, protocol.needs

    def ints(shape, value=0):
        return jnp.full(shape, value, jnp.int32)

    return Book(
        threads=tables.empty(
            m, protocol.own_state(), len(needs.signals), needs.branches > 0, replies.blank(needs.asks), needs.beside
        ),
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
        store=ints(sizes.host),
        stored=ints(()),
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
    """The row of the visibility matrix in which only the bit of thread `number` is set."""
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
    """Open a child of `parent`. Until a fork the child is OPENED and sees only itself. A full thread table ends the problem."""
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


def open_children(book: Book, parent: Int[Array, ""], count: Int[Array, ""] | int) -> Book:
    """Open so many children of `parent`, one after the other, see `open_child`."""
    return jax.lax.fori_loop(0, count, lambda _, book: open_child(book, parent), book)


def opened(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """Children of `parent` that are opened and not started."""
    return (book.threads.line.parent == parent) & (book.threads.status == OPENED)


def is_outstanding(book: Book) -> Bool[Array, "M"]:
    """All threads of outstanding lines: started and not joined, whether they run, have ended or were killed."""
    threads = book.threads
    started = (threads.status != EMPTY) & (threads.status != OPENED)
    gone = (threads.stop == Stop.SPLIT) | (threads.stop == Stop.DROPPED)
    return started & ~gone & ~threads.bond.joined & (threads.line.parent != NOBODY)


def outstanding(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """All threads of the outstanding lines that `parent` forked; see `is_outstanding`."""
    return is_outstanding(book) & (book.threads.line.parent == parent)


def last_of_lines(book: Book, chosen: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """The last thread of each line among the chosen threads; none for a killed line."""
    stop = book.threads.stop
    return chosen & (stop != Stop.KILLED) & (stop != Stop.CONTINUED)


def lines_of(book: Book, chosen: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """All threads of the lines that the chosen threads belong to."""
    first = book.threads.line.first
    named = tables.collect(first, chosen.astype(jnp.int32), "max") > 0
    return named[first] & (numbers(book) < book.used)


def awaited(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """The last thread of each line that `parent` waits for or is joining; none for a killed line."""
    return last_of_lines(book, (book.threads.line.parent == parent) & book.threads.bond.awaited)


def unfinished(book: Book) -> Bool[Array, "M"]:
    """Threads that were started and have not ended."""
    status = book.threads.status
    return (status == READY) | (status == WAITING) | (status == DECIDING) | (status == ASKING)


def eldest(book: Book, chosen: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """The mask of the child that was opened first among the chosen children of one parent."""
    ordinal = book.threads.line.ordinal
    return chosen & (ordinal == jnp.min(jnp.where(chosen, ordinal, jnp.iinfo(jnp.int32).max)))


def place_among(book: Book, chosen: Bool[Array, "M"]) -> Int[Array, "M"]:
    """The place of each chosen child among the chosen children of one parent, which were opened one after the other; else 0."""
    ordinal = book.threads.line.ordinal
    return jnp.where(chosen, ordinal - jnp.min(jnp.where(chosen, ordinal, jnp.iinfo(jnp.int32).max)), 0)


def by_parent(book: Book, values: Int[Array, "M"]) -> Int[Array, "M"]:
    """For every thread, the sum of its children's values."""
    return tables.collect(book.threads.line.parent, values, "add")


def mates(book: Book, thread: Int[Array, ""]) -> Bool[Array, "M"]:
    """The threads of all other lines in the live group of `thread`."""
    threads = book.threads
    same = (threads.pace.group == threads.pace.group[thread]) & (threads.pace.group != NOBODY)
    return same & (threads.line.ordinal != threads.line.ordinal[thread])


def union(rows: UInt32[Array, "M words"], chosen: Bool[Array, "M"]) -> UInt32[Array, "words"]:
    """The union of the chosen rows of a visibility matrix."""
    return jax.lax.reduce(jnp.where(chosen[:, None], rows, jnp.uint32(0)), jnp.uint32(0), jax.lax.bitwise_or, (0,))


def has(row: UInt32[Array, "... words"], number: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether thread `number` is set in a row of the visibility matrix."""
    return ((row[..., number // 32] >> (number % 32).astype(jnp.uint32)) & 1).astype(bool)


def bits(chosen: Bool[Array, "M"], words: int) -> UInt32[Array, "words"]:
    """The row of the visibility matrix in which exactly the chosen threads are set."""
    padded = jnp.pad(chosen, (0, 32 * words - chosen.shape[0])).reshape(words, 32)
    return jnp.sum(jnp.where(padded, jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32), 0), axis=1, dtype=jnp.uint32)


def stream(book: Book, thread: Int[Array, ""], number: Int[Array, ""]) -> UInt32[Array, "2"]:
    """A key for the `number`-th random choice that a handler makes for the line of `thread`.

    The key differs from the keys of the line's draws and children, and does not depend on the schedule.
    """
    return fold(fold(book.threads.line.key[thread], jnp.int32(-1)), number)


def choose(condition: Bool[Array, ""], yes: Book, no: Book) -> Book:
    """`yes` where the condition holds, else `no`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
