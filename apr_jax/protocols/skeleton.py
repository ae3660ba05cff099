"""Skeleton of thought: one thread writes a skeleton of numbered points, then each point is written out by a thread of its own.

Source: Ning et al. 2024, arXiv 2307.15337; imagination-research/sot. The rule:

    1. the root reads the prompt up to the end of the part `question`; a thread goes on from there with the rest of it, which asks
       for a skeleton and begins its first point ("1."), and writes the skeleton;
    2. a point is a number that begins a line, a full stop, and the rest of the line;
    3. each point has a thread, which sees the question and itself. It is fed the skeleton, what is asked about its point, the part
       `turn` of the prompt (with which a turn of the assistant begins), and its point, which it goes on from;
    4. the answer is the points with what was written to each, one after the other. No thread reads it.

A skeleton that its budget cut off stands, its last point as far as it came. One without points, with more than `most`, or with a
number that `numbers` lacks is MALFORMED. Where this differs from the published program: that looks for numbers anywhere in a line,
with a pattern, here only numbers at its beginning count, which the device finds across tokens (`apr_jax.decode.recogniser`); and of
a token that ends a line nothing belongs to its point or to the next number.

What is easily done wrong: threads of points see neither the skeleton's keys and values nor each other, so that the skeleton is fed
once for each of them, and counted so; and the critical path is the skeleton's tokens and those of the longest point.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.decode.recogniser import Found, Names, Phrase, Recogniser
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop

LINE = Phrase("line", "\n", until=".")


@pytree
class Points:
    """What a thread remembers.

    Attributes:
        found: how far the recogniser has come.
        said: tokens that it sampled.
        open: it writes a point of the skeleton, the last of those that it has begun.
        count: points that it has begun.
        numbers, starts, lengths: Int [most]; of each point the place of its number, the tokens sampled before its text, and the
            tokens of that.
        refused: there was a number that the protocol lacks, or one point too many.
        answers: of a thread that writes out a point: the tokens of its point, with which what it writes begins; else 0.
    """

    found: Found
    said: Int[Array, ""]
    open: Bool[Array, ""]
    count: Int[Array, ""]
    numbers: Int[Array, "most"]
    starts: Int[Array, "most"]
    lengths: Int[Array, "most"]
    refused: Bool[Array, ""]
    answers: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Skeleton(Protocol):
    """What is said, and the choices of a method.

    Attributes:
        end: ends a skeleton, and what is written to a point.
        recogniser: of `LINE`.
        numbers: what numbers there are; the prompt has begun the first one.
        phrases: `skeleton`, what is said before the skeleton; and for each number `ask`, what is asked about its point, and
            `header`, the number as the answer shows it.
        most: points.
    """

    end: int
    recogniser: Recogniser
    numbers: Names
    phrases: Phrases
    most: int = 10

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"skeleton.most is {self.most}; at least 1 is needed")
        self.recogniser.captured_event("line")
        missing = [name for name in ("skeleton", "ask", "header") if name not in self.phrases.names]
        if missing:
            raise ValueError(f"skeleton.phrases lack {', '.join(missing)}")

    @property
    def needs(self) -> Needs:
        return Needs(threads=2, parts=("question", "turn"), recorded=True)

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(verbs.end),)

    def own_state(self) -> Points:
        zero, no, row = jnp.int32(0), jnp.bool(False), jnp.zeros(self.most, jnp.int32)
        # The prompt has begun the first point.
        return Points(self.recogniser.start(), zero, jnp.bool(True), jnp.int32(1), row, row, row, no, zero)

    def begin(self, book: Book) -> Book:
        return verbs.open_reader_to(book, verbs.end_of_part(book, 0), self.drained)

    def observe(self, shared: Any, own: Points, drawn: Drawn) -> tuple[Points, Int[Array, ""], Int[Array, ""]]:
        found, met = self.recogniser.step(own.found, drawn.token)
        own = dataclasses.replace(own, found=found)
        ended = drawn.token == self.end
        own = self._closed(own, ended | (met == self.recogniser.event("line")))
        own = dataclasses.replace(own, said=own.said + 1)
        own = self._opened(own, met == self.recogniser.captured_event("line"))
        return own, drawn.token, ended.astype(jnp.int32)

    def _closed(self, own: Points, closes: Bool[Array, ""]) -> Points:
        """The skeleton before a token that ends the line of a point; a point without text is none."""
        last = own.count - 1
        length = own.said - own.starts[jnp.maximum(last, 0)]
        closes, none = closes & own.open, own.open & (length == 0)
        lengths = jnp.where(closes & (jnp.arange(self.most) == last), length, own.lengths)
        return dataclasses.replace(own, lengths=lengths, open=own.open & ~closes, count=own.count - (closes & none))

    def _opened(self, own: Points, captured: Bool[Array, ""]) -> Points:
        """The skeleton after a token that may have ended the number of a point."""
        number = own.found.captured.number
        place = jnp.array([int(text) for text in self.numbers.texts], jnp.int32) == number
        known, full = jnp.any(place), own.count == self.most
        captured &= number >= 0
        new = captured & known & ~full
        here = new & (jnp.arange(self.most) == own.count)
        return dataclasses.replace(
            own,
            open=own.open | new,
            count=own.count + new,
            numbers=jnp.where(here, jnp.argmax(place), own.numbers),
            starts=jnp.where(here, own.said, own.starts),
            refused=own.refused | (captured & (~known | full)),
        )

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The root has read the question: the skeleton is to be written."""
        book = books.open_children(book, thread, 1)
        born, number = books.opened(book, thread), books.numbers(book)
        start = verbs.end_of_part(book, 0)
        rest = ((number * 0 + start,), (number * 0 + book.prompt_length - start,))
        book = verbs.say(book, number, (books.PROMPT,), number, *rest, born)
        return fork(book, thread, born, context=thread, budget=book.request.max_tokens)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The skeleton is written, or all points are."""
        written = jnp.any(book.threads.own.answers > 0)
        last = jnp.argmax(books.awaited(book, thread)).astype(jnp.int32)
        own = jax.tree.map(lambda column: column[last], book.threads.own)
        own = self._closed(own, jnp.bool(True))
        sound = (own.count > 0) & ~own.refused
        stop = jnp.where(written | sound, int(Stop.END), int(Stop.MALFORMED))
        return books.choose(~written & sound, self._write_out(book, thread, last, own), ends.close(book, thread, stop))

    def _write_out(self, book: Book, root: Int[Array, ""], skeleton: Int[Array, ""], points: Points) -> Book:
        """Fork a thread for each point."""
        book, number = books.open_children(book, root, points.count), books.numbers(book)
        born = books.opened(book, root)
        place = books.place_among(book, born)
        at, length = points.starts[place], points.lengths[place]
        fed = book.threads.cursor.length[skeleton] - points.said
        whole = points.said - (book.threads.stop[skeleton] == Stop.END)
        before, (turn, turn_length) = self.phrases.one("skeleton"), verbs.part(book, 1)
        ask, header = (self.phrases.each(name, points.numbers[place]) for name in ("ask", "header"))
        template, prompt, span = books.TEMPLATE, books.PROMPT, books.SPAN
        book = verbs.say(
            book,
            to=number,
            kind=(template, span, template, prompt, template, span),
            thread=skeleton,
            start=(before[0], fed, ask[0], turn, header[0], fed + at),
            length=(before[1], whole, ask[1], turn_length, header[1], length),
            valid=(born, born & (whole > 0), born, born & (turn_length > 0), born, born),
        )
        return fork(book.update_own(born, answers=header[1] + length), root, born, context=root)
