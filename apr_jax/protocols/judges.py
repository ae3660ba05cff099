"""Judges: how a search values its candidates, by threads that go on from them or by what they are themselves.

Values are whole numbers of 1 / UNITS, so that they are the same in whatever rows they were computed. A judge of several threads
adds up what they found. In a round of a judged search (`Judged`) candidates are forked and awaited, then the judge's threads.
"""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, forks
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.needs import Needs
from apr_jax.decode.problem import whole
from apr_jax.decode.protocol import Drawn
from apr_jax.decode.recogniser import Recogniser
from apr_jax.decode.signals import BestMean, Logprobs, Signal
from apr_jax.protocols import verbs
from apr_jax.protocols.steps import Beam, StepSearch
from apr_jax.record import Stop


@pytree
class Thought(Beam):
    """What a thread knows of the beam that it is the last step of, in a search with a judge.

    Attributes:
        ended: it has sampled the end of an answer.
        value: of a candidate, and what a thread of the judge found.
        judges: it is a thread of the judge.
        asks: of the root: it waits for the judge.
        note: what the judge noted of the tokens that it sampled.
    """

    ended: Bool[Array, ""]
    value: Int[Array, ""]
    judges: Bool[Array, ""]
    asks: Bool[Array, ""]
    note: Any


class Judge(abc.ABC):
    """Implementations are frozen dataclasses; static.

    Attributes:
        threads: of each candidate; 0: the candidate itself is looked at.
        ask: ids that they are fed; none: they go on from the candidate's last token.
        quotes: they are fed the step token that ended the candidate, before `ask`; never the end of an answer.
        rolls: they take the candidate's beam further, to the end of an answer. Finished candidates need none.
        reads: they go on from the prompt, and read all candidates that stand (`tell`); `threads` is then their number in all.
        samples: they sample.
        tokens: that each of them may sample.
        signals: that the judge reads.
    """

    threads: int = 1
    ask: tuple[int, ...] = ()
    quotes: bool = True
    rolls: bool = False
    reads: bool = False
    samples: bool = True
    tokens: int = 0
    signals: tuple[Signal, ...] = ()

    def note(self) -> Any:
        """What it notes of a beam that has sampled nothing."""
        return ()

    def look(self, note: Any, token: Int[Array, ""]) -> Any:
        """The note after one more sampled token."""
        return note

    def found(self, note: Any) -> Bool[Array, ""]:
        """Whether a thread of its own has found what it looked for, and ends."""
        return jnp.bool(False)

    def pieces(self, steps: int) -> int:
        """Pieces of the message of one of its threads, in a search of so many steps."""
        return 1

    def tell(self, book: Book, born: Bool[Array, "M"], steps: int) -> Book:
        """Feed threads of its own what they are asked, in a search of so many steps."""
        number = books.numbers(book)
        return verbs.say(book, number, (books.TEMPLATE,), number, (number * 0,), (len(self.ask),), born)

    def credit(self, book: Book, told: Bool[Array, "M"]) -> Book:
        """Give the candidates the values that its threads `told` have found."""
        own, place = book.threads.own, jnp.where(told, book.threads.line.follows, told.shape[0])
        asked = jnp.zeros_like(told).at[place].set(True, mode="drop")
        return book.update_own(asked, value=jnp.zeros_like(own.value).at[place].add(own.value, mode="drop"))

    @abc.abstractmethod
    def value(self, own: Thought, signals: Float[Array, "*M n"]) -> Int[Array, "*M"]:
        """What threads of its own, or candidates that it looks at themselves, are worth.

        Args:
            signals: of the last row that each of them computed.
        """


@dataclasses.dataclass(frozen=True)
class Likelihood(Judge):
    """A candidate is worth the mean log-probability of the tokens that its beam sampled."""

    threads = 0

    def value(self, own: Thought, signals: Float[Array, "*M n"]) -> Int[Array, "*M"]:
        return own.total // jnp.maximum(own.count, 1)


