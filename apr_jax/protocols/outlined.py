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
Stitched, its last token gives way to `close`, and the parent goes on: Multiverse's client leaves this undefined. With `mends`
`close` stands behind its last token, and the parent goes on in both cases (Parallel-R1).

A response may be bounded. With `shares` a thread has its part of what is left: what it writes counts as often as there are threads
beside it, as if these wrote as much (NPR). Forks for which too little is left, or that are too deep, can be refused: the parent
goes on.

What a thread did against the format is counted in its own state, by the kinds of `format_errors`, whether it went on or not.
"""

import dataclasses
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.problem import one_of
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol, is_one_of
from apr_jax.decode.recogniser import Found, Names, Recogniser
from apr_jax.protocols import format_errors, penalty, verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop

Join = Literal["reencode", "stitch"]
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
        fed: tokens of the response that it was fed: headers, closing words, and what its threads wrote. Of a thread that
            was forked also all that stands before it.
        ending: the stop reason with which it ends when its last words are fed, 0 if it goes on.
        degree: threads that are taken to write as much as it does, itself included.
        drew: it has sampled a token.
        errors: Int [kinds]; how often it broke the format, see `format_errors`.
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
    degree: Int[Array, ""]
    drew: Bool[Array, ""]
    errors: Int[Array, "kinds"]


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
        response: tokens of a response, the joined text with all that was fed included; 0 is any number.
        shares: the threads of a fork divide what is left of the response.
        reserve: tokens of the response that must be left for a fork; with fewer, or too deep, it is refused. 0: none is refused,
            forks that are too deep are malformed.
        mends: a thread that its budget broke off is closed behind its last token, and the parent goes on.
        temperature: that threads sample at; None is that of the request.
        penalty: on what a thread repeats of itself, see `apr_jax.protocols.penalty`; 1 is none. The root is free of it.
    """

    WORDS: ClassVar[tuple[str, ...]] = ("outlines", "fork", "outline", "close")
    ITEMS: ClassVar[tuple[str, ...]] = ("outline",)  # the words that begin an outline

    recogniser: Recogniser
    phrases: Phrases
    numbers: Names
    end: int
    join: Join = "reencode"
    most: int = 50
    blocks: int = 32
    max_depth: int = 1
    response: int = 0
    shares: bool = False
    reserve: int = 0
    mends: bool = False
    temperature: float | None = None
    penalty: float = 1.0

    def __post_init__(self):
        one_of("outlined.join", self.join, get_args(Join))
        for name in ("most", "blocks", "max_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"outlined.{name} is {getattr(self, name)}; at least 1 is needed")
        if self.join == "reencode" and self.max_depth > 1:
            raise ValueError(
                f"outlined.max_depth is {self.max_depth}; threads that are re-encoded do not fork, so only 1 is allowed"
            )
        if (self.shares or self.reserve) and not self.stitches:
            raise ValueError(f"outlined.join is {self.join}; shares and reserve are for threads that are stitched")
        if self.penalty <= 0:
            raise ValueError(f"outlined.penalty is {self.penalty}; it must be above 0, 1 for none")
        for name in self.WORDS:
            self.recogniser.event(name)
        for name in self.ITEMS:
            self.recogniser.captured_event(name)
        missing = [name for name in SAID[self.join] if name not in self.phrases.names]
        if missing:
            raise ValueError(f"outlined.phrases lack {', '.join(missing)}")

    @property
    def needs(self) -> Needs:
        # Of a thread: its header; again, span and close when it is joined, or its own close; what its parent says after it.
        return Needs(threads=2, pieces=5 if self.stitches else 6, adjusts=self.penalty != 1, recorded=True)

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
        return Outlines(
            found=self.recogniser.start(),
            depth=zero,
            number=zero - 1,
            begun=no,
            count=zero,
            numbers=jnp.zeros(self.most, jnp.int32),
            refused=no,
            blocks=zero,
            fed=zero,
            ending=zero,
            degree=zero + 1,
            drew=no,
            errors=jnp.zeros(len(format_errors.KINDS), jnp.int32),
        )

    def fresh(self, shared: Any, parent: Outlines) -> Outlines:
        return dataclasses.replace(self.own_state(), depth=parent.depth + 1)

    def bulk_state(self) -> Any:
        return penalty.nothing(self.recogniser.class_of.shape[0]) if self.needs.adjusts else ()

    def watch(self, bulk: Any, own: Outlines, drawn: Drawn) -> tuple[Any, Outlines]:
        if not self.needs.adjusts:
            return bulk, own
        return penalty.add(bulk, drawn.token, anew=~own.drew), dataclasses.replace(own, drew=jnp.bool(True))

    def adjust(self, shared: Any, own: Outlines, bulk: Any, logits: Float[Array, "V"]) -> Float[Array, "V"]:
        return penalty.weigh(logits, bulk, jnp.where((own.depth > 0) & own.drew, self.penalty, 1))

    def begin(self, book: Book) -> Book:
        book = verbs.open_sampler(book)
        if self.response:
            book = book.update(jnp.int32(0), budget=jnp.minimum(book.request.max_tokens, self.response))
        return book

    def observe(self, shared: Any, own: Outlines, drawn: Drawn) -> tuple[Outlines, Int[Array, ""], Int[Array, ""]]:
        found, met = self.recogniser.step(own.found, drawn.token)
        broken_off = self._captures(own) & (met > 0) & (met <= len(self.recogniser.phrases))
        own, event = self._take(dataclasses.replace(own, found=found), met, drawn.token == self.end)
        happened = format_errors.one_each(no_number=broken_off & own.begun)
        return dataclasses.replace(own, errors=own.errors + happened), drawn.token, event

    def _captures(self, own: Outlines) -> Bool[Array, ""]:
        """Whether the number of an outline has not come to its end."""
        return is_one_of(own.found.captured.open, tuple(map(self.recogniser.event, self.ITEMS))) > 0

    def _take(self, own: Outlines, met: Int[Array, ""], ends: Bool[Array, ""]) -> tuple[Outlines, Int[Array, ""]]:
        """What a thread remembers after a token, and its event.

        Args:
            met: the event of the recogniser.
            ends: the text ends.
        """
        outlines, fork, close = (met == self.recogniser.event(name) for name in ("outlines", "fork", "close"))
        item = is_one_of(met, tuple(map(self.recogniser.event, self.ITEMS))) > 0
        captured = is_one_of(met, tuple(map(self.recogniser.captured_event, self.ITEMS))) > 0
        # A thread that is re-encoded does not fork: the words of outlines are text in it, and so is `close` elsewhere.
        forks, closes = own.depth < self.max_depth, own.depth > 0
        lists, begun = forks | (self.reserve > 0), own.begun
        happened = format_errors.one_each(
            unclosed=(ends | (close & closes)) & begun,
            no_outlines=fork & lists & (~begun | ((own.count == 0) & ~own.refused)),
            too_many=fork & lists & begun & (own.blocks >= self.blocks),
            too_deep=fork & ~lists,
            misplaced=(close & ~closes) | (item & lists & ~begun) | (outlines & begun),
            broken_off=ends & closes,
        )
        own = dataclasses.replace(own, errors=own.errors + happened)
        own = self._listed(own, outlines & lists, captured)
        event = jnp.where(fork & (forks | self.stitches), _FORK, 0)
        event = jnp.where(close & (closes | self.stitches), _CLOSE, event)
        return own, jnp.where(ends, _END, event)

    def _listed(self, own: Outlines, opens: Bool[Array, ""], captured: Bool[Array, ""]) -> Outlines:
        """The list of outlines after a word that begins one, or an outline's number."""
        captured, place = captured & own.begun, self.numbers.find(own.found.captured)
        known = captured & (place >= 0) & jnp.any((own.numbers == place) & (jnp.arange(self.most) < own.count))
        new = captured & (place >= 0) & ~known
        lacking = captured & (place < 0) & own.found.captured.numeric
        full = new & (own.count == self.most)
        numbers = jnp.where(new & (jnp.arange(self.most) == own.count), place, own.numbers)
        nameless = captured & (place < 0) & ~own.found.captured.numeric
        happened = format_errors.one_each(no_number=nameless, number_twice=known, number_unknown=lacking, too_many=full)
        return dataclasses.replace(
            own,
            begun=own.begun | opens,
            count=jnp.where(opens, 0, own.count + (new & ~full)),
            numbers=numbers,
            refused=~opens & (own.refused | lacking | full),
            errors=own.errors + happened,
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
        """Feed the word; the threads start when it is fed. A fork that is refused leaves the word as text."""
        own, mine = jax.tree.map(lambda column: column[thread], book.threads.own), books.numbers(book) == thread
        formed = own.begun & (own.count > 0) & ~own.refused & (own.blocks < self.blocks)
        deep, left = own.depth >= self.max_depth, self.response - self.used(book, thread)
        spent = (left <= 0) & (self.response > 0)
        stop = jnp.where(formed & ~deep & spent, int(Stop.LENGTH), int(Stop.MALFORMED))
        started = book.update(thread, samples=False)
        found = books.choose(formed & ~deep & ~spent, started, ends.close(book, thread, stop))
        if not self.reserve:
            return found
        happened = own.errors + format_errors.one_each(refused=jnp.bool(True))
        text = book.update_own(mine, begun=False, count=0, errors=happened)
        return books.choose(formed & (deep | (left < self.reserve)), text, found)

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
        used, degree = self.used(book, thread), own.degree * (own.count if self.shares else 1)
        book = book.update_own(born, number=number, fed=used + length, degree=degree)
        book = book.update_own(mine, begun=False, count=0, refused=False, blocks=own.blocks + 1)
        book = verbs.say(book, books.numbers(book), (books.TEMPLATE,), thread, (start,), (length,), born)
        seen = born if self.stitches else books.eldest(book, born)
        budget = book.threads.sampling.budget
        if self.response:
            left = self.response - used
            left = -((length - left) // degree) if self.stitches else left  # rounded up
            budget = jnp.minimum(budget, jnp.maximum(left, 1))
        columns = {} if self.temperature is None else dict(temperature=self.temperature)
        return fork(book, thread, born, context=thread, flushes=seen, held=seen, budget=budget, **columns)

    def spent(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        own = book.threads.own
        happened = format_errors.one_each(unclosed=mask & own.begun, broken_off=mask & (own.depth > 0))
        book = book.update_own(mask, errors=own.errors + happened)
        return self._broken(book, mask, Stop.LENGTH, jnp.zeros_like(mask))

    def _broken(self, book: Book, broken: Bool[Array, "M"], stop: Stop, ended: Bool[Array, "M"]) -> Book:
        """End threads, some of which broke off: those whose text the parent will see where it stands are closed first."""
        own, close = book.threads.own, self.phrases.one("close")
        closes = broken & (own.depth > 0) & self.stitches
        closed = verbs.say_last(book, closes, *close, drop=not self.mends)
        closed = closed.update_own(closes, ending=int(stop), fed=own.fed + close[1] - (not self.mends))
        return ends.close(closed, (broken | ended) & ~closes, jnp.where(broken, int(stop), int(Stop.END)))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        born = books.awaited(book, thread)
        if self.stitches:
            return self._stitched(ends.release(lines.stitch(book, thread, born), born), thread, born)
        read = self._read_of(book, born)
        seen = books.eldest(book, read) & book.threads.bond.held
        return self._again(ends.release(lines.stitch(book, thread, seen), born), thread, read, seen)

    def _read_of(self, book: Book, born: Bool[Array, "M"]) -> Bool[Array, "M"]:
        """The threads whose text the parent reads, of those that have come back."""
        return born

    def _stitched(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"]) -> Book:
        """Let the parent go on behind its threads; what they wrote is its own from now on, and counts once."""
        mine, (start, length) = books.numbers(book) == thread, self.phrases.one("joined")
        said = verbs.say(book, books.numbers(book), (books.TEMPLATE,), thread, (start,), (length,), mine)
        said = said.update(thread, samples=True)
        if not self.response:
            return said
        own, used = book.threads.own, self.used(book, books.numbers(book))
        fed = own.fed[thread] + jnp.sum(jnp.where(born, used - used[thread], 0)) + length
        generated, asked = book.threads.cursor.generated[thread], book.request
        left = -((generated + fed - self.response) // own.degree[thread])
        child = (own.depth[thread] > 0) & (asked.child_max_tokens > 0)
        limit = jnp.where(child, asked.child_max_tokens, asked.max_tokens)
        return said.update_own(mine, fed=fed).update(mine, budget=jnp.minimum(limit, generated + left))

    def _again(self, book: Book, thread: Int[Array, ""], read: Bool[Array, "M"], seen: Bool[Array, "M"]) -> Book:
        """Feed the parent what threads wrote; it goes on, or ends if one broke off.

        Args:
            read: the threads.
            seen: the first of them if the parent sees it where it stands, else none.
        """
        threads, mine, first = book.threads, books.numbers(book) == thread, books.eldest(book, read)
        broken, number = read & (threads.stop != Stop.END), threads.own.number
        header, again = self.phrases.each("header", number), self.phrases.each("again", number)
        opening = tuple(jnp.where(first, *pair) for pair in zip(header, again, strict=True))
        close, stop, joined = (self.phrases.one(name) for name in ("close", "stop", "joined"))
        # The end token of one that broke off so is the last of its log.
        wrote = threads.cursor.length - header[1] - (threads.stop == Stop.MALFORMED)
        fed = opening[1] + wrote + jnp.where(broken, close[1], 0)
        fed = threads.own.fed[thread] + jnp.sum(jnp.where(read, fed, 0))
        generated, budget = threads.cursor.generated[thread], threads.sampling.budget[thread]
        if self.response:
            budget = jnp.minimum(budget, self.response - fed - joined[1])
        long, ends_it = generated >= budget, broken & (not self.mends)
        long |= jnp.any(ends_it & (threads.stop == Stop.LENGTH))
        over = long | jnp.any(ends_it)
        footer = tuple(jnp.where(over, *pair) for pair in zip(stop, joined, strict=True))
        ending = jnp.where(over, jnp.where(long, int(Stop.LENGTH), int(Stop.MALFORMED)), 0)
        book = book.update_own(mine, fed=fed + footer[1], ending=ending).update(mine, samples=~over, budget=budget)
        return verbs.say(
            book,
            to=jnp.broadcast_to(thread, read.shape),
            kind=(books.TEMPLATE, books.SPAN, books.TEMPLATE),
            thread=books.numbers(book),
            start=(opening[0], header[1], close[0]),
            length=(opening[1], wrote, close[1]),
            valid=(read & ~seen, read & ~seen & (wrote > 0), broken),
            footer=footer,
        )
