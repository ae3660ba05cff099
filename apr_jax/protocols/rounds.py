"""Rounds: threads answer side by side, and those of the next round read what those of the round before had to tell.

Sources: PaCoRe (StepFun 2025, arXiv 2601.05593), RSA (recursive self-aggregation, 2025, arXiv 2509.26626), PDR (parallel, distill,
refine, Meta 2025, arXiv 2510.01123), which are configurations of one rule:

    1. in each round some threads are forked; they see the prompt, but none of each other;
    2. what a thread tells is its text after the word that ends its reasoning (the last one, if it says several), or all of its
       text, but for its end token. One that has nothing to tell, since it broke off or ended before that word, is left out;
    3. when all have ended, each thread of the next round reads the messages of so many of them, chosen by chance (a key of the
       problem), in an order that is chance too (`shuffled`) or that of their paths;
    4. a reader is fed the prompt, and in it, behind the question, the messages, each under a header, and what is asked about them;
    5. the answers are those of the last round. A thread that reads nothing is fed the prompt as it is.

Messages are spans of the log, read when they are fed: no reader copies them. The root reads the prompt up to the end of the part
`question`; a thread whose template puts nothing before the question goes on from there, so that the prompt is fed once for all
rounds. Otherwise the thread sees only itself, and is fed all of the prompt.

What is easily done wrong: a word that a user wrote ends no reasoning, since only sampled tokens are looked at; the chance that
chooses messages must not be that of the draws, nor depend on which thread ended first; messages are fed tokens, and are counted as
such for each reader; and the critical path is the sum over rounds of the longest thread, whatever was read of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, messages
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.problem import whole
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.decode.recogniser import Recogniser
from apr_jax.decode.threads import NOBODY
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop


@dataclasses.dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        threads: that answer in it.
        reads: messages of the round before that each of them reads, at most; 0: all. Has no meaning in the first round.
        template: number of the template in which they are read.
    """

    threads: int
    reads: int = 0
    template: int = 0

    def __post_init__(self):
        for name, least in (("threads", 1), ("reads", 0), ("template", 0)):
            whole(f"round.{name}", getattr(self, name), least)


