"""Forks: children are opened, given something to feed, and started; their parent waits for some of them, or for none.

A child that was started is outstanding until its parent joins it. What a join takes - clock, count, message, sight - it takes of
the lines that the parent waited for; the others run on beside it, or have ended, and make no difference. A line that ends waits for
all that are outstanding.

A thread that an outstanding child sees does not write: its line goes on as a new thread. Whether the child has ended makes no
difference either, because that would depend on the schedule. Everything is written for one problem. Axes: M threads.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode import lines
from apr_jax.decode.book import Book
from apr_jax.decode.threads import NOBODY, READY, WAITING


def fork(
    book: Book,
    thread: Int[Array, ""],
    born: Bool[Array, "M"],
    *,
    context: Int[Array, ""] | Int[Array, "M"] | None = None,
    position: Int[Array, "M"] | None = None,
    hand: Bool[Array, "*M"] | bool = False,
    live: bool = False,
    waits: Bool[Array, "M"] | bool = True,
    **columns: Array | int | float | bool,
) -> Book:
    """Start children that `thread` has opened; they are later than the row that sampled the fork.

    Args:
        born: the children. Each must have something to feed: a message, or a token that it is handed.
        context: the thread that each goes on from: it sees what that sees, and that. `thread` itself, or one that has ended and is
            held; by default, and where it is NOBODY, the child sees itself alone.
        position: of the first token of each; by default the one after the context's last, 0 without a context.
        hand: whose first token is the unfed one of its context, or of `thread` where it has none.
        live: the children see each other.
        waits: which of them `thread` waits for; the others run beside it. If it waits for none it goes on, as a new thread of its
            line (`lines.successor`) where they see it: that one is handed its unfed token.
        columns: further columns of the children (`budget`, `temperature`, `flushes`, `held`, `own` ...), broadcast over them.

    Raises:
        ValueError: the protocol does not say that it needs `live` or `beside`.
    """
    _require(book, live, waits)
    threads, number, goes_on = book.threads, books.numbers(book), waits is not True
    rows = _rows(book, context)
    context = jnp.int32(NOBODY) if context is None else context
    shares, source = context != NOBODY, jnp.where(context == NOBODY, thread, context)
    cursor, waits = threads.cursor, born & waits
    first = jnp.argmax(books.eldest(book, born)).astype(jnp.int32)
    scope = threads.pace.scope[thread]
    started = dict(
        status=READY,
        clock=jnp.maximum(cursor.clock[thread], cursor.clock[source]),
        critical_path=jnp.maximum(cursor.critical_path[thread], cursor.critical_path[source]),
        position=jnp.where(shares, cursor.position[source], 0) if position is None else position,
        follows=jnp.where(shares & (context != thread), context, NOBODY),
        handed=jnp.asarray(hand) & threads.drawn.unfed[source],
        token=threads.drawn.token[source],
        awaited=waits,
        beside=~waits,
        scope=jnp.where(live & (scope == NOBODY), first, scope),
    )
    started |= dict(group=first) if live else {}
    rows = book.sees | jnp.broadcast_to(jnp.where(shares[..., None], rows, 0), book.sees.shape)
    rows = rows | books.bits(born, book.sees.shape[1]) if live else rows
    book = book.update(born, **started, **columns)
    book = book.replace(sees=jnp.where(born[:, None], rows, book.sees))
    book = book.update((number == thread) & jnp.any(waits), status=WAITING)
    if not goes_on:
        return book
    looked_at = jnp.any(born & books.has(book.sees, thread)) & ~jnp.any(waits)
    return books.choose(
        looked_at, lines.go_on(book, thread, book.sees[thread], cursor.position[thread], hand=True), book
    )


def wait_for(book: Book, thread: Int[Array, ""], chosen: Bool[Array, "M"]) -> Book:
    """Let `thread` wait for the lines of the chosen threads, which must be outstanding; the join follows when all have ended."""
    return book.update(books.lines_of(book, chosen), awaited=True).update(thread, status=WAITING)


def _require(book: Book, live: bool, waits: Bool[Array, "M"] | bool) -> None:
    needs = book.protocol.needs
    if live and not needs.live:
        raise ValueError(
            f"fork: live is True; {type(book.protocol).__name__}.needs.live is False, say that it is needed"
        )
    if waits is not True and not needs.beside:
        raise ValueError(
            f"fork: waits is not True; {type(book.protocol).__name__}.needs.beside is False, say that it is needed"
        )


def _rows(book: Book, context: Int[Array, "*M"] | None) -> UInt32[Array, "*M words"]:
    """What contexts see; of those that have ended not the lines that they were live with, which may write on."""
    if context is None:
        return jnp.zeros_like(book.sees[0])
    if not book.protocol.needs.live or context.ndim == 0:  # the forking thread's own, which is not live
        return book.sees[context]
    words = book.sees.shape[1]
    return book.sees[context] & ~jax.vmap(lambda thread: books.bits(books.mates(book, thread), words))(context)
