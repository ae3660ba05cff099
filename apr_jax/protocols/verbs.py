"""Operations that protocols share: feed a part of the prompt, send messages of the same pieces for many threads, end threads."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, messages
from apr_jax.decode.book import Book
from apr_jax.record import Stop


def feed_prompt(book: Book, thread: Int[Array, ""], start: Int[Array, ""], length: Int[Array, ""]) -> Book:
    """Make the prompt tokens from `start` on, `length` of them, the message of a thread."""
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
    """Compose messages to which every valid thread contributes the same few pieces.

    Args:
        to: receiver of each thread's pieces; pieces to one receiver stand in the order in which their threads were opened.
        kind, start, length: parallel tuples, one item per piece, see `book.Pieces`.
        thread: the thread whose log the SPAN pieces quote, [] or [M].
        valid: the threads that contribute.
        footer: index in the template table of one last token after all pieces; only with a single receiver.
    """
    count = to.shape[0]
    # Sorted by ordinal: a child that continued as a new thread keeps its place, whenever that happened.
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


def end(book: Book, mask: Bool[Array, "M"]) -> Book:
    """End all threads that sampled an end token; as a handler: `ForAll(end)`."""
    return ends.close(book, mask, jnp.int32(Stop.END))


def say_last(book: Book, thread: Int[Array, ""], start: int, length: int, drop: bool = False) -> Book:
    """Feed a thread a closing phrase; the thread then does not sample, and the protocol's `drained` is called, which may close it.

    Args:
        start, length: range of the phrase in the template table; at least one token.
        drop: the thread's last sampled token is not fed.
    """
    number = books.numbers(book)
    book = say(book, number, (books.TEMPLATE,), thread, (number * 0 + start,), (length,), number == thread)
    return book.update(thread, samples=False, unfed=book.threads.drawn.unfed & (not drop))


def part(book: Book, place: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Start and length of a part of the prompt; `place`: index of the part's name in the protocol's `needs.parts`."""
    return book.parts[place, 0], book.parts[place, 1]
