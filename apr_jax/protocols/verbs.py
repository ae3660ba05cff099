"""Operations that protocols share: feed a part of the prompt, send messages of the same pieces for many threads, end threads."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

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


def open_reader(book: Book, drained: Callable[[Book, Int[Array, ""]], Book]) -> Book:
    """Open a root that only reads: it is fed all of the prompt but the last token, which is left to its children.

    Args:
        drained: of the protocol. It is asked at once for a prompt of one token, which leaves the root nothing to be fed.
    """
    root = jnp.int32(0)
    book = feed_prompt(books.open_root(book, samples=False), root, root, book.prompt_length - 1)
    return books.choose(book.prompt_length == 1, drained(book, root), book)


def open_sampler(book: Book) -> Book:
    """Open a root that is fed the prompt and samples."""
    root = jnp.int32(0)
    return feed_prompt(books.open_root(book, samples=True), root, root, book.prompt_length)


def last_of_prompt(book: Book, to: Bool[Array, "M"]) -> Book:
    """Give children of a reader the last token of the prompt."""
    number = books.numbers(book)
    return say(book, number, (books.PROMPT,), number, (number * 0 + book.prompt_length - 1,), (1,), to)


def say(
    book: Book,
    to: Int[Array, "M"],
    kind: tuple[int, ...],
    thread: Int[Array, "..."],
    start: tuple[Int[Array, "M"], ...],
    length: tuple[Int[Array, "M"] | int, ...],
    valid: Bool[Array, "M"] | tuple[Bool[Array, "M"], ...],
    footer: int | tuple[Int[Array, ""] | int, Int[Array, ""] | int] | None = None,
) -> Book:
    """Compose messages to which every valid thread contributes the same few pieces.

    Args:
        to: receiver of each thread's pieces; pieces of one receiver are said in the order in which the threads were opened.
        kind, start, length: one item a piece, see `book.Pieces`.
        thread: whose log the SPAN pieces are taken from.
        valid: which threads contribute, or for each piece which threads contribute it.
        footer: what is said after all pieces, to the one receiver that there is then: the place in the template table of one
            token, or start and length of a phrase there.
    """
    count, size = to.shape[0], len(kind)
    # A child that went on as a new thread keeps its place, whenever it did so.
    order = jnp.argsort(book.threads.line.ordinal, stable=True)

    def flat(items, tail, dtype=jnp.int32):
        items = [jnp.broadcast_to(jnp.asarray(item, dtype), count) for item in items]
        items = jnp.stack(items, axis=1)[order].reshape(-1)
        return items if footer is None else jnp.append(items, jnp.asarray(tail, dtype))

    last = footer if isinstance(footer, tuple) else (footer or 0, 1)
    return messages.compose(
        book,
        to=flat((to,) * size, to[0]),
        kind=flat(kind, books.TEMPLATE),
        thread=flat((thread,) * size, 0),
        start=flat(start, last[0]),
        length=flat(length, last[1]),
        valid=flat(valid if isinstance(valid, tuple) else (valid,) * size, True, bool),
    )


def told(book: Book, to: Bool[Array, "M"], thread: Int[Array, ""], place: Int[Array, "M"]) -> Book:
    """Feed threads what the host said in its reply to `thread`.

    Args:
        place: the message of each.
    """
    reply, number = book.threads.reply, books.numbers(book)
    place = jnp.where(to, place, 0)
    start, length = reply.start[thread, place], reply.length[thread, place]
    return say(book, number, (books.HOST,), number, (start,), (length,), to)


def end(book: Book, mask: Bool[Array, "M"]) -> Book:
    """End all threads that sampled an end token; as a handler: `ForAll(end)`."""
    return ends.close(book, mask, jnp.int32(Stop.END))


def say_last(
    book: Book,
    who: Bool[Array, "M"] | Int[Array, ""],
    start: Int[Array, ""] | int,
    length: Int[Array, ""] | int,
    drop: bool = False,
) -> Book:
    """Feed threads a closing phrase, after which they do not sample: the protocol's `drained` is asked then, and may close them.

    Args:
        who: a mask of threads, or the number of one.
        start, length: the phrase, in the template table; at least one token.
        drop: the token that they sampled last is not fed.
    """
    number, mask = books.numbers(book), book.mask(who)
    book = say(book, number, (books.TEMPLATE,), number, (start,), (length,), mask)
    return book.update(mask, samples=False, unfed=book.threads.drawn.unfed & (not drop))


def hash_on(hash: UInt32[Array, ""], token: Int[Array, ""]) -> UInt32[Array, ""]:
    """The hash of a sequence of tokens that is one token longer; that of none is 0."""
    return (hash * jnp.uint32(31) + token.astype(jnp.uint32) + 1) * jnp.uint32(2654435761)


def part(book: Book, place: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Start and length of a part of the prompt; `place`: index of the part's name in the protocol's `needs.parts`."""
    return book.parts[place, 0], book.parts[place, 1]
