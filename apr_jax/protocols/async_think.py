"""Forks and joins by name, of workers that run beside their organizer (AsyncThink, "The Era of Agentic Organization", 2025).

    the organizer samples   ... <FORK-1> q1 </FORK-1> ... <FORK-2> q2 </FORK-2> ... <JOIN-1>
    and is fed                                                                           r1 </JOIN-1>     and samples on
    worker 1 is fed         its prompt with q1          and samples ... <RETURN> r1 </RETURN>

1. `</FORK-i>` starts worker i on a prompt that holds the sub-query and nothing else; the organizer writes on.
2. `<JOIN-i>` waits for worker i, if it still runs, and inserts what stands between its `<RETURN>` tags; a worker that broke off
   returns nothing.
3. A pool of c agents, the organizer included: forks that are not joined count, ended or not, so that no count depends on the
   schedule. A fork beyond the pool ends the organizer as MALFORMED.
4. Each number names one fork of an organizer. A number that comes twice, a join of what was not forked, tags that do not match, a
   word inside a sub-query or a return, an empty sub-query, and an end inside of any, or before the return, are MALFORMED.
5. Words of the other role are text. The published workers do not fork; with `max_depth` above 1 they organize workers of their own.

An organizer that ends without having joined all its workers waits for them, as every line does, and nobody reads their returns.
Neither client nor code is published: rule 4, and the return of a worker that broke off, are choices.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork, wait_for
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol, is_one_of
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop

# What became of a number.
_UNUSED, _FORKED, _JOINED = range(3)


@pytree
class Agent:
    """What a thread remembers.

    Attributes:
        depth: forks above it.
        number: of the fork that it is the worker of, from 0; -1 for the root.
        named: the number in its last word; one more than the largest for `<RETURN>`.
        writes: it writes a sub-query or a return.
        count: tokens of that so far, or of the last one.
        uses: Int [numbers]; what became of each number.
        ending: a `Stop`, set when it is to end.
    """

    depth: Int[Array, ""]
    number: Int[Array, ""]
    named: Int[Array, ""]
    writes: Bool[Array, ""]
    count: Int[Array, ""]
    uses: Int[Array, "numbers"]
    ending: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class AsyncThink(Protocol):
    """Token ids of the control words, by number where they have one, and the choices of the method.

    Attributes:
        forks, fork_ends, joins: `<FORK-i>`, `</FORK-i>`, `<JOIN-i>`.
        returns, return_end: `<RETURN>`, `</RETURN>`.
        end: ends the organizer.
        phrases: `worker` and `asks`, what a worker is fed before and after its sub-query; `joined` of each number, what the
            organizer is fed after a return.
        agents: the pool.
        max_depth: nesting of workers.
    """

    forks: tuple[int, ...]
    fork_ends: tuple[int, ...]
    joins: tuple[int, ...]
    returns: int
    return_end: int
    end: int
    phrases: Phrases
    agents: int = 4
    max_depth: int = 1

    def __post_init__(self):
        if not self.forks or not len(self.forks) == len(self.fork_ends) == len(self.joins):
            counts = ", ".join(str(len(words)) for words in (self.forks, self.fork_ends, self.joins))
            raise ValueError(
                f"async_think: {counts} words of forks, their ends and joins; each number needs one of each"
            )
        for name, least in (("agents", 2), ("max_depth", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"async_think.{name} is {getattr(self, name)}; at least {least} is needed")
        words = (*self.forks, *self.fork_ends, *self.joins, self.returns, self.return_end, self.end)
        if len(set(words)) != len(words):
            raise ValueError(f"async_think: control words must be different tokens, got ids {list(words)}")
        missing = [name for name in ("worker", "asks", "joined") if name not in self.phrases.names]
        if missing:
            raise ValueError(f"async_think.phrases lack {', '.join(missing)}")

    @property
    def needs(self) -> Needs:
        return Needs(threads=2, beside=True, pieces=5)  # three for a worker's prompt, two for its join

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(self._stop), self._fork, self._join)

    def own_state(self) -> Agent:
        zero, none = jnp.int32(0), jnp.int32(-1)
        return Agent(zero, none, none, jnp.bool(False), zero, jnp.zeros(len(self.forks), jnp.int32), zero)

    def fresh(self, shared: Any, parent: Agent) -> Agent:
        return dataclasses.replace(self.own_state(), depth=parent.depth + 1)

    def begin(self, book: Book) -> Book:
        return verbs.open_sampler(book)

    def observe(self, shared: Any, own: Agent, drawn: Drawn) -> tuple[Agent, Int[Array, ""], Int[Array, ""]]:
        token, none = drawn.token, len(self.forks)
        organizes, works = own.depth < self.max_depth, own.depth > 0
        forks, fork_ends, joins = (is_one_of(token, words) for words in (self.forks, self.fork_ends, self.joins))
        number = jnp.maximum(forks + fork_ends + joins - 1, 0)  # a token is one word at most
        use, free = own.uses[number], jnp.sum(own.uses == _FORKED) < self.agents - 1
        begins = organizes & (forks > 0) & ~own.writes & (use == _UNUSED) & free
        returns = works & (token == self.returns) & ~own.writes
        asked = organizes & (fork_ends > 0) & own.writes & (number == own.named) & (own.count > 0)
        waits = organizes & (joins > 0) & ~own.writes & (use == _FORKED)
        done = works & (token == self.return_end) & own.writes & (own.named == none)
        word = organizes & (forks + fork_ends + joins > 0)
        word |= works & ((token == self.returns) | (token == self.return_end))
        ended = token == self.end
        broken = (word & ~(begins | returns | asked | waits | done)) | (ended & (works | own.writes))
        own = dataclasses.replace(
            own,
            named=jnp.where(returns, none, jnp.where(begins | waits, number, own.named)),
            writes=(own.writes | begins | returns) & ~(asked | done),
            count=jnp.where(begins | returns, 0, own.count + (own.writes & ~word & ~ended)),
            uses=jnp.where(jnp.arange(none) == number, jnp.where(asked, _FORKED, use + waits), own.uses),
            ending=jnp.where(broken, int(Stop.MALFORMED), int(Stop.END)),
        )
        event = jnp.where(asked, 2, jnp.where(waits, 3, 0))
        return own, token, jnp.where(broken | ended | done, 1, event)

    def _stop(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        return ends.close(book, mask, book.threads.own.ending)

    def _fork(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Start a worker on the sub-query that has just been ended; the organizer goes on."""
        number, own = books.numbers(book), book.threads.own
        count, end = own.count[thread], book.threads.cursor.length[thread] - 1
        book = books.open_child(book, thread)
        born = books.opened(book, thread)
        book = verbs.say(
            book.update_own(born, number=own.named[thread]),
            to=number,
            kind=(books.TEMPLATE, books.SPAN, books.TEMPLATE),
            thread=thread,
            start=(self.phrases.one("worker")[0], end - count, self.phrases.one("asks")[0]),
            length=(self.phrases.one("worker")[1], count, self.phrases.one("asks")[1]),
            valid=born,
        )
        return fork(book, thread, born, waits=False)

    def _join(self, book: Book, thread: Int[Array, ""]) -> Book:
        own = book.threads.own
        return wait_for(book, thread, books.outstanding(book, thread) & (own.number == own.named[thread]))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Feed the organizer what the worker has returned: the last tokens of its log but for `</RETURN>`."""
        threads, born = book.threads, books.awaited(book, thread)
        length = jnp.where(threads.stop == Stop.END, threads.own.count, 0)
        return verbs.say(
            book,
            to=jnp.broadcast_to(thread, born.shape),
            kind=(books.SPAN,),
            thread=books.numbers(book),
            start=(threads.cursor.length - 1 - length,),
            length=(length,),
            valid=born & (length > 0),
            footer=self.phrases.each("joined", threads.own.named[thread]),
        )
