"""Forks: children are opened, get a message, and are started; their parent waits for some of them, or for none.

A started child is outstanding until its parent joins it. A join takes clock, count, message and visibility from the lines that the
parent waited for. Other lines, running or ended, do not affect the join. A line that ends waits for all its outstanding children.

A thread that an outstanding child sees does not write: its line continues as a new thread. Whether the child has ended does not
matter, because that would depend on the schedule. All functions are written for one problem. Axes: M threads.
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
    """Start children that `thread` has opened; their clocks are after the row that sampled the fork.

    Args:
        born: mask of the children. Each child needs a token to feed: a message or a handed token.
        context: the thread that each child continues: the child sees this thread and all that this thread sees. Allowed are
            `thread` itself and ended threads that are held. A child without a context (NOBODY, the default) sees only itself.
        position: position of each child's first token; by default the one after the context's last, 0 without a context.
        hand: children whose first token is a copy of the unfed token of their context, or of `thread` without a context.
        live: the children see each other.
        waits: children that `thread` waits for; the others run beside it. If `thread` waits for none and they see it, its line
            continues as a new thread (`lines.successor`), which is handed the unfed token.
        columns: further columns of the children (`budget`, `temperature`, `flushes`, `held`, `branch` ...), broadcast over them.

    Raises:
        ValueError: the fork uses `live`, `beside` or `branch`, and the protocol's `needs` lack it.
    """
    _require(book, live, waits, "branch" in columns)
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
    """Let `thread` wait for the outstanding lines of the chosen threads; the join follows when all of them have ended."""
    return book.update(books.lines_of(book, chosen), awaited=True).update(thread, status=WAITING)


def _require(book: Book, live: bool, waits: Bool[Array, "M"] | bool, branch: bool) -> None:
    needs = book.protocol.needs
    if branch and not needs.branches:
        raise ValueError(
            f"fork: branch is given; {type(book.protocol).__name__}.needs.branches is 0, say what the largest is"
        )
    if live and not needs.live:
        raise ValueError(
            f"fork: live is True; {type(book.protocol).__name__}.needs.live is False, say that it is needed"
        )
    if waits is not True and not needs.beside:
        raise ValueError(
            f"fork: waits is not True; {type(book.protocol).__name__}.needs.beside is False, say that it is needed"
        )


def _rows(book: Book, context: Int[Array, "*M"] | None) -> UInt32[Array, "*M words"]:
    """Visibility rows of contexts, without the live siblings of an ended context, because these may still write."""
    if context is None:
        return jnp.zeros_like(book.sees[0])
    if not book.protocol.needs.live or context.ndim == 0:  # a scalar context is the forking thread, which is not live
        return book.sees[context]
    words = book.sees.shape[1]
    return book.sees[context] & ~jax.vmap(lambda thread: books.bits(books.mates(book, thread), words))(context)
