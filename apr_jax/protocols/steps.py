"""Searches over the steps of a line of reasoning, in rounds under a coordinator: what beams and trees share.

The root, which only reads the prompt, forks candidates. Each samples one step, which is a thread of its own: up to a step token,
or to the end of its answer. When all have ended (the join is the barrier) the protocol decides from which of them to go on; the
root forks the next candidates from those, which see them and are handed their unfed last token. Nothing is copied: a beam is the
chain of threads that its last one follows (`ThreadRecord.follows`).
"""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax import settings
from apr_jax.decode import book as books
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.protocols import verbs
from apr_jax.record import Stop


@pytree
class Beam:
    """What a thread knows of the beam that it is the last step of; means nothing for the root.

    Attributes:
        total, count: log-probability, in units, and number of the tokens that the whole beam sampled.
        step_total, step_count: the same of its last step.
        hash: of the tokens that the whole beam sampled.
        tree: the subtree that it stands in.
        final: its step is the last one: step tokens do not end it.
        finished: nothing follows it: its answer has ended, or its budget.
        candidate: it stands for selection.
        place: its rank among the beams that were kept last, 0 the best; -1: it is none of them.
        steps: of the whole beam.
    """

    total: Int[Array, ""]
    count: Int[Array, ""]
    step_total: Int[Array, ""]
    step_count: Int[Array, ""]
    hash: UInt32[Array, ""]
    tree: Int[Array, ""]
    final: Bool[Array, ""]
    finished: Bool[Array, ""]
    candidate: Bool[Array, ""]
    place: Int[Array, ""]
    steps: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class StepSearch(Protocol):
    """Token ids, and the choices of a search.

    A beam may sample `max_tokens` of its problem, one step of it `child_max_tokens`, if that is not 0, but for the last step.

    Attributes:
        end: ends an answer.
        step_ends: tokens that end a step; they belong to it.
        width: candidates that are forked from each beam that the search goes on from.
        steps: of a beam, at most.
        distinct: candidates that say the same as others of their subtree are left out, but for the first by path.
    """

    end: int
    step_ends: tuple[int, ...]
    width: int = 4
    steps: int = 40
    distinct: bool = False

    def __post_init__(self):
        self._least("width", "steps")
        if self.end in self.step_ends:
            raise ValueError(f"{self.name}.step_ends holds the id {self.end}, which is end; a step is not an answer")

    @property
    def name(self) -> str:
        """What messages call it."""
        return settings.class_name(self)

    def _least(self, *fields: str) -> None:
        """Refuse fields below 1."""
        for field in fields:
            if getattr(self, field) < 1:
                raise ValueError(f"{self.name}.{field} is {getattr(self, field)}; at least 1 is needed")

    @property
    @abc.abstractmethod
    def candidates(self) -> int:
        """Threads that are forked in a round, at most, and in the first one."""

    @property
    def needs(self) -> Needs:
        return Needs(threads=1 + self.candidates, recorded=True)

    @property
    def inherited(self) -> tuple[str, ...]:
        """What a candidate takes over from the beam that it goes on from."""
        return ("total", "count", "hash", "tree")

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(verbs.end),)

    def own_state(self) -> Beam:
        zero, no = jnp.int32(0), jnp.bool(False)
        return Beam(zero, zero, zero, zero, jnp.uint32(0), zero, no, no, no, jnp.int32(-1), zero)

    def begin(self, book: Book) -> Book:
        return verbs.open_reader(book, self.drained)

    def observe(self, shared: Any, own: Beam, drawn: Drawn) -> tuple[Beam, Int[Array, ""], Int[Array, ""]]:
        units = verbs.in_units(drawn.logprob)
        ended = drawn.token == self.end
        stepped = jnp.any(drawn.token == jnp.array(self.step_ends, jnp.int32)) & ~own.final
        own = dataclasses.replace(
            own,
            total=own.total + units,
            count=own.count + 1,
            step_total=own.step_total + units,
            step_count=own.step_count + 1,
            hash=verbs.hash_on(own.hash, drawn.token),
            finished=ended,
        )
        return own, drawn.token, (ended | stepped).astype(jnp.int32)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The prompt is fed: the first round goes on from it."""
        book = books.open_children(book, thread, self.candidates)
        born = books.opened(book, thread)
        return self.fork(verbs.last_of_prompt(book, born).update_own(born, steps=1), thread, born, context=thread)

    def arrive(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Those that have ended their steps stand for selection, where they must be distinct but for copies of others."""
        own, arrived, ordinal = book.threads.own, books.awaited(book, thread), book.threads.line.ordinal
        cut = (book.threads.stop != Stop.END) | (own.count >= book.request.max_tokens)
        stands = arrived
        if self.distinct:
            copies = (own.candidate | arrived) & (ordinal < ordinal[:, None])
            for column in (own.hash, own.count, own.tree):
                copies &= column == column[:, None]
            stands &= ~jnp.any(copies, axis=1)
        return book.update_own(arrived, candidate=stands, finished=own.finished | cut)

    def go_on(
        self, book: Book, thread: Int[Array, ""], going: Bool[Array, "M"], count: Int[Array, ""], last: bool = False
    ) -> Book:
        """Fork `count` candidates that go on from the beams that end with the threads `going`, in turns.

        Args:
            going: held threads that are not released.
            last: their step is the last one of the beam, however many there were.
        """
        book = books.open_children(book, thread, count)
        born = books.opened(book, thread)
        context = self.contexts(book, born, going)
        own = book.threads.own
        inherited = {name: getattr(own, name)[context] for name in self.inherited}
        book = book.update_own(born, **inherited, steps=self.steps if last else own.steps[context] + 1)
        return self.fork(book, thread, born, context=context, hand=True)

    def contexts(self, book: Book, born: Bool[Array, "M"], going: Bool[Array, "M"]) -> Int[Array, "M"]:
        """For each of the children `born` the thread that it goes on from: those of `going` in turns."""
        turn = books.place_among(book, born) % jnp.maximum(jnp.sum(going), 1)
        return jnp.where(born, verbs.in_order(book, going)[turn], books.NOBODY)

    def fork(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"], **options: Any) -> Book:
        """Start candidates, each with what is left of its beam's budget and of a step's."""
        own, limit = book.threads.own, book.request.child_max_tokens
        final, left = own.steps >= self.steps, book.request.max_tokens - own.count
        budget = jnp.where(final | (limit == 0), left, jnp.minimum(left, limit))
        return fork(book.update_own(born, final=final), thread, born, held=True, budget=budget, **options)
