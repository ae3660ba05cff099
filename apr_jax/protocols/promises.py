"""Promises that are kept beside the writer, and a word that waits for all of them (PASTA, Jin et al. 2025, arXiv 2502.11517).

    the writer samples      ... <promise topic="..." tokens="N"/> ... <promise .../> ... <sync/> ...
    each promise is fed     <async>     and samples ... </async>

1. A promise sees what stands before it and itself, begins at the next position, and runs beside the writer.
2. The writer's positions leave room for the predicted length, N units, the `<async>` tags included.
3. The writer sees nothing of a promise until `<sync/>`, which waits for all of them; from this word on it sees them where they
   stand, nothing is fed again.
4. A promise that its budget or the end of the text breaks off is closed by `</async>` in place of its last token.
5. A promise without a length, with one above `largest`, or that is not ended, is MALFORMED. Words of promises inside a promise are
   text, `</async>` outside of one as well.

The published code is not known, so that three things are choices. A promise is forked by the token after its tag, which is sampled
from the row that feeds the tag: the writer is then seen by the promise, may write no more, and goes on as a new thread, whose first
token this is. Positions and sight are those of the rule, and the promise starts no later than it could. Tokens after `<sync/>`
stand behind the furthest promise, if one was longer than predicted. An end without `<sync/>` waits, too, for what is promised.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork, wait_for
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.decode.recogniser import Found, Recogniser
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop

WORDS = ("promise", "tokens", "close", "sync", "async_end")

_STOP, _SYNC, _FORK = range(1, 4)  # events
_PLAIN, _TAG, _PROMISED = range(3)  # what the writer writes: text, the tag of a promise, the token after it


@pytree
class Writer:
    """What a thread remembers.

    Attributes:
        found: how far the recogniser has come.
        number: of the promise that it keeps, from 0; -1 for the writer.
        count: promises that the writer has made.
        writes: what it writes.
        tokens: the predicted length of the promise, in units; -1 for none.
        then: the event of the token that forks, 0 if it is no other.
        ending: a `Stop`, set when it is to end, or when its last words are fed.
    """

    found: Found
    number: Int[Array, ""]
    count: Int[Array, ""]
    writes: Int[Array, ""]
    tokens: Int[Array, ""]
    then: Int[Array, ""]
    ending: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Promises(Protocol):
    """The control words, what is said in the protocol's name, and the choices of the method.

    Attributes:
        recogniser: of the phrases in `WORDS`; `tokens` captures the predicted length.
        phrases: `async` and `async_end`.
        end: id of the token that ends a text.
        unit: positions that are reserved for each unit of a predicted length.
        largest: predicted length, in units.
    """

    recogniser: Recogniser
    phrases: Phrases
    end: int
    unit: int = 10
    largest: int = 100

    def __post_init__(self):
        for name in ("unit", "largest"):
            if getattr(self, name) < 1:
                raise ValueError(f"promises.{name} is {getattr(self, name)}; at least 1 is needed")
        for name in WORDS:
            self.recogniser.event(name)
        self.recogniser.captured_event("tokens")
        missing = [name for name in ("async", "async_end") if name not in self.phrases.names]
        if missing:
            raise ValueError(f"promises.phrases lack {', '.join(missing)}")

    @property
    def needs(self) -> Needs:
        return Needs(threads=3, beside=True, pieces=2)  # a promise costs two threads: itself, and the writer's next

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(self._stop), self._sync, self._fork)

    def own_state(self) -> Writer:
        zero, none = jnp.int32(0), jnp.int32(-1)
        return Writer(self.recogniser.start(), none, zero, zero, none, zero, zero)

    def begin(self, book: Book) -> Book:
        return verbs.open_sampler(book)

    def observe(self, shared: Any, own: Writer, drawn: Drawn) -> tuple[Writer, Int[Array, ""], Int[Array, ""]]:
        found, met = self.recogniser.step(own.found, drawn.token)
        is_met = {name: met == self.recogniser.event(name) for name in WORDS}
        ended, keeps = drawn.token == self.end, own.number >= 0
        tag = (own.writes == _TAG) & ~keeps
        length = jnp.where(met == self.recogniser.captured_event("tokens"), found.captured.number, own.tokens)
        promised = tag & is_met["close"]
        known = (own.tokens >= 0) & (own.tokens <= self.largest)
        broken = (tag & (is_met["promise"] | is_met["sync"] | ended)) | (promised & ~known) | (keeps & ended)
        begins = is_met["promise"] & ~tag & ~keeps
        stops = broken | ended | (keeps & is_met["async_end"])
        event = jnp.where(stops, _STOP, jnp.where(is_met["sync"] & ~tag & ~keeps, _SYNC, 0))
        forks = (own.writes == _PROMISED) & ~keeps
        own = dataclasses.replace(
            own,
            found=found,
            writes=jnp.where(begins, _TAG, jnp.where(promised, _PROMISED, jnp.where(forks, _PLAIN, own.writes))),
            # A token that forks may begin the next tag: its length is not read yet.
            tokens=jnp.where(begins & ~forks, -1, jnp.where(tag, length, own.tokens)),
            then=event,
            ending=jnp.where(broken, int(Stop.MALFORMED), int(Stop.END)),
        )
        return own, drawn.token, jnp.where(forks, _FORK, event)

    def _stop(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        own = book.threads.own
        broken = mask & (own.number >= 0) & (own.ending == Stop.MALFORMED)
        return ends.close(self._broken(book, broken, Stop.MALFORMED), mask & ~broken, own.ending)

    def _broken(self, book: Book, mask: Bool[Array, "M"], stop: Stop) -> Book:
        """Close promises that broke off; the writer will see them."""
        closed = verbs.say_last(book, mask, *self.phrases.one("async_end"), drop=True)
        return closed.update_own(mask, ending=int(stop))

    def spent(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        keeps = mask & (book.threads.own.number >= 0)
        return ends.close(self._broken(book, keeps, Stop.LENGTH), mask & ~keeps, jnp.int32(Stop.LENGTH))

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        return ends.close(book, thread, book.threads.own.ending[thread])

    def _sync(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Wait for all that is promised, if anything is."""
        left = books.outstanding(book, thread)
        return books.choose(jnp.any(left), wait_for(book, thread, left), book)

    def _fork(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Start the promise whose tag has been fed; the writer goes on behind its room, with the token just sampled."""
        number, own = books.numbers(book), book.thread(thread).own
        book = book.update_own(number == thread, count=own.count + 1, tokens=-1)
        book = books.open_child(book, thread)
        born, (start, length) = books.opened(book, thread), self.phrases.one("async")
        book = verbs.say(
            book.update_own(born, number=own.count), number, (books.TEMPLATE,), thread, (start,), (length,), born
        )
        book = fork(book, thread, born, context=thread, waits=False, flushes=True, held=True)
        last = lines.successor(book, thread)
        book = book.update(last, position=book.threads.cursor.position + self.unit * own.tokens)
        waits, stops = self._sync(book, last), ends.close(book, last, own.ending)
        return books.choose(own.then == _SYNC, waits, books.choose(own.then == _STOP, stops, book))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The writer sees what was promised."""
        kept = books.awaited(book, thread)
        return ends.release(lines.stitch(book, thread, kept), kept)
