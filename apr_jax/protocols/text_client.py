"""Threads whose text a client in Python reads and writes anew, as with a text API (APR: Pan et al. 2025, arXiv 2504.15466).

1. A thread samples up to its end token. The root asks the host then if it wrote the word `call`; all other threads just end.
2. A thread that writes the word `guard` asks at once: the published client stops there.
3. The host lets the thread end, fork isolated children, each from a prompt of its own, or go on from another text.
4. When all children have ended, their parent asks again, and the host sees what they wrote.
5. What a thread goes on from is encoded as a whole, as a client does that sends a new request. Of the tokens that the thread wrote
   those stay that the new text begins with (the published server keeps them in its cache); the rest are forgotten, and the others
   fed. Positions run from 0 without gaps, and the budget begins anew.

Where a trap lies: the end token is part of no text, and is never fed; a thread that is cut by its budget may have asked, too.
"""

import dataclasses
import enum
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines, replies
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Asks, Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.decode.recogniser import Found, Recogniser
from apr_jax.protocols import verbs
from apr_jax.record import Stop


class Action(enum.IntEnum):
    """What the host says; `values[0]` is a breach of the format, or how many tokens of the thread stay."""

    END = 0
    MALFORMED = 1
    LENGTH = 2
    FORK = 3  # a child for each message
    GO_ON = 4  # with one message


class Why(enum.IntEnum):
    """Why a thread asked."""

    NOTHING = 0
    ENDED = 1
    GUARD = 2
    JOINED = 3


STOPS = (Stop.END, Stop.MALFORMED, Stop.LENGTH)


@pytree
class Written:
    """What a thread remembers.

    Attributes:
        found: how far the recogniser has come in what it sampled since it was fed last.
        called: it has sampled the word `call` since its last join.
        depth: forks above it.
        why: for what it asked last.
        breach: what broke the format, a number of the host; 0 if nothing did.
    """

    found: Found
    called: Bool[Array, ""]
    depth: Int[Array, ""]
    why: Int[Array, ""]
    breach: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class TextClient(Protocol):
    """The words, and the limits.

    Attributes:
        recogniser: of the phrases `guard` and `call`.
        end: id of the token that ends a text.
        most: children of one fork.
        context: tokens of a thread, prompt included; 0: only the budgets of the problem bound it.
    """

    recogniser: Recogniser
    end: int
    most: int = 16
    context: int = 0

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"text_client.most is {self.most}; at least 1 child of a fork is needed")
        if self.context < 0:
            raise ValueError(f"text_client.context is {self.context}; it must be 0 (no limit) or more")
        for name in ("guard", "call"):
            self.recogniser.event(name)

    @property
    def needs(self) -> Needs:
        return Needs(splits=True, asks=Asks(messages=self.most, values=1), recorded=True)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(self._end), ForAll(self._guard))

    def own_state(self) -> Written:
        zero = jnp.int32(0)
        return Written(self.recogniser.start(), jnp.bool(False), zero, zero, zero)

    def fresh(self, shared: Any, parent: Written) -> Written:
        return dataclasses.replace(self.own_state(), depth=parent.depth + 1)

    def begin(self, book: Book) -> Book:
        book = verbs.open_sampler(book)
        return book.update(jnp.int32(0), budget=self._budget(book.request.max_tokens, book.prompt_length))

    def observe(self, shared: Any, own: Written, drawn: Drawn) -> tuple[Written, Int[Array, ""], Int[Array, ""]]:
        found, met = self.recogniser.step(own.found, drawn.token)
        own = dataclasses.replace(own, found=found, called=own.called | (met == self.recogniser.event("call")))
        event = jnp.where(met == self.recogniser.event("guard"), 2, 0)
        return own, drawn.token, jnp.where(drawn.token == self.end, 1, event)

    def spent(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        return self._ended(book, mask, Stop.LENGTH)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return self._ask(book, book.mask(thread), Why.JOINED)

    def replied(self, book: Book, thread: Int[Array, ""]) -> Book:
        reply = book.thread(thread).reply
        value = reply.values[0].astype(jnp.int32)
        breach = jnp.where(reply.action == Action.MALFORMED, value, 0)
        stop = jnp.array(STOPS, jnp.int32)[jnp.minimum(reply.action, len(STOPS) - 1)]
        ended = ends.close(book.update_own(book.mask(thread), breach=breach), thread, stop)
        going = books.choose(reply.action == Action.FORK, self._fork(book, thread), self._go_on(book, thread, value))
        return books.choose(reply.action < len(STOPS), ended, going)

    def _end(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        return self._ended(book, mask, Stop.END)

    def _guard(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        return self._ask(book, mask, Why.GUARD)

    def _ended(self, book: Book, mask: Bool[Array, "M"], stop: Stop) -> Book:
        own = book.threads.own
        calls = mask & own.called & (own.depth == 0)
        return self._ask(ends.close(book, mask & ~calls, jnp.int32(stop)), calls, Why.ENDED)

    def _ask(self, book: Book, mask: Bool[Array, "M"], why: Why) -> Book:
        return replies.ask(book.update_own(mask, why=int(why)), mask)

    def _fork(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Open a child for each message."""
        book = books.open_children(book, thread, book.threads.reply.messages[thread])
        born = books.opened(book, thread)
        place = books.place_among(book, born)
        length = book.threads.reply.length[thread, place]
        book = verbs.told(book, born, thread, place)
        return fork(book, thread, born, budget=self._budget(book.threads.sampling.budget, length))

    def _go_on(self, book: Book, thread: Int[Array, ""], stays: Int[Array, ""]) -> Book:
        """Go on after the tokens that stay, of this thread and of those that it sees, or, if none of its own do, anew."""
        zero, at = jnp.int32(0), book.threads.cursor
        position = at.position[thread] - at.fed[thread] + stays
        cut = lines.split(book, thread, jnp.maximum(stays, 1), book.sees[thread], position)
        anew = lines.go_on(book, thread, jnp.zeros_like(book.sees[thread]), zero)
        book = books.choose(stays > 0, cut, anew)
        new, fed = lines.successor(book, thread), book.threads.reply.length[thread, 0]
        mine = book.mask(new)
        length = jnp.where(stays > 0, position, 0) + fed
        child = book.threads.own.depth[thread] > 0
        limit = jnp.where(
            child & (book.request.child_max_tokens > 0), book.request.child_max_tokens, book.request.max_tokens
        )
        budget = at.generated[thread] + self._budget(limit, length)
        own = book.threads.own
        own = dataclasses.replace(own, found=self.recogniser.start(), called=own.called & (own.why != Why.JOINED))
        return verbs.told(book.update(mine, budget=budget, own=own), mine, thread, jnp.zeros_like(at.fed))

    def _budget(self, limit: Int[Array, "..."], length: Int[Array, "..."]) -> Int[Array, "..."]:
        """Tokens that may be sampled after a text of so many."""
        return jnp.minimum(limit, jnp.maximum(self.context - length, 1)) if self.context else limit