@dataclasses.dataclass(frozen=True)
class Asked(Judge):
    """A probe reads the log-probability of a word in its last row, and samples nothing.

    Attributes:
        says: ids of the words of which one speaks for a thought; none: the likeliest token, whichever it is.
    """

    ask: tuple[int, ...] = ()
    says: tuple[int, ...] = ()
    quotes: bool = True
    samples = False

    def __post_init__(self):
        if not self.ask:
            raise ValueError("asked.ask is empty; a probe is fed at least 1 token")

    @property
    def signals(self) -> tuple[Signal, ...]:
        # BestMean(1) is minus the log-probability of the likeliest token.
        return (Logprobs(self.says) if self.says else BestMean(1),)

    def value(self, own: Thought, signals: Float[Array, "*M n"]) -> Int[Array, "*M"]:
        signal = signals[..., 0]
        return verbs.in_units(signal if self.says else -signal)


@pytree
class Label:
    """How far the recogniser has come, and the number of the first label that was said, -1 for none."""

    at: Any
    label: Int[Array, ""]

    def on(self, labels: Recogniser, token: Int[Array, ""]) -> "Label":
        """After one more token."""
        at, met = labels.step(self.at, token)
        return Label(at, jnp.where((self.label < 0) & (met > 0), met - 1, self.label))


@dataclasses.dataclass(frozen=True)
class Labelled(Judge):
    """Its threads say what they think in words; each is worth the number of the first label that it says, nothing without one.

    Attributes:
        labels: of `Recogniser`, the words ("sure", "likely", "impossible").
        numbers: what each is worth.
    """

    labels: Recogniser
    numbers: tuple[float, ...]
    ask: tuple[int, ...] = ()
    threads: int = 3
    tokens: int = 16
    quotes: bool = True

    def __post_init__(self):
        if not self.ask:
            raise ValueError("labelled.ask is empty; threads of a judge are fed at least 1 token")
        for name in ("threads", "tokens"):
            whole(f"labelled.{name}", getattr(self, name), 1)
        if len(self.numbers) != len(self.labels.phrases):
            raise ValueError(
                f"labelled.numbers has {len(self.numbers)}; each of the {len(self.labels.phrases)} labels needs one"
            )

    def note(self) -> Label:
        return Label(self.labels.start(), jnp.int32(-1))

    def look(self, note: Label, token: Int[Array, ""]) -> Label:
        return note.on(self.labels, token)

    def found(self, note: Label) -> Bool[Array, ""]:
        return note.label >= 0

    def value(self, own: Thought, signals: Float[Array, "*M n"]) -> Int[Array, "*M"]:
        worth = verbs.in_units(jnp.array((*self.numbers, 0.0)))
        return worth[own.note.label]  # -1 is the last


@dataclasses.dataclass(frozen=True)
class Rollout(Judge):
    """One thread goes on to the end of an answer.

    Attributes:
        says: an answer that ended in time is worth 1 if one of these ids was sampled in it, else 0; none: it is worth the mean
            log-probability of all that was sampled.
    """

    says: tuple[int, ...] = ()
    rolls = True

    def note(self) -> Bool[Array, ""]:
        return jnp.bool(False)

    def look(self, note: Bool[Array, ""], token: Int[Array, ""]) -> Bool[Array, ""]:
        return note | jnp.any(token == jnp.array(self.says, jnp.int32)) if self.says else note

    def value(self, own: Thought, signals: Float[Array, "*M n"]) -> Int[Array, "*M"]:
        if self.says:
            return jnp.where(own.note & own.ended, verbs.UNITS, 0)
        return own.total // jnp.maximum(own.count, 1)


