"""What the engine asks of a method of parallel reasoning: its contract with a protocol.

A protocol is a frozen dataclass (hashable, static). It is written for one problem and one thread; the loop vmaps it, and applies a
handler only in steps where some problem has that event. Handlers see the book, never keys and values.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import ends
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.needs import Needs
from apr_jax.record import Stop


@dataclasses.dataclass(frozen=True)
class ForAll:
    """A handler that is given all threads at once that have the event in a step, as a mask."""

    apply: Callable[[Book, Bool[Array, "M"]], Book]

    def __call__(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        return self.apply(book, mask)


Handler = Callable[[Book, Int[Array, ""]], Book] | ForAll


@pytree
class Drawn:
    """What a thread has just sampled.

    Attributes:
        token: its id.
        logprob: its log-probability under the model, nats.
        behaviour_logprob: the same under the distribution that it was drawn from.
        signals: those that the protocol needs, of the row that it was drawn from.
    """

    token: Int[Array, ""]
    logprob: Float[Array, ""]
    behaviour_logprob: Float[Array, ""]
    signals: Float[Array, "n"]


class Protocol(abc.ABC):
    """How a problem begins, which tokens are events, and what each event does; `thread` is the number of the thread concerned.

    Attributes:
        needs: what the engine must be compiled for.
        templates: tokens that messages may quote, one table for all; at least one.
        handlers: what the events of `observe` do, in order. Each may write its own thread and children of it that have not started,
            so that the events of one step commute.
    """

    needs: Needs = Needs()
    templates: tuple[int, ...] = (0,)
    handlers: tuple[Handler, ...] = ()

    def own_state(self) -> Any:
        """The state that the root has of its own when it is opened: a tree of small arrays, kept as `book.threads.own`.

        It goes over to the thread that continues a line.
        """
        return ()

    def fresh(self, shared: Any, parent: Any) -> Any:
        """The state of its own that a child begins with, from the problem's and its parent's: by default that of a root."""
        return self.own_state()

    def shared_state(self) -> Any:
        """The state that the threads of a problem share, when it begins: a tree of small arrays, kept as `book.shared`.

        `observe` reads it. Events of one step must commute, so only `joined` and `decided` may write it.
        """
        return ()

    def bulk_state(self) -> Any:
        """What is kept of every line outside the book, because handlers should not copy it: a tree of arrays of any size.

        The threads of a line share it. It is not cleared: a new line finds what an earlier one left there, and must tell by its own
        state (a count, say) how much of it is its own.
        """
        return ()

    def watch(self, bulk: Any, own: Any, drawn: "Drawn") -> tuple[Any, Any]:
        """Bring the line's bulk state, and with it the thread's own, up to date with what was drawn; before `observe`."""
        return bulk, own

    def adjust(self, shared: Any, own: Any, bulk: Any, logits: Float[Array, "V"]) -> Float[Array, "V"]:
        """The logits that a thread draws its next token from, -inf for a token that is banned; see `Needs.adjusts`.

        Log-probabilities under the model stay those of `logits`. A thread that may draw nothing ends its problem with NOT_FINITE.

        Args:
            shared, own, bulk: the state of the problem, of the thread and of its line.
        """
        return logits

    def scored(self, own: Any) -> Bool[Array, ""]:
        """Whether the message of a thread is scored: it is fed one token a step then, however long; see `Needs.scores`."""
        return jnp.bool(False)

    def score(self, own: Any, token: Int[Array, ""], logprob: Float[Array, ""]) -> Any:
        """The state of its own of a scored thread, of whose message `token` comes next and has that log-probability (nats).

        The first token of a message has one only if a handed or an unfed token comes before it.
        """
        return own

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

    def spent(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        """Threads that could sample have used up their budgets: end them, or give them something to feed before their end."""
        return ends.close(book, mask, jnp.int32(Stop.LENGTH))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """All lines that `thread` waited for (`books.awaited`) have ended: give it something to feed, or close it."""
        return book

    def suffices(self, book: Book, thread: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether the ends so far, that of `thread` the last, decide its race; asked by clock, in races with `enough`."""
        return jnp.bool(False)

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """An event of `thread` that was deferred may be acted on. Only asked of protocols that race."""
        return book


def is_one_of(token: Int[Array, ""], words: tuple[int, ...]) -> Int[Array, ""]:
    """1 + the place of the token among the words, 0 if it is none of them: an event by token."""
    match = token == jnp.array(words, jnp.int32)
    return jnp.sum(jnp.where(match, jnp.arange(1, len(words) + 1), 0), dtype=jnp.int32)
