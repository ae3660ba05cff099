"""Operations that protocols share: feed parts of the prompt, send the same pieces for many threads, end threads, rank them."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode import ends, messages
from apr_jax.decode.book import Book
from apr_jax.decode.forks import fork
from apr_jax.record import Stop

# Scores and log-probabilities are summed in whole units of 1 / UNITS: what is equal ties, in whatever rows it was computed.
UNITS = 1024


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
    return open_reader_to(book, book.prompt_length - 1, drained)


def open_reader_to(book: Book, end: Int[Array, ""], drained: Callable[[Book, Int[Array, ""]], Book]) -> Book:
    """Open a root that only reads: it is fed the first `end` tokens of the prompt; if that is none, `drained` is asked at once."""
    root = jnp.int32(0)
    book = feed_prompt(books.open_root(book, samples=False), root, root, end)
    return books.choose(end == 0, drained(book, root), book)


def open_sampler(book: Book) -> Book:
    """Open a root that is fed the prompt and samples."""
    root = jnp.int32(0)
    return feed_prompt(books.open_root(book, samples=True), root, root, book.prompt_length)


def last_of_prompt(book: Book, to: Bool[Array, "M"]) -> Book:
    """Give children of a reader the last token of the prompt."""
    number = books.numbers(book)
    return say(book, number, (books.PROMPT,), number, (number * 0 + book.prompt_length - 1,), (1,), to)


def launch(book: Book, thread: Int[Array, ""], count: Int[Array, ""] | int, **columns: Int[Array, ""]) -> Book:
    """Fork so many samples from a reader; `columns`: see `fork`."""
    book = books.open_children(book, thread, count)
    born = books.opened(book, thread)
    return fork(last_of_prompt(book, born), thread, born, context=thread, **columns)


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


def prune(book: Book, mask: Bool[Array, "M"]) -> Book:
    """End all threads that their method gives up; as a handler: `ForAll(prune)`."""
    return ends.close(book, mask, jnp.int32(Stop.PRUNED))


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


def in_units(value: Float[Array, "..."]) -> Int[Array, "..."]:
    """A number in whole units of 1 / UNITS."""
    return jnp.round(value * UNITS).astype(jnp.int32)


def mean(units: Int[Array, "..."], count: Int[Array, "..."]) -> Float[Array, "..."]:
    """The mean of `count` numbers whose sum is given in units; 0 if there are none. The same in all rows: one division in f32."""
    return units.astype(jnp.float32) / (UNITS * jnp.maximum(count, 1)).astype(jnp.float32)


def ranks(
    among: Bool[Array, "M"], merit: Float[Array, "M"], ordinal: Int[Array, "M"], tree: Int[Array, "M"] | None = None
) -> Int[Array, "M"]:
    """For each thread how many of the others, of its tree if there are trees, come before it: by merit, then by path."""
    before = (merit > merit[:, None]) | ((merit == merit[:, None]) & (ordinal < ordinal[:, None]))
    if tree is not None:
        before &= tree == tree[:, None]
    return jnp.sum(before & among, axis=1, dtype=jnp.int32)


def leading(votes: Bool[Array, "M"], hash: UInt32[Array, "M"]) -> tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """The vote of the masked threads: the first of those that vote for the leader, how many do, and how many do for the second.

    Args:
        hash: of what each votes for.
    """
    same = votes[:, None] & votes & (hash[:, None] == hash)
    count = jnp.sum(same, axis=1)
    leader = jnp.argmax(count).astype(jnp.int32)
    return leader, count[leader], jnp.max(jnp.where(same[leader], 0, count))


def end_of_part(book: Book, place: int) -> Int[Array, ""]:
    """Where a part of the prompt ends, or the last token of the prompt stands if that comes first."""
    return jnp.minimum(jnp.sum(book.parts[place]), book.prompt_length - 1)


def part(book: Book, place: int) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Start and length of a part of the prompt; `place`: index of the part's name in the protocol's `needs.parts`."""
    return book.parts[place, 0], book.parts[place, 1]


def in_order(book: Book, chosen: Bool[Array, "M"]) -> Int[Array, "M"]:
    """The numbers of the chosen children of one parent in the order of their paths, then those of others."""
    ordinal = jnp.where(chosen, book.threads.line.ordinal, jnp.iinfo(jnp.int32).max)
    return jnp.argsort(ordinal, stable=True).astype(jnp.int32)