@dataclasses.dataclass(frozen=True)
class Judged(StepSearch):
    """A search whose candidates have values.

    Attributes:
        judge: that values them.
    """

    judge: Judge = Likelihood()

    @abc.abstractmethod
    def decide(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The candidates that have just arrived have values: go on from some, or end."""

    @property
    def needs(self) -> Needs:
        asked = self.judge.threads * (1 if self.judge.reads else self.candidates)
        return dataclasses.replace(
            super().needs, threads=1 + self.candidates + asked, signals=self.judge.signals, pieces=self._pieces
        )

    @property
    def _pieces(self) -> int:
        """Pieces of messages a thread."""
        judge = self.judge
        # A round has the judge's threads and as many candidates as are forked from one beam, or more.
        several = judge.threads * judge.pieces(self.steps) + self.width
        return max(Needs().pieces, -(-several // (judge.threads + self.width)))

    @property
    def templates(self) -> tuple[int, ...]:
        return self.judge.ask or (0,)

    @property
    def inherited(self) -> tuple[str, ...]:
        return (*super().inherited, "note") if self.judge.rolls else super().inherited

    def own_state(self) -> Thought:
        zero, no = jnp.int32(0), jnp.bool(False)
        return Thought(**vars(super().own_state()), ended=no, value=zero, judges=no, asks=no, note=self.judge.note())

    def observe(self, shared: Any, own: Thought, drawn: Drawn) -> tuple[Thought, Int[Array, ""], Int[Array, ""]]:
        own, token, event = super().observe(shared, own, drawn)
        own = dataclasses.replace(own, ended=drawn.token == self.end, note=self.judge.look(own.note, drawn.token))
        found = own.judges & self.judge.found(own.note)
        return own, token, jnp.where(found, 1, event)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The root has read the prompt, or a thread of the judge its question."""
        begun = super().drained(book, thread)
        if self.judge.samples:
            return begun
        return books.choose(book.threads.own.judges[thread], ends.close(book, thread, jnp.int32(Stop.END)), begun)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Candidates have arrived, or the judge's threads have."""
        asks = book.threads.own.asks[thread]
        arrived = self.arrive(book, thread)
        looked_at = self._look_at(arrived, books.awaited(arrived, thread))
        if not self.judge.threads:
            return self.decide(looked_at, thread)
        asked = books.awaited(looked_at, thread) & looked_at.threads.own.candidate
        if self.judge.rolls:
            asked &= ~looked_at.threads.own.finished
        decided = self.decide(books.choose(asks, self._told(book, thread), looked_at), thread)
        return books.choose(~asks & jnp.any(asked), self._ask(looked_at, thread, asked), decided)

    def _look_at(self, book: Book, who: Bool[Array, "M"]) -> Book:
        """Threads are worth what the judge sees in them."""
        return book.update_own(who, value=self.judge.value(book.threads.own, book.threads.drawn.signals))

    def _ask(self, book: Book, thread: Int[Array, ""], asked: Bool[Array, "M"]) -> Book:
        """Fork the judge's threads, in turns from the candidates `asked`."""
        number, count = books.numbers(book), jnp.sum(asked, dtype=jnp.int32) * self.judge.threads
        if self.judge.reads:
            count = jnp.int32(self.judge.threads)
        book, first = book.update_own(number == thread, asks=True), book.used
        if self.judge.rolls:
            rolling = self.go_on(book, thread, asked, count, last=True)
            return rolling.update_own((number >= first) & (number < rolling.used), judges=True)
        book = books.open_children(book, thread, count)
        born = books.opened(book, thread)
        book = self.judge.tell(book, born, self.steps)
        context = thread if self.judge.reads else self.contexts(book, born, asked)
        hand = (self.judge.quotes and not self.judge.reads) & ~book.threads.own.finished[jnp.maximum(context, 0)]
        options = (
            dict(samples=self.judge.samples, budget=self.judge.tokens) if self.judge.samples else dict(samples=False)
        )
        return forks.fork(
            book.update_own(born, final=True, judges=True), thread, born, context=context, hand=hand, **options
        )

    def _told(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The candidates have the values that the judge's threads found."""
        told = books.awaited(book, thread) & book.threads.own.judges
        cut = told & (book.threads.stop != Stop.END)
        credited = self.judge.credit(self._look_at(book.update_own(cut, finished=True), told), told)
        return credited.update_own(books.numbers(book) == thread, asks=False)
