"""The contract between the engine and a protocol, which implements a method of parallel reasoning.

A protocol is a frozen dataclass (hashable, static). Its functions are written for one problem and one thread. The loop vmaps them,
and applies a handler only after steps in which some problem has its event. Handlers see the book, never keys and values.
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
    """A handler that takes the mask of all threads with the event, instead of one thread at a time."""

    apply: Callable[[Book, Bool[Array, "M"]], Book]

    def __call__(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        return self.apply(book, mask)


Handler = Callable[[Book, Int[Array, ""]], Book] | ForAll


@pytree
class Drawn:
    """The token that a thread has just sampled.

    Attributes:
        token: token id.
        logprob: log-probability of the token under the model, nats.
        behaviour_logprob: the same under the distribution that the token was drawn from (temperature, truncation).
        signals: the signals in `needs.signals`, of the row that the token was drawn from.
    """

    token: Int[Array, ""]
    logprob: Float[Array, ""]
    behaviour_logprob: Float[Array, ""]
    signals: Float[Array, "n"]


class Protocol(abc.ABC):
    """Defines how a problem begins, which tokens are events, and what each event does. Arguments `thread` are thread numbers.

    Attributes:
        needs: features that the engine must be compiled for.
        templates: one table of the tokens that messages may quote; at least one token.
        handlers: one handler for each event of `observe`, in order. A handler may change only its own thread and this thread's
            unstarted children, so that the events of one step commute.
    """

    needs: Needs = Needs()
    templates: tuple[int, ...] = (0,)
    handlers: tuple[Handler, ...] = ()

    def own_state(self) -> Any:
        """The protocol's state of a root thread: a tree of small arrays, kept as `book.threads.own`.

        A thread that continues a line takes over the state of the line.
        """
        return ()

    def fresh(self, shared: Any, parent: Any) -> Any:
        """The first state of a child, from the shared state and the parent's state; by default that of a root."""
        return self.own_state()

    def shared_state(self) -> Any:
        """The first value of the state that all threads of a problem share: a tree of small arrays, kept as `book.shared`.

        `observe` reads the shared state. Events of one step must commute, so only `joined` and `decided` may write it.
        """
        return ()

    def bulk_state(self) -> Any:
        """The bulk state of one line: a tree of arrays of any size, kept outside the book so that handlers do not copy it.

        The threads of a line share their bulk state. It is never cleared: a new line finds the values of an earlier line, and
        must know from its own state (from a count, for example) which values are its own.
        """
        return ()

    def watch(self, bulk: Any, own: Any, drawn: "Drawn") -> tuple[Any, Any]:
        """Update the bulk state of the line and the state of the thread with the drawn token; called before `observe`."""
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
        """Open the root in an empty book that holds the prompt, and give the root a message to feed."""

    @abc.abstractmethod
    def observe(self, shared: Any, own: Any, drawn: Drawn) -> tuple[Any, Int[Array, ""], Int[Array, ""]]:
        """Look at the token that a thread has drawn, before it is recorded.

        Args:
            shared, own: the state of the problem and the state of the thread.

        Returns:
            The new state of the thread; the token to continue with, recorded as rewritten if it is not the drawn one; the number
            of the event, 0 for none, else 1 + the index of its handler.
        """

    def offsets(self, book: Book, fed: Int[Array, "M"]) -> Int[Array, "M M"]:
        """Where each thread (second axis) begins in the view of each thread (first axis): positions; see `Needs.views`.

        Asked in every step. Only differences within a row matter: between the thread itself and those that it sees.

        Args:
            fed: tokens that each thread has been fed, those of this step included.
        """
        return jnp.zeros((fed.shape[0], fed.shape[0]), jnp.int32)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Handle the event that `thread`, which does not sample, has fed all its tokens."""
        return book

    def spent(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        """Threads that could sample have used up their budgets: end them, or give them something to feed before their end."""
        return ends.close(book, mask, jnp.int32(Stop.LENGTH))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Handle the end of all lines that `thread` waited for (`books.awaited`): give `thread` a message, or close it."""
        return book

    def replied(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Handle the host's reply to `thread` (`book.threads.reply`), which asked (`replies.ask`) and is ready again.

        Give `thread` a message, fork, end it, or let it sample on; see `Needs.asks`.
        """
        return book

    def suffices(self, book: Book, thread: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether the ends so far, the last of them that of `thread`, decide the race; asked by clock, in races with `enough`."""
        return jnp.bool(False)

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Handle a deferred event of `thread` at its turn by clock. Only called for protocols with `needs.races`."""
        return book


def is_one_of(token: Int[Array, ""], words: tuple[int, ...]) -> Int[Array, ""]:
    """The event number of a token: 1 + its index in `words`, 0 if it is not among them."""
    match = token == jnp.array(words, jnp.int32)
    return jnp.sum(jnp.where(match, jnp.arange(1, len(words) + 1), 0), dtype=jnp.int32)
