"""What protocols say in the same way: a stretch of the prompt, messages of the same pieces for many threads, an end."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import messages
from apr_jax.decode.book import Book
from apr_jax.record import Stop


def feed_prompt(book: Book, thread: Int[Array, ""], start: Int[Array, ""], length: Int[Array, ""]) -> Book:
    """Give a thread a stretch of the prompt."""
    one = jnp.ones(1, jnp.int32)
    return messages.compose(
        book, one * thread, one * books.PROMPT, one * 0, one * start, one * length, jnp.ones(1, bool)
    )


def say(
    book: Book,
    to: Int[Array, "M"],
    kind: tuple[int, ...],
    thread: Int[Array, "..."],
    start: tuple[Int[Array, "M"], ...],
    length: tuple[Int[Array, "M"] | int, ...],
    valid: Bool[Array, "M"],
    footer: int | None = None,
) -> Book:
    """Compose messages of which every valid thread of the table contributes the same few pieces.

    Args:
        to: receiver of each thread's pieces; pieces of one receiver are said in the order in which the threads were opened.
        kind, start, length: one item a piece, see `book.Pieces`.
        thread: whose log the SPAN pieces are taken from.
        valid: which threads contribute.
        footer: place in the template table of one last token, said after all pieces (to the one receiver there is then).
    """
    count = to.shape[0]
    # A child that went on as a new thread keeps its place, whenever it did so.
    order = jnp.argsort(book.threads.line.ordinal, stable=True)

    def flat(items, tail):
        items = jnp.stack([jnp.broadcast_to(jnp.asarray(item, jnp.int32), count) for item in items], axis=1)[
            order
        ].reshape(-1)
        return items if footer is None else jnp.append(items, jnp.int32(tail))

    size = len(kind)
    valid_pieces = jnp.repeat(valid[order], size)
    if footer is not None:
        valid_pieces = jnp.append(valid_pieces, True)
    return messages.compose(
        book,
        to=flat((to,) * size, 0) if footer is None else flat((to,) * size, 0).at[-1].set(to[0]),
        kind=flat(kind, books.TEMPLATE),
        thread=flat((thread,) * size, 0),
        start=flat(start, footer or 0),
        length=flat(length, 1),
        valid=valid_pieces,
    )


def end(book: Book, thread: Int[Array, ""]) -> Book:
    """Handler of an end token."""
    return books.close(book, thread, jnp.int32(Stop.END))
