"""Outlines of two kinds: subtasks, all of which are needed, and trials, one of which may be enough (Parason, Zhang et al., August
2026, whose client is ThreadWeaver's).

1. A list may hold `<Subtask>`, `<Trial>` and, for a subtask, `<Outline>`; each becomes a thread (`apr_jax.protocols.outlined`).
2. The parent waits for all subtasks. What it waits for and reads of the trials is the choice `read`:

    all     all of them, as in the released client
    first   the first that succeeds: one that closed in good order and named an answer, if there is a word for answers
    vote    one that named the answer of the majority, the first listed of these, as soon as no other answer can win

3. Trials that are not needed any more are killed; subtasks never are. If no trial succeeds all are read.
4. Ends count by clock, those of one clock in the order of the list; only the trials of a list keep pace with each other.

An answer is what stands between the word for it and the character that ends it. Answers are equal if their bytes are, but for white
space around them. A trial that broke off fails, and ends its parent only if that reads it.
"""

import dataclasses
from typing import ClassVar, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode import races
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.needs import Needs
from apr_jax.decode.problem import one_of
from apr_jax.decode.threads import FINISHED
from apr_jax.protocols import verbs
from apr_jax.protocols.outlined import Outlined, Outlines
from apr_jax.record import Stop

Read = Literal["all", "first", "vote"]


@pytree
class Trial(Outlines):
    """What a thread remembers, and

    Attributes:
        trials: Bool [most]; which of its outlines are trials.
        trial: it is a trial itself.
        answered, answer: whether it has named an answer, and the hash of the last one.
    """

    trials: Bool[Array, "most"]
    trial: Bool[Array, ""]
    answered: Bool[Array, ""]
    answer: UInt32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Trials(Outlined):
    """Attributes: as of `Outlined`, and

    read: what the parent reads of the trials.

    The recogniser has the phrases `subtask` and `trial` beside `outline`, and it may have `answer`, which captures one.
    """

    ITEMS: ClassVar[tuple[str, ...]] = ("outline", "subtask", "trial")
    WORDS: ClassVar[tuple[str, ...]] = ("outlines", "fork", "close", *ITEMS)

    read: Read = "all"

    def __post_init__(self):
        super().__post_init__()
        one_of("trials.read", self.read, get_args(Read))
        if self.stitches:
            raise ValueError(f"trials.join is {self.join}; trials are re-encoded, join must be reencode")
        if self.read == "vote" and not self.answers:
            raise ValueError("trials.read is vote; the recogniser needs a phrase answer, for what trials vote for")

    @property
    def answers(self) -> bool:
        """Whether there is a word for answers."""
        return any(phrase.name == "answer" for phrase in self.recogniser.phrases)

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, races=self.read != "all")

    def own_state(self) -> Trial:
        plain, no = super().own_state(), jnp.bool(False)
        fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        return Trial(**fields, trials=jnp.zeros(self.most, bool), trial=no, answered=no, answer=jnp.uint32(0))

    def _take(self, own: Trial, met: Int[Array, ""], ends: Bool[Array, ""]) -> tuple[Trial, Int[Array, ""]]:
        new, event = super()._take(own, met, ends)
        tries = met == self.recogniser.captured_event("trial")
        added = (new.count > own.count) & (jnp.arange(self.most) == own.count)
        new = dataclasses.replace(new, trials=jnp.where(added, tries, own.trials))
        if not self.answers:
            return new, event
        answers = (met == self.recogniser.captured_event("answer")) & (own.depth > 0)
        answer = jnp.where(answers, own.found.captured.hash, own.answer)
        return dataclasses.replace(new, answered=own.answered | answers, answer=answer), event

    def _start(self, book: Book, thread: Int[Array, ""]) -> Book:
        trials, started = book.threads.own.trials[thread], super()._start(book, thread)
        born = books.awaited(started, thread)
        tries = born & trials[books.place_among(started, born)]
        started = started.update_own(tries, trial=True)
        if self.read == "all":
            return started
        raced = races.start(started, tries, enough=jnp.sum(tries))
        return books.choose(jnp.any(tries), raced, started)

    def _succeeded(self, book: Book) -> Bool[Array, "M"]:
        """Trials that have closed in good order, with an answer if there is a word for it, whether they are decided or not."""
        threads, named = book.threads, book.threads.own.answered | (not self.answers)
        return threads.own.trial & (threads.stop == Stop.END) & named

    def suffices(self, book: Book, thread: Int[Array, ""]) -> Bool[Array, ""]:
        threads = book.threads
        members = threads.pace.race == threads.pace.race[thread]
        ended = members & ((threads.status == FINISHED) | races.flushing(book) | (books.numbers(book) == thread))
        succeeded = ended & self._succeeded(book)
        if self.read == "first":
            return succeeded[thread]
        _, votes, second = verbs.leading(succeeded, threads.own.answer)
        return votes > second + jnp.sum(members & ~ended)

    def _read_of(self, book: Book, born: Bool[Array, "M"]) -> Bool[Array, "M"]:
        if self.read == "all":
            return born
        succeeded = born & self._succeeded(book)
        leader = verbs.leading(succeeded, book.threads.own.answer)[0]
        best = succeeded if self.read == "first" else books.numbers(book) == leader
        return born & (~book.threads.own.trial | best | ~jnp.any(succeeded))
