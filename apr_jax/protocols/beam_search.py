"""Search over steps, scored by the log-probabilities of the model: beam search, and DVTS, which is the same in separate subtrees.

Sources: huggingface/search-and-learn (`beam_search.py`, `dvts.py`); Beeching, Tunstall and Rush 2024, "Scaling test-time compute
with open models". The rule, whose rounds are those of a coordinator: the root, which only reads the prompt:

    1. the root forks `beams` x `width` candidates, each of which samples one step: up to a step token, or to the end of its answer;
    2. when all have ended, the root scores them and keeps the best `beams`, or of each subtree its share of them; ties go by path;
    3. it forks `width` candidates from each beam kept, which see it, and are handed its unfed last token; the others are released;
    4. a beam that ended, or broke off for want of budget, is not expanded: it competes on, or leaves the beams (`finished`);
    5. in the last of `steps` rounds step tokens end nothing. The search ends when no beam is left to expand.

Nothing is copied: a beam is the chain of threads that its last one follows (`ThreadRecord.follows`), each step a thread of its own,
and a step that several beams share is stored, and counted, once. The join is a wait for all, which is the barrier; nobody is killed
while it runs, and the critical path is the sum over rounds of the longest step.

Where this differs from the published program: the score is the model's own, there it is that of a reward model; `finished` is
"compete" unless one says "leave", as published (finished beams make room, the first beams x width of them are the answers, and the
places of those that are left are filled in turns); DVTS there answers with all `width` last candidates of a subtree, here with the
best one. What is easily done wrong: a step's last token has no key and value until the child that is handed it feeds it, so that no
end is seen a token late; totals count the tokens of all candidates, kept or not; the budget of a beam is that of its whole chain,
not of its longest step; and a speed-up over the same search by one worker says nothing, so that tables give the counts of the
sequential method beside.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.protocols import verbs
from apr_jax.record import Stop

Score = Literal["mean", "sum", "last"]
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
class BeamSearch(Protocol):
    """Token ids, and the choices of a search.

    A beam may sample `max_tokens` of its problem, one step of it `child_max_tokens`, if that is not 0, but for the last step.

    Attributes:
        end: ends an answer.
        step_ends: tokens that end a step; they belong to it.
        beams: kept in each round.
        width: candidates that each of them forks.
        subtrees: 1 is beam search; `beams` of them is DVTS as published. They do not compete.
        steps: rounds at most.
        score: what ranks candidates: the mean log-probability of a beam's tokens, the sum of them, or the mean of its last step's.
        finished: whether a finished beam competes with the others for its place, or leaves it to them.
        distinct: of candidates of one subtree that say the same only the first, by path, may be kept.
    """

    end: int
    step_ends: tuple[int, ...]
    beams: int = 4
    width: int = 4
    subtrees: int = 1
    steps: int = 40
    score: Score = "mean"
    finished: Finished = "compete"
    distinct: bool = False

    def __post_init__(self):
        name = "beam_search"
        for field in ("beams", "width", "subtrees", "steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{name}.{field} is {getattr(self, field)}; at least 1 is needed")
        for field, allowed in (("score", get_args(Score)), ("finished", get_args(Finished))):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{name}.{field} is {getattr(self, field)!r}; allowed are {', '.join(allowed)}")
        if self.beams % self.subtrees:
            raise ValueError(
                f"{name}.beams is {self.beams}; it must be a multiple of subtrees, {self.subtrees}: each keeps as many"
            )
        if self.finished == "leave" and self.subtrees > 1:
            raise ValueError(f"{name}.finished is 'leave'; with {self.subtrees} subtrees only 'compete' has a meaning")
        if self.end in self.step_ends:
            raise ValueError(f"{name}.step_ends holds the id {self.end}, which is end; a step is not an answer")

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
            hash=(own.hash * jnp.uint32(31) + drawn.token.astype(jnp.uint32) + 1) * jnp.uint32(2654435761),
            finished=ended,
        )
        return own, drawn.token, (ended | stepped).astype(jnp.int32)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The prompt is fed: the first round goes on from it."""
        book = jax.lax.fori_loop(0, self.candidates, lambda _, b: books.open_child(b, thread), book)
        born = books.opened(book, thread)
        book = book.update_own(born, tree=book.threads.line.ordinal % self.subtrees)
        return self._fork(verbs.last_of_prompt(book, born), thread, born, context=thread)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return self.expand(self.keep(self.arrive(book, thread)), thread)

    def arrive(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Those that have ended their steps stand for selection."""
        own, arrived = book.threads.own, books.awaited(book, thread)
        cut = (book.threads.stop != Stop.END) | (own.count >= book.request.max_tokens)
        return book.update_own(arrived, candidate=True, finished=own.finished | cut)

    def merit(self, own: Beam) -> Float[Array, "M"]:
        """What beams are ranked by."""
        total, count = (own.step_total, own.step_count) if self.score == "last" else (own.total, own.count)
        scale = 1 if self.score == "sum" else jnp.maximum(count, 1).astype(jnp.float32)
        return total.astype(jnp.float32) / scale

    def keep(self, book: Book) -> Book:
        """Choose among the candidates; those kept get a place."""
        own, ordinal = book.threads.own, book.threads.line.ordinal
        candidates, merit, tree = own.candidate, self.merit(own), own.tree
        if self.distinct:
            says = (own.hash[:, None] == own.hash) & (own.count[:, None] == own.count) & (tree[:, None] == tree)
            again = jnp.any(says & candidates & (ordinal < ordinal[:, None]), axis=1)
            candidates = candidates & ~again
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
        own, ordinal, number = book.threads.own, book.threads.line.ordinal, books.numbers(book)
        done = book.threads.bond.held
        going = (own.place >= 0) & ~own.finished
        # In the order of their paths.
        sources = jnp.argsort(jnp.where(going, ordinal, jnp.iinfo(jnp.int32).max))
        many = jnp.sum(going, dtype=jnp.int32)
        count = jnp.where(many > 0, self.candidates, 0) if self.finished == "leave" else many * self.width
        opened = jax.lax.fori_loop(0, count, lambda _, b: books.open_child(b, thread), book)
        born = books.opened(opened, thread)
        turn = ordinal_among(opened, born) % jnp.maximum(many, 1)
        context = jnp.where(born, sources[turn].astype(jnp.int32), books.NOBODY)
        mother = jax.tree.map(lambda column: column[jnp.maximum(context, 0)], own)
        inherited = {name: getattr(mother, name) for name in ("total", "count", "hash", "tree")}
        forked = self._fork(opened.update_own(born, **inherited), thread, born, context=context, hand=True)
        ended = ends.close(book, thread, jnp.int32(Stop.END))
        return ends.release(books.choose(many > 0, forked, ended), done & (number < book.used))

    def _fork(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"], **options: Any) -> Book:
        """Start candidates, each with what is left of its beam's budget and of a step's."""
        request, own, rounds = book.request, book.threads.own, book.threads.own.rounds[thread] + 1
        final = rounds >= self.steps
        left = request.max_tokens - own.count
        limit = request.child_max_tokens
        budget = jnp.where(final | (limit == 0), left, jnp.minimum(left, limit))
        book = book.update_own(born, final=final).update_own(books.numbers(book) == thread, rounds=rounds)
        return fork(book, thread, born, held=True, budget=budget, **options)


def ordinal_among(book: Book, chosen: Bool[Array, "M"]) -> Int[Array, "M"]:
    """The place of each chosen child among the chosen, which were opened one after the other; at least 0 for all."""
    ordinal = book.threads.line.ordinal
    first = jnp.min(jnp.where(chosen, ordinal, jnp.iinfo(jnp.int32).max))
    return jnp.where(chosen, ordinal - first, 0)


def _ranks(
    among: Bool[Array, "M"], merit: Float[Array, "M"], ordinal: Int[Array, "M"], tree: Int[Array, "M"] | None = None
) -> Int[Array, "M"]:
    """For each thread how many of the others, of its tree if there are trees, come before it: by merit, then by path."""
    before = (merit > merit[:, None]) | ((merit == merit[:, None]) & (ordinal < ordinal[:, None]))
    if tree is not None:
        before &= tree == tree[:, None]
    return jnp.sum(before & among, axis=1, dtype=jnp.int32)