@pytree
class Turn:
    """What a thread remembers.

    Attributes:
        found: how far the recogniser has come; () without one.
        said: tokens that it sampled.
        reasoned: how many of them there were when its reasoning ended, the last time; -1: it has not.
        rounds: of the root: rounds that were forked.
    """

    found: Any
    said: Int[Array, ""]
    reasoned: Int[Array, ""]
    rounds: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Rounds(Protocol):
    """The choices of a method. In the last round a thread may sample `max_tokens` of its problem, before that `child_max_tokens`.

    Attributes:
        end: id of the token that ends a thread; before the word that ends its reasoning it makes the thread MALFORMED.
        rounds: in order.
        phrases: families with one member a template: `before` the question and `after` the messages; and `header`, before each
            message: of the first template as many as a thread reads at most, then those of the second, and so on. A member may be
            empty.
        reasoning: finds the word that ends reasoning; None: all is told.
        shuffled: messages are read in an order by chance.
    """

    end: int
    rounds: tuple[Round, ...]
    phrases: Phrases
    reasoning: Recogniser | None = None
    shuffled: bool = True

    def __post_init__(self):
        templates = max(each.template for each in self.rounds) + 1
        for name, least in (("before", templates), ("header", templates * self.most), ("after", templates)):
            count = len(self.phrases.starts[self.phrases.names.index(name)]) if name in self.phrases.names else 0
            if count < least:
                raise ValueError(f"rounds.phrases has {count} of {name}; {templates} templates need {least}")

    @property
    def most(self) -> int:
        """Messages that a thread reads, at most."""
        return most_read(self.rounds)

    @property
    def needs(self) -> Needs:
        counts, reads, _ = _columns(self.rounds)
        # Of a reader: the prompt in three parts, `before` and `after`, and messages with their headers.
        pieces = sum(count * (5 + 2 * read) for count, read in zip(counts, reads, strict=True))
        threads = 1 + sum(counts)
        return Needs(threads=threads, parts=("question",), pieces=-(-pieces // threads))

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens or (0,)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(self._end),)

    def own_state(self) -> Turn:
        found = self.reasoning.start() if self.reasoning else ()
        return Turn(found, jnp.int32(0), jnp.int32(-1 if self.reasoning else 0), jnp.int32(0))

    def begin(self, book: Book) -> Book:
        """The root reads the prompt up to the end of the question; the last token of the prompt is left to its children."""
        return verbs.open_reader_to(book, verbs.end_of_part(book, 0), self.drained)

    def observe(self, shared: Any, own: Turn, drawn: Drawn) -> tuple[Turn, Int[Array, ""], Int[Array, ""]]:
        own = dataclasses.replace(own, said=own.said + 1)
        if self.reasoning:
            found, met = self.reasoning.step(own.found, drawn.token)
            own = dataclasses.replace(own, found=found, reasoned=jnp.where(met > 0, own.said, own.reasoned))
        return own, drawn.token, (drawn.token == self.end).astype(jnp.int32)

    def _end(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        reasoned = book.threads.own.reasoned >= 0
        return ends.close(book, mask, jnp.where(reasoned, int(Stop.END), int(Stop.MALFORMED)))

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        return self._next(book, thread, jnp.zeros_like(books.numbers(book), bool))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        over = book.threads.own.rounds[thread] == len(self.rounds)
        ended = ends.close(book, thread, jnp.int32(Stop.END))
        return books.choose(over, ended, self._next(book, thread, books.awaited(book, thread)))

    def _next(self, book: Book, root: Int[Array, ""], before: Bool[Array, "M"]) -> Book:
        """Fork the next round, which reads the threads of the round `before`."""
        own, place = book.threads.own, book.threads.own.rounds[root]
        count, _, template = (jnp.array(column, jnp.int32)[place] for column in _columns(self.rounds))
        length = own.said - own.reasoned - (book.threads.stop == Stop.END)
        tells = before & (own.reasoned >= 0) & (length > 0)
        picked = self._picked(book, root, place, jnp.sum(tells, dtype=jnp.int32))
        shares = (self.phrases.each("before", template)[1] == 0) | ~jnp.any(picked >= 0)
        teller, start = verbs.in_order(book, tells)[picked], book.threads.cursor.length - own.said + own.reasoned
        book = books.open_children(book, root, count)
        born = books.opened(book, root)
        book = self._say(book, born, template, shares, (teller, start[teller], length[teller], picked >= 0))
        book = book.update_own(books.numbers(book) == root, rounds=place + 1)
        limit = book.request.child_max_tokens
        unlimited = (place == len(self.rounds) - 1) | (limit == 0)
        budget = jnp.where(unlimited, book.request.max_tokens, limit)
        return fork(book, root, born, context=jnp.where(born & shares, root, NOBODY), budget=budget)

    def _say(
        self,
        book: Book,
        born: Bool[Array, "M"],
        template: Int[Array, ""],
        shares: Bool[Array, ""],
        told: tuple[Int[Array, "W K"], Int[Array, "W K"], Int[Array, "W K"], Bool[Array, "W K"]],
    ) -> Book:
        """Feed each of a round's threads the prompt, and in it what it reads.

        Args:
            shares: they go on from the root, and need only what follows the question.
            told: the messages, of W threads K each: whose they are, from where on in its log, of what length, and whether they are
                read at all.
        """
        end, (teller, start, length, read) = verbs.end_of_part(book, 0), told
        begin = jnp.minimum(verbs.part(book, 0)[0], end)
        before, after = (self.phrases.each(name, template) for name in ("before", "after"))
        header = self.phrases.each("header", template * self.most + jnp.arange(self.most))

        def row(head, headers, spans, tail):
            """[W, 5 + 2 K]: of each thread's pieces those before the messages, the messages with their headers, what follows."""
            pairs = jnp.stack(jnp.broadcast_arrays(headers, spans), axis=2).reshape(self.readers, -1)
            ends = [jnp.broadcast_to(jnp.stack(jnp.broadcast_arrays(*x)), (self.readers, len(x))) for x in (head, tail)]
            return jnp.concatenate([ends[0], pairs, ends[1]], axis=1)

        kinds = (jnp.int32(books.TEMPLATE), jnp.full_like(teller, books.SPAN))
        kind = row((books.PROMPT, books.TEMPLATE, books.PROMPT), *kinds, (books.TEMPLATE, books.PROMPT))
        thread = row((0, 0, 0), jnp.int32(0), teller, (0, 0))
        first = row((0, before[0], begin), header[0], start, (after[0], end))
        many = row((begin, before[1], end - begin), header[1], length, (after[1], book.prompt_length - end))
        said = row((~shares, ~shares, ~shares), read, read, (jnp.any(read), jnp.bool(True)))
        to = jnp.broadcast_to(verbs.in_order(book, born)[: self.readers, None], kind.shape)
        valid = said & (many > 0) & (jnp.arange(self.readers) < jnp.sum(born))[:, None]
        flat = (array.reshape(-1).astype(jnp.int32) for array in (to, kind, thread, first, many))
        return messages.compose(book, *flat, valid.reshape(-1))

    @property
    def readers(self) -> int:
        """Threads of a round, at most."""
        return max(each.threads for each in self.rounds)

    def _picked(
        self, book: Book, root: Int[Array, ""], place: Int[Array, ""], told: Int[Array, ""]
    ) -> Int[Array, "W K"]:
        """Which of the messages each thread of a round reads, in which order: places among them, -1 for none.

        Args:
            place: number of the round.
            told: how many messages there are.
        """
        key = jax.random.wrap_key_data(books.stream(book, root, place), impl=books.RANDOM)
        chance = jax.random.uniform(key, (self.readers, self.readers), jnp.float32)
        message = jnp.arange(self.readers)
        reads = jnp.minimum(jnp.array(_columns(self.rounds)[1])[place], told)
        drawn = jnp.argsort(jnp.where(message < told, chance, 2.0), axis=1, stable=True)
        drawn = jnp.where(message < reads, drawn, self.readers)
        if not self.shuffled:
            drawn = jnp.sort(drawn, axis=1)
        return jnp.where(drawn < self.readers, drawn, -1)[:, : self.most].astype(jnp.int32)


def most_read(rounds: Sequence[Round]) -> int:
    """How many messages a thread reads, at most; ValueError if there is no round that could read any."""
    if len(rounds) < 2:
        raise ValueError(f"rounds.rounds has {len(rounds)}; at least 2 are needed, or nothing is read")
    return max(_columns(rounds)[1])


def _columns(rounds: Sequence[Round]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Threads, messages read and template of each round."""
    counts = tuple(each.threads for each in rounds)
    reads = [min(each.reads or told, told) for each, told in zip(rounds, (0, *counts), strict=False)]
    return counts, tuple(reads), tuple(each.template for each in rounds)
