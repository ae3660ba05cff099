"""Searches over the steps of a line of reasoning, in rounds under a coordinator: what beam search and tree of thoughts share.

The root, which only reads the prompt, forks candidates. Each samples one step, which is a thread of its own: up to a step token,
or to the end of its answer. When all have ended (the join is the barrier) the protocol ranks them and keeps the best; the root
forks the next candidates from those, which see them and are handed their unfed last token. Nothing is copied: a beam is the chain
of threads that its last one follows (`ThreadRecord.follows`).
"""

import abc
import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax import settings
from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.problem import one_of
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.protocols import verbs
from apr_jax.record import Stop

Finished = Literal["compete", "leave"]

# Log-probabilities are summed in whole units of 1 / UNITS nat, so that copies of a beam tie, in whatever rows they were computed.
UNITS = 1024


@pytree
class Beam:
    """What a thread knows of the beam that it is the last step of; of the root only `rounds` has a meaning.

    Attributes:
        total, count: log-probability, in units, and number of the tokens that the whole beam sampled.
        step_total, step_count: the same of its last step.
        hash: of the tokens that the whole beam sampled.
        tree: the subtree that it stands in.
        final: its step is the last one: step tokens do not end it.
        finished: nothing follows it: its answer has ended, or its budget.
        candidate: it stands for selection.
        place: its rank among the beams that were kept last, 0 the best; -1: it is none of them.
        rounds: steps that were forked.
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
    rounds: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class StepSearch(Protocol):
    """Token ids, and the choices of a search. What ranks beams is `merit`.

    A beam may sample `max_tokens` of its problem, one step of it `child_max_tokens`, if that is not 0, but for the last step.

    Attributes:
        end: ends an answer.
        step_ends: tokens that end a step; they belong to it.
        beams: kept in each round.
        width: candidates that each of them forks.
        subtrees: parts of the beams that do not compete with each other.
        steps: rounds at most.
        finished: whether a finished beam competes with the others for its place, or leaves it to them.
        distinct: of candidates of one subtree that say the same only the first, by path, may be kept.
    """

    end: int
    step_ends: tuple[int, ...]
    beams: int = 4
    width: int = 4
    subtrees: int = 1
    steps: int = 40
    finished: Finished = "compete"
    distinct: bool = False

    def __post_init__(self):
        for field in ("beams", "width", "subtrees", "steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{self.name}.{field} is {getattr(self, field)}; at least 1 is needed")
        one_of(f"{self.name}.finished", self.finished, get_args(Finished))
        if self.beams % self.subtrees:
            raise ValueError(
                f"{self.name}.beams is {self.beams}; it must be a multiple of subtrees, {self.subtrees}: each keeps as many"
            )
        if self.finished == "leave" and self.subtrees > 1:
            raise ValueError(
                f"{self.name}.finished is 'leave'; with {self.subtrees} subtrees only 'compete' has a meaning"
            )
        if self.end in self.step_ends:
            raise ValueError(f"{self.name}.step_ends holds the id {self.end}, which is end; a step is not an answer")

    @property
    def name(self) -> str:
        """What messages call it."""
        return settings.class_name(self)

    @abc.abstractmethod
    def merit(self, own: Beam) -> Float[Array, "M"]:
        """What beams are ranked by, the larger the better."""

    @property
    def candidates(self) -> int:
        """Threads that are forked in a round, at most."""
        return self.beams * self.width

    @property
    def needs(self) -> Needs:
        return Needs(threads=1 + self.candidates, recorded=True)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(verbs.end),)

    def own_state(self) -> Beam:
        zero, no = jnp.int32(0), jnp.bool(False)
        return Beam(zero, zero, zero, zero, jnp.uint32(0), zero, no, no, no, jnp.int32(-1), zero)

    def begin(self, book: Book) -> Book:
        return verbs.open_reader(book, self.drained)

    def observe(self, shared: Any, own: Beam, drawn: Drawn) -> tuple[Beam, Int[Array, ""], Int[Array, ""]]:
        units = jnp.round(drawn.logprob * UNITS).astype(jnp.int32)
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
        book = book.update_own(born, tree=book.threads.line.ordinal % self.subtrees)
        return self._fork(verbs.last_of_prompt(book, born), thread, born, context=thread)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return self.expand(self.keep(self.arrive(book, thread)), thread)

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

    def keep(self, book: Book) -> Book:
        """Choose among the candidates; those kept get a place."""
        own, ordinal = book.threads.own, book.threads.line.ordinal
        candidates, merit, tree = own.candidate, self.merit(own), own.tree
        nothing = jnp.zeros_like(merit)
        if self.finished == "leave":
            done = candidates & own.finished
            kept = done & (_ranks(done, nothing, ordinal) < self.candidates)
            left = candidates & ~own.finished
            kept |= left & (_ranks(left, merit, ordinal) < self.beams)
        else:
            kept = candidates & (_ranks(candidates, merit, ordinal, tree) < self.beams // self.subtrees)
        place = jnp.where(kept, _ranks(kept, merit, ordinal), -1)
        return book.update_own(jnp.ones_like(kept), candidate=kept & own.finished, place=place)

    def expand(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Fork the next step of all beams kept that are not finished, or end; what nobody goes on from is released."""
        own, done = book.threads.own, book.threads.bond.held
        going = (own.place >= 0) & ~own.finished
        many = jnp.sum(going, dtype=jnp.int32)
        count = jnp.where(many > 0, self.candidates, 0) if self.finished == "leave" else many * self.width
        opened = books.open_children(book, thread, count)
        born = books.opened(opened, thread)
        turn = books.place_among(opened, born) % jnp.maximum(many, 1)
        context = jnp.where(born, verbs.in_order(book, going)[turn], books.NOBODY)
        mother = jax.tree.map(lambda column: column[jnp.maximum(context, 0)], own)
        inherited = {name: getattr(mother, name) for name in ("total", "count", "hash", "tree")}
        forked = self._fork(opened.update_own(born, **inherited), thread, born, context=context, hand=True)
        ended = ends.close(book, thread, jnp.int32(Stop.END))
        return ends.release(books.choose(many > 0, forked, ended), done)

    def _fork(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"], **options: Any) -> Book:
        """Start candidates, each with what is left of its beam's budget and of a step's."""
        request, own, rounds = book.request, book.threads.own, book.threads.own.rounds[thread] + 1
        final = rounds >= self.steps
        left = request.max_tokens - own.count
        limit = request.child_max_tokens
        budget = jnp.where(final | (limit == 0), left, jnp.minimum(left, limit))
        book = book.update_own(born, final=final).update_own(books.numbers(book) == thread, rounds=rounds)
        return fork(book, thread, born, held=True, budget=budget, **options)


def _ranks(
    among: Bool[Array, "M"], merit: Float[Array, "M"], ordinal: Int[Array, "M"], tree: Int[Array, "M"] | None = None
) -> Int[Array, "M"]:
    """For each thread how many of the others, of its tree if there are trees, come before it: by merit, then by path."""
    before = (merit > merit[:, None]) | ((merit == merit[:, None]) & (ordinal < ordinal[:, None]))
    if tree is not None:
        before &= tree == tree[:, None]
    return jnp.sum(before & among, axis=1, dtype=jnp.int32)
