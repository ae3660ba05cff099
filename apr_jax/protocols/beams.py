"""Beams: searches that keep the best candidates of each round, and go on from these; see `apr_jax.protocols.steps`."""

import abc
import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book
from apr_jax.decode.problem import one_of
from apr_jax.protocols import verbs
from apr_jax.protocols.steps import Beam, StepSearch
from apr_jax.record import Stop

Finished = Literal["compete", "leave"]


@dataclasses.dataclass(frozen=True)
class Beams(StepSearch):
    """What ranks beams is `merit`.

    Attributes:
        beams: kept in each round.
        subtrees: parts of the beams that do not compete with each other.
        finished: whether a finished beam competes with the others for its place, or leaves it to them.
    """

    beams: int = 4
    subtrees: int = 1
    finished: Finished = "compete"

    def __post_init__(self):
        super().__post_init__()
        self._least("beams", "subtrees")
        one_of(f"{self.name}.finished", self.finished, get_args(Finished))
        if self.beams % self.subtrees:
            raise ValueError(
                f"{self.name}.beams is {self.beams}; it must be a multiple of subtrees, {self.subtrees}: each keeps as many"
            )
        if self.finished == "leave" and self.subtrees > 1:
            raise ValueError(
                f"{self.name}.finished is 'leave'; with {self.subtrees} subtrees only 'compete' has a meaning"
            )

    @abc.abstractmethod
    def merit(self, own: Beam) -> Float[Array, "M"]:
        """What beams are ranked by, the larger the better."""

    @property
    def candidates(self) -> int:
        return self.beams * self.width

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        first = super().drained(book, thread)
        return first.update_own(first.threads.own.steps == 1, tree=first.threads.line.ordinal % self.subtrees)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return self.expand(self.keep(self.arrive(book, thread)), thread)

    def keep(self, book: Book) -> Book:
        """Choose among the candidates; those kept get a place."""
        own, ordinal = book.threads.own, book.threads.line.ordinal
        candidates, merit, tree = own.candidate, self.merit(own), own.tree
        nothing = jnp.zeros_like(merit)
        if self.finished == "leave":
            done = candidates & own.finished
            kept = done & (verbs.ranks(done, nothing, ordinal) < self.candidates)
            left = candidates & ~own.finished
            kept |= left & (verbs.ranks(left, merit, ordinal) < self.beams)
        else:
            kept = candidates & (verbs.ranks(candidates, merit, ordinal, tree) < self.beams // self.subtrees)
        place = jnp.where(kept, verbs.ranks(kept, merit, ordinal), -1)
        return book.update_own(jnp.ones_like(kept), candidate=kept & own.finished, place=place)

    def expand(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Fork the next step of all beams kept that are not finished, or end; what nobody goes on from is released."""
        own, done = book.threads.own, book.threads.bond.held
        going = (own.place >= 0) & ~own.finished
        many = jnp.sum(going, dtype=jnp.int32)
        count = jnp.where(many > 0, self.candidates, 0) if self.finished == "leave" else many * self.width
        ended = ends.close(book, thread, jnp.int32(Stop.END))
        return ends.release(books.choose(many > 0, self.go_on(book, thread, going, count), ended), done)
