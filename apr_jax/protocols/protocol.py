"""The interface of a method of parallel reasoning: how a problem begins, and the handlers of its events.

A protocol is a frozen dataclass (hashable, static). It is written for one problem; the loop vmaps it, and applies a handler only
in steps where some problem has that event. Handlers see the book, never keys and values. Axes: B sampled tokens.
"""

from collections.abc import Callable
from typing import Protocol as Interface

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import messages
from apr_jax.decode.book import Book
from apr_jax.decode.transcript import Stop

Handler = Callable[[Book, Int[Array, ""]], Book]


class Protocol(Interface):
    """The methods that the loop calls; `thread` is always the number of the thread concerned."""

    threads: int
    """Threads that a problem opens at least, the root included; one that may fork needs room for a child."""

    live: bool
    """Whether threads may see others that still run."""

    together: int
    """0, or live siblings see each other's tokens of the same clock too, and a fork has so many at most (Hogwild)."""

    races: bool
    """Whether an event of one thread may end another, see `apr_jax.decode.races`."""

    splits: bool
    """Whether threads may be cut in two, see `apr_jax.decode.lines.split`."""

    @property
    def templates(self) -> tuple[int, ...]:
        """Tokens that messages may quote, one table for all; at least one."""

    def begin(self, book: Book, temperature: Float[Array, ""], top_k: Int[Array, ""], top_p: Float[Array, ""]) -> Book:
        """Open the root in an empty book that holds the prompt, and give it something to feed."""

    def event(self, token: Int[Array, "B"]) -> Int[Array, "B"]:
        """The event that sampling each token is: 0 for none, else 1 + the index of its handler."""

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """What the events of `event` do."""

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """`thread`, which does not sample, has fed all it had."""

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """All children that `thread` waited for are finished: give it something to feed, or finish it."""

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """An event of `thread` that was deferred may be acted on. Only asked of protocols that race."""


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
    order = jnp.argsort(book.threads.ordinal, stable=True)

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
