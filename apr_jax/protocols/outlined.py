"""Outlined threads: the model lists numbered outlines, each becomes a thread, and the parent goes on from what they wrote.

    parent samples   <Outlines> <Outline>1: ... </Outline> <Outline>2: ... </Outline> </Outlines>
    a thread is fed  a header with its number, sees all that its parent saw, and samples ... </Thread>

How the threads come back is the choice `join`:

    reencode   the parent sees the first thread, and is fed the others' text, as if one had written all of it (ThreadWeaver)
    stitch     the parent sees all threads where they stand, and goes on after the longest (Multiverse)

A number is what stands between an outline's word and its colon, as the published clients' pattern has it: groups of digits with
dots between, white space around. Outlines without one are no outlines, a number that comes twice counts once. Numbers that
`numbers` lacks, more outlines than `most`, and what else the format does not allow end the thread as MALFORMED. What the model did
not write, and what stands before the last `<Outlines>` of the thread, is no outline.

When a thread broke off (its budget is used up, or it sampled the end of the text), the two published systems differ. Re-encoded, it
keeps its tokens but an end token, is closed by `close`, and the parent is fed `stop` and ends, as in ThreadWeaver's client.
Stitched, its last token gives way to `close`, and the parent goes on: Multiverse's client leaves this undefined.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.problem import one_of
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.decode.recogniser import Found, Names, Recogniser
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop

Join = Literal["reencode", "stitch"]
WORDS = ("outlines", "fork", "outline", "close")
SAID = {"reencode": ("header", "again", "close", "joined", "stop"), "stitch": ("header", "close", "joined")}

_END, _FORK, _CLOSE = range(1, 4)  # events


@pytree
class Outlines:
    """What a thread remembers.

    Attributes:
        found: how far the recogniser has come.
        depth: forks above it.
        number: the place of its own number among the protocol's, -1 for the root.
        begun: it has begun a list of outlines that it has not ended.
        count, numbers: Int [most]; the outlines so far, places among the protocol's numbers.
        refused: a number that the protocol lacks, or too many.
        blocks: forks so far.
        fed: tokens of the response that it was fed: headers, closing words, and what its threads wrote.
        ending: the stop reason with which it ends when its last words are fed, 0 if it goes on.
    """

    found: Found
    depth: Int[Array, ""]
    number: Int[Array, ""]
    begun: Bool[Array, ""]
    count: Int[Array, ""]
    numbers: Int[Array, "most"]
    refused: Bool[Array, ""]
    blocks: Int[Array, ""]
    fed: Int[Array, ""]
    ending: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Outlined(Protocol):
    """The control words, what is said in the protocol's name, and the choices of a method.

    Attributes:
        recogniser: of the phrases `outlines`, `fork`, `outline` (which captures the number) and `close`.
        phrases: `header` of each number, and `close`, `joined`; to re-encode, also `again` (the header as the parent is fed it) of
            each number, and `stop`.
        numbers: what numbers there are.
        end: id of the token that ends a text.
        join: how threads come back.
        most: outlines of one fork.
        blocks: forks of one line.
        max_depth: how deep threads may nest.
        response: tokens of a response that is re-encoded, the joined text with all that was fed included; 0 is any number.
    """

    recogniser: Recogniser
    phrases: Phrases
    numbers: Names
    end: int
    join: Join = "reencode"
    most: int = 50
    blocks: int = 32
    max_depth: int = 1
    response: int = 0

    def __post_init__(self):
        one_of("outlined.join", self.join, get_args(Join))
        for name in ("most", "blocks", "max_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"outlined.{name} is {getattr(self, name)}; at least 1 is needed")
        if self.join == "reencode" and self.max_depth > 1:
            raise ValueError(
                f"outlined.max_depth is {self.max_depth}; threads that are re-encoded do not fork, so only 1 is allowed"
            )
        if self.response and self.join != "reencode":
            raise ValueError(
                f"outlined.response is {self.response}; it bounds text that is re-encoded, join is {self.join}"
            )
        for name in WORDS:
            self.recogniser.event(name)
        self.recogniser.captured_event("outline")
        missing = [name for name in SAID[self.join] if name not in self.phrases.names]
        if missing:
            raise ValueError(f"outlined.phrases lack {', '.join(missing)}")

    @property
    def needs(self) -> Needs:
        # Of a thread: its header; again, span and close when it is joined, or its own close; what its parent says after it.
        return Needs(threads=2, pieces=5 if self.stitches else 6)

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(self._end), self._fork, ForAll(self._close))

    @property
    def stitches(self) -> bool:
        return self.join == "stitch"

    def own_state(self) -> Outlines:
        zero, no = jnp.int32(0), jnp.bool(False)
        numbers = jnp.zeros(self.most, jnp.int32)
        return Outlines(self.recogniser.start(), zero, jnp.int32(-1), no, zero, numbers, no, zero, zero, zero)

    def fresh(self, shared: Any, parent: Outlines) -> Outlines:
        return dataclasses.replace(self.own_state(), depth=parent.depth + 1)

    def begin(self, book: Book) -> Book:
        book = verbs.open_sampler(book)
        if self.response:
            book = book.update(jnp.int32(0), budget=jnp.minimum(book.request.max_tokens, self.response))
        return book

    def observe(self, shared: Any, own: Outlines, drawn: Drawn) -> tuple[Outlines, Int[Array, ""], Int[Array, ""]]:
        found, met = self.recogniser.step(own.found, drawn.token)
        is_met = {name: met == self.recogniser.event(name) for name in WORDS}
        own = dataclasses.replace(own, found=found)
        # A thread that is re-encoded does not fork: the words of outlines are text in it, and so is `close` elsewhere.
        forks, closes = own.depth < self.max_depth, own.depth > 0
        own = self._listed(own, is_met["outlines"] & forks, met == self.recogniser.captured_event("outline"))
        event = jnp.where(is_met["fork"] & (forks | self.stitches), _FORK, 0)
        event = jnp.where(is_met["close"] & (closes | self.stitches), _CLOSE, event)
        return own, drawn.token, jnp.where(drawn.token == self.end, _END, event)

    def _listed(self, own: Outlines, opens: Bool[Array, ""], captured: Bool[Array, ""]) -> Outlines:
        """The list of outlines after a word that begins one, or an outline's number."""
        captured, place = captured & own.begun, self.numbers.find(own.found.captured)
        known = jnp.any((own.numbers == place) & (jnp.arange(self.most) < own.count))
        new = captured & (place >= 0) & ~known
        lacking = captured & own.found.captured.numeric & (place < 0)
        full = new & (own.count == self.most)
        numbers = jnp.where(new & (jnp.arange(self.most) == own.count), place, own.numbers)
        return dataclasses.replace(
            own,
            begun=own.begun | opens,
            count=jnp.where(opens, 0, own.count + (new & ~full)),
            numbers=numbers,
            refused=~opens & (own.refused | lacking | full),
        )

    def used(self, book: Book, thread: Int[Array, ""]) -> Int[Array, ""]:
        """Tokens of the response so far."""
        return book.threads.cursor.generated[thread] + book.threads.own.fed[thread]

    def _end(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        """The end of the text: a thread that was not closed broke off, and its end token is dropped."""
        own = book.threads.own
        broken = mask & ((own.depth > 0) | own.begun)
        book = book.update(mask & (own.depth > 0), unfed=False)
        return self._broken(book, broken, Stop.MALFORMED, mask & ~broken)

    def _close(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        own = book.threads.own
        malformed = mask & (own.begun | (own.depth == 0))
        return ends.close(book, mask, jnp.where(malformed, int(Stop.MALFORMED), int(Stop.END)))

    def _fork(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Feed the word; the threads start when it is fed."""
        own = jax.tree.map(lambda column: column[thread], book.threads.own)
        allowed = own.begun & (own.count > 0) & ~own.refused & (own.blocks < self.blocks) & (own.depth < self.max_depth)
        spent = (self.used(book, thread) >= self.response) & (self.response > 0)
        stop = jnp.where(allowed & spent, int(Stop.LENGTH), int(Stop.MALFORMED))
        started = book.update(thread, samples=False)
        return books.choose(allowed & ~spent, started, ends.close(book, thread, stop))

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The last words of a thread are fed, or the word that forks."""
        ending = book.threads.own.ending[thread]
        return books.choose(ending > 0, ends.close(book, thread, ending), self._start(book, thread))

    def _start(self, book: Book, thread: Int[Array, ""]) -> Book:
        own = jax.tree.map(lambda column: column[thread], book.threads.own)
        mine = books.numbers(book) == thread
        book = books.open_children(book, thread, own.count)
        born = books.opened(book, thread)
        number = own.numbers[books.place_among(book, born)]
        start, length = self.phrases.each("header", number)
        book = book.update_own(born, number=number)
        book = book.update_own(mine, begun=False, count=0, refused=False, blocks=own.blocks + 1)
        book = verbs.say(book, books.numbers(book), (books.TEMPLATE,), thread, (start,), (length,), born)
        seen = born if self.stitches else books.eldest(book, born)
        budget = book.threads.sampling.budget
        if self.response:
            budget = jnp.minimum(budget, jnp.maximum(self.response - self.used(book, thread), 1))
        return fork(book, thread, born, context=thread, flushes=seen, held=seen, budget=budget)

    def spent(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        return self._broken(book, mask, Stop.LENGTH, jnp.zeros_like(mask))

    def _broken(self, book: Book, broken: Bool[Array, "M"], stop: Stop, ended: Bool[Array, "M"]) -> Book:
        """End threads, some of which broke off: those whose text the parent will see where it stands are closed first."""
        closes = broken & (book.threads.own.depth > 0) & self.stitches
        closed = verbs.say_last(book, closes, *self.phrases.one("close"), drop=True)
        closed = closed.update_own(closes, ending=int(stop))
        return ends.close(closed, (broken | ended) & ~closes, jnp.where(broken, int(stop), int(Stop.END)))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        born = books.awaited(book, thread)
        if self.stitches:
            book = ends.release(lines.stitch(book, thread, born), born)
            number, (start, length) = books.numbers(book), self.phrases.one("joined")
            said = verbs.say(book, number, (books.TEMPLATE,), thread, (start,), (length,), number == thread)
            return said.update(thread, samples=True)
        first = books.eldest(book, born)
        book = ends.release(lines.stitch(book, thread, first), born)
        return self._again(book, thread, born, first)

    def _again(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"], first: Bool[Array, "M"]) -> Book:
        """Feed the parent what the threads wrote, but for the first; it goes on, or ends if one of them broke off."""
        threads, mine = book.threads, books.numbers(book) == thread
        broken, number = born & (threads.stop != Stop.END), threads.own.number
        header, again = self.phrases.each("header", number), self.phrases.each("again", number)
        close, stop, joined = (self.phrases.one(name) for name in ("close", "stop", "joined"))
        # The end token of one that broke off so is the last of its log.
        wrote = threads.cursor.length - header[1] - (threads.stop == Stop.MALFORMED)
        fed = jnp.where(first, header[1], again[1]) + wrote + jnp.where(broken, close[1], 0)
        fed = threads.own.fed[thread] + jnp.sum(jnp.where(born, fed, 0))
        generated, budget = threads.cursor.generated[thread], threads.sampling.budget[thread]
        if self.response:
            budget = jnp.minimum(budget, self.response - fed - joined[1])
        long = jnp.any(broken & (threads.stop == Stop.LENGTH)) | (generated >= budget)
        over = long | jnp.any(broken)
        footer = tuple(jnp.where(over, *pair) for pair in zip(stop, joined, strict=True))
        ending = jnp.where(over, jnp.where(long, int(Stop.LENGTH), int(Stop.MALFORMED)), 0)
        book = book.update_own(mine, fed=fed + footer[1], ending=ending).update(mine, samples=~over, budget=budget)
        return verbs.say(
            book,
            to=jnp.broadcast_to(thread, born.shape),
            kind=(books.TEMPLATE, books.SPAN, books.TEMPLATE),
            thread=books.numbers(book),
            start=(again[0], header[1], close[0]),
            length=(again[1], wrote, close[1]),
            valid=(born & ~first, born & ~first & (wrote > 0), broken),
            footer=footer,
        )
