"""What the engine asks of a method of parallel reasoning: its contract with a protocol.

A protocol is a frozen dataclass (hashable, static). It is written for one problem and one thread; the loop vmaps it, and applies a
handler only in steps where some problem has that event. Handlers see the book, never keys and values.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apr_jax.decode.book import Book, pytree

Handler = Callable[[Book, Int[Array, ""]], Book]


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a protocol needs of the engine. What it does not need costs nothing.

    Attributes:
        threads: threads that every problem opens at least, the root included; a protocol that may fork needs room for a child.
        live: threads may see others that still run.
        together: 0, or live siblings see each other's tokens of the same clock too, and a fork has so many at most (Hogwild).
        races: an event of one thread may end another, see `apr_jax.decode.races`.
        splits: threads may be cut in two, see `apr_jax.decode.lines.split`.
        recorded: the protocol's own state goes into the transcript.
        arguments: numbers that each problem gives to the protocol (`Problem.arguments`), kept as `book.arguments`.
    """

    threads: int = 1
    live: bool = False
    together: int = 0
    races: bool = False
    splits: bool = False
    recorded: bool = False
    arguments: int = 0

    @property
    def groups(self) -> bool:
        """Whether threads must keep step with others."""
        return self.live or self.races


@pytree
class Drawn:
    """What a thread has just sampled.

    Attributes:
        token: its id.
        logprob: its log-probability under the model, nats.
        behaviour_logprob: the same under the distribution that it was drawn from.
    """

    token: Int[Array, ""]
    logprob: Float[Array, ""]
    behaviour_logprob: Float[Array, ""]


class Protocol(abc.ABC):
    """How a problem begins, which tokens are events, and what each event does; `thread` is the number of the thread concerned.

    Attributes:
        needs: what the engine must be compiled for.
        templates: tokens that messages may quote, one table for all; at least one.
        handlers: what the events of `observe` do, in order.
    """

    needs: Needs = Needs()
    templates: tuple[int, ...] = (0,)
    handlers: tuple[Handler, ...] = ()

    def own_state(self) -> Any:
        """The state that each thread has of its own when it is opened: a tree of small arrays, kept as `book.threads.own`.

        It goes over to the thread that continues a line. What a child takes over from its parent, the protocol writes.
        """
        return ()

    def shared_state(self) -> Any:
        """The state that the threads of a problem share, when it begins: a tree of small arrays, kept as `book.shared`.

        `observe` reads it. Events of one step must commute, so only `joined` and `decided` may write it.
        """
        return ()

    @abc.abstractmethod
    def begin(self, book: Book) -> Book:
        """Open the root in an empty book that holds the prompt, and give it something to feed."""

    @abc.abstractmethod
    def observe(self, shared: Any, own: Any, drawn: Drawn) -> tuple[Any, Int[Array, ""], Int[Array, ""]]:
        """Look at what a thread has drawn, before it is recorded.

        Args:
            shared, own: the problem's state and the thread's.

        Returns:
            The thread's state; the token to go on with, which is recorded as rewritten where it is not the one that was drawn; the
            event that this is, 0 for none, else 1 + the index of its handler.
        """

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """`thread`, which does not sample, has fed all it had."""
        return book

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """All children that `thread` waited for are finished: give it something to feed, or finish it."""
        return book

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """An event of `thread` that was deferred may be acted on. Only asked of protocols that race."""
        return book


def is_one_of(token: Int[Array, ""], words: tuple[int, ...]) -> Int[Array, ""]:
    """1 + the place of the token among the words, 0 if it is none of them: an event by token."""
    match = token == jnp.array(words, jnp.int32)
    return jnp.sum(jnp.where(match, jnp.arange(1, len(words) + 1), 0), dtype=jnp.int32)
