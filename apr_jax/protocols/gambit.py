"""A pool of lines of reasoning that are scored thought by thought: the worst are given up, and the best branch in their place.

Source: Gambit, thought-level beam search, Yang et al. 2026, arXiv 2608.08020; Dao-AILab/gambit-parallel-reasoning. The rule:

    1. `count` traces are forked from the prompt. A thought ends with any token of `thought_ends`: those with a blank line;
    2. a thought's score is read off the row that is fed its last token: by a scorer, or it is the geometric mean probability of its
       tokens; the score of a trace is the mean over its thoughts, and a branch inherits all of them;
    3. a clock at which thoughts are scored is a scoring round. In every `every`-th one: traces below `threshold` are given up; if
       fewer than `count` run then, the best branch to fill the free places, over and over; otherwise the worst `replace` are
       given up, and the best as many branch. A trace may branch once it has `warmup` tokens;
    4. when `count` traces have completed, all others are killed; the completed vote with the weight of their score.

The traces race: rounds and ends are decided by clock. A branch costs no copy: the trace that branches goes on as a new thread of
its line, the branch is a child of the root that follows the old one, and both are handed its unfed token. `branches` bounds how
often that happens, since each takes two rows of the thread table; nobody branches beyond it, and the tournament then stops. Where
the release leaves a case open: traces without a scored thought are left alone, and at most half of the scored ones are replaced at
once. What is easily done wrong: most of the answers end in branches, and a prefix that several share must not be counted for each.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines, races
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll
from apr_jax.protocols import verbs
from apr_jax.protocols.samples import Samples
from apr_jax.protocols.scores import Score, check_score, signals
from apr_jax.record import Stop


@pytree
class Thoughts:
    """What a trace knows of itself, the traces that it branched from included.

    Attributes:
        count: tokens sampled.
        thought, thought_count: the log-probability, in units, and the number of the tokens of the thought that it is at.
        over: its last token ended that thought.
        total, scored: the sum of the scores of its thoughts, in units, and their number.
    """

    count: Int[Array, ""]
    thought: Int[Array, ""]
    thought_count: Int[Array, ""]
    over: Bool[Array, ""]
    total: Int[Array, ""]
    scored: Int[Array, ""]


@pytree
class Rounds:
    """Scoring rounds so far, the clock of the last one, and the branches made."""

    rounds: Int[Array, ""]
    clock: Int[Array, ""]
    branches: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Gambit(Samples):
    """Attributes: as of `Samples`, and

    thought_ends: the ids that end a thought.
    every: scoring rounds between two decisions.
    warmup: tokens that a trace has before it may branch.
    threshold: the score below which a trace is given up.
    replace: traces replaced in one decision at capacity.
    branches: made for one problem at most.
    score: what thoughts are scored by, see `apr_jax.protocols.scores`.
    hidden: units of the scorer.
    """

    thought_ends: tuple[int, ...]
    every: int = 200
    warmup: int = 12_000
    threshold: float = 0.1
    replace: int = 16
    branches: int = 64
    score: Score = "scorer"
    hidden: int = 512

    handlers = (ForAll(verbs.end), ForAll(races.defer))

    def __post_init__(self):
        super().__post_init__()
        check_score("gambit", self.score)
        for field, least in (("every", 1), ("warmup", 0), ("replace", 0), ("branches", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"gambit.{field} is {getattr(self, field)}; at least {least} is needed")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"gambit.threshold is {self.threshold}; scores are from 0 to 1, so must it be")
        if not self.thought_ends or self.end in self.thought_ends:
            raise ValueError(
                f"gambit.thought_ends is {self.thought_ends}; it needs at least one id, and may not hold end, {self.end}"
            )

    @property
    def needs(self) -> Needs:
        read = signals(self.score, self.hidden)
        return Needs(threads=1 + self.count + 2 * self.branches, races=True, recorded=True, signals=read)

    def own_state(self) -> Thoughts:
        zero = jnp.int32(0)
        return Thoughts(zero, zero, zero, jnp.bool(False), zero, zero)

    def shared_state(self) -> Rounds:
        return Rounds(jnp.int32(0), jnp.int32(0), jnp.int32(0))

    def observe(self, shared: Rounds, own: Thoughts, drawn: Drawn) -> tuple[Thoughts, Int[Array, ""], Int[Array, ""]]:
        """The row was fed the token before the drawn one: if that ended a thought, it is scored now."""
        likely = jnp.exp(verbs.mean(own.thought, own.thought_count))
        score = verbs.in_units(drawn.signals[0] if self.score == "scorer" else likely)
        read = own.over
        kept = jnp.where(read, 0, 1)  # the drawn token is the first one of the next thought
        own, token, event = super().observe(shared, own, drawn)
        own = Thoughts(
            count=own.count + 1,
            thought=kept * own.thought + verbs.in_units(drawn.logprob),
            thought_count=kept * own.thought_count + 1,
            over=jnp.any(token == jnp.array(self.thought_ends, jnp.int32)),
            total=own.total + jnp.where(read, score, 0),
            scored=own.scored + read,
        )
        return own, token, jnp.where((event == 0) & read, 2, event)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        forked = super().drained(book, thread)
        return races.start(forked, books.awaited(forked, thread), enough=self.count)

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """A thought is scored; the first one of a clock makes a round, and may decide on all traces."""
        clock, shared = book.threads.cursor.clock[thread], book.shared
        new = clock > shared.clock
        rounds = shared.rounds + new
        book = book.replace(shared=Rounds(rounds, clock, shared.branches))
        return self._decide(book, thread, new & (rounds % self.every == 0))

    def _decide(self, book: Book, thread: Int[Array, ""], due: Bool[Array, ""]) -> Book:
        """Give up the worst traces, and let the best branch, if that is due; otherwise all masks are empty, and no loop turns."""
        threads, own, ordinal = book.threads, book.threads.own, book.threads.line.ordinal
        score = verbs.mean(own.total, own.scored)
        runs = (threads.pace.race == threads.pace.race[thread]) & books.unfinished(book)
        runs &= due & (threads.stop == Stop.RUNNING)
        hopeless = runs & (own.scored > 0) & (score < self.threshold)
        runs &= ~hopeless
        able = runs & (own.scored > 0)
        may = able & (own.count >= self.warmup) & (own.count < self._budget(book))
        room, free = self.branches - book.shared.branches, self.count - jnp.sum(runs)
        swaps = jnp.minimum(jnp.minimum(self.replace, jnp.sum(able) // 2), jnp.minimum(jnp.sum(may), room))
        best = verbs.ranks(may, score, ordinal)
        others = able & ~(may & (best < swaps))
        worst = verbs.ranks(others, -score, -ordinal)
        swaps = jnp.where(free > 0, 0, swaps)
        fills = jnp.where(jnp.any(may), jnp.minimum(free, room), 0)
        book = ends.leave(book, hopeless | (others & (worst < swaps)), jnp.int32(Stop.PRUNED))
        turns = jnp.argsort(jnp.where(may, best, jnp.iinfo(jnp.int32).max), stable=True).astype(jnp.int32)
        many = jnp.sum(may, dtype=jnp.int32)
        return self._branch(book, thread, turns, many, jnp.where(free > 0, fills, swaps))

    def _budget(self, book: Book) -> Int[Array, ""]:
        """Tokens that a trace may sample, those that it shares with others included."""
        request = book.request
        return jnp.where(request.child_max_tokens > 0, request.child_max_tokens, request.max_tokens)

    def _branch(
        self, book: Book, thread: Int[Array, ""], turns: Int[Array, "M"], many: Int[Array, ""], count: Int[Array, ""]
    ) -> Book:
        """Make `count` branches, in turn from the first `many` of the threads `turns`, which run on."""
        old, root = book.threads, book.threads.line.parent[thread]
        race = old.pace.race[thread]
        book = books.open_children(book, root, count)
        born = books.opened(book, root)
        context = jnp.where(born, turns[books.place_among(book, born) % jnp.maximum(many, 1)], books.NOBODY)
        own = jax.tree.map(lambda column: column[jnp.maximum(context, 0)], old.own)
        book = book.update(born, own=own)
        budget = self._budget(book) - own.count
        book = races.enter(fork(book, root, born, context=context, hand=True, budget=budget), born, race)

        def go_on(place: Int[Array, ""], book: Book) -> Book:
            source = turns[place]
            return lines.go_on(book, source, book.sees[source], book.threads.cursor.position[source], hand=True)

        book = jax.lax.fori_loop(0, jnp.minimum(many, count), go_on, book)
        return book.replace(shared=dataclasses.replace(book.shared, branches=book.shared.branches + count))
