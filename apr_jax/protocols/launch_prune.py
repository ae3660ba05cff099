"""Samples of which, after some tokens, the best are kept: launch many, prune once, resume the few.

Source: STOP (launch, prune, resume; 8 of 64 samples are kept after 2,048 tokens), whose score is that of a trained head. The rule:

    1. as in `apr_jax.protocols.samples`, `count` samples are forked from the prompt, and race;
    2. each stops for a moment when it has sampled `after` tokens; all do so at the same clock;
    3. the score of a sample is that of its text up to there: read by a scorer, or the mean log-probability of its tokens;
    4. the best `keep` go on with the tokens that they would have sampled anyway, the others are pruned; ties go by path;
    5. those kept are the answers. Samples that had ended before compete with the scores that they had then.

Where this differs from the published program: it appends tokens of its own to read the score, here the score is read from the row
that the token number `after` was drawn from, and costs no pass.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import races
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll
from apr_jax.protocols import verbs
from apr_jax.protocols.samples import Samples
from apr_jax.protocols.scores import Score, check_score, signals


@pytree
class Scored:
    """What a sample is ranked by.

    Attributes:
        count: tokens sampled.
        total: the log-probability of those up to the check, in units.
        score: of the text up to the check.
        kept: it is one of the best; known when all have ended.
    """

    count: Int[Array, ""]
    total: Int[Array, ""]
    score: Float[Array, ""]
    kept: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class LaunchPrune(Samples):
    """Attributes: as of `Samples`, and

    keep: samples that are kept.
    after: tokens that each samples before that is decided.
    score: what ranks them, see `apr_jax.protocols.scores`.
    hidden: units of the scorer.
    """

    keep: int
    after: int
    score: Score = "scorer"
    hidden: int = 512

    handlers = (ForAll(verbs.end), ForAll(races.defer))

    def __post_init__(self):
        super().__post_init__()
        check_score("launch_prune", self.score)
        if not 1 <= self.keep <= self.count:
            raise ValueError(f"launch_prune.keep is {self.keep}; it must be from 1 to count, {self.count}")
        if self.after < 1:
            raise ValueError(f"launch_prune.after is {self.after}; at least 1 token is needed for a score")

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, races=True, recorded=True, signals=signals(self.score, self.hidden))

    def own_state(self) -> Scored:
        return Scored(jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.bool(False))

    def observe(self, shared: tuple, own: Scored, drawn: Drawn) -> tuple[Scored, Int[Array, ""], Int[Array, ""]]:
        own, token, event = super().observe(shared, own, drawn)
        count, early = own.count + 1, own.count < self.after
        total = own.total + verbs.in_units(drawn.logprob)
        score = drawn.signals[0] if self.score == "scorer" else verbs.mean(total, count)
        score = verbs.in_units(score).astype(jnp.float32) / verbs.UNITS
        own = Scored(count, jnp.where(early, total, own.total), jnp.where(early, score, own.score), own.kept)
        return own, token, jnp.where((event == 0) & (count == self.after), 2, event)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        forked = super().drained(book, thread)
        return races.start(forked, books.awaited(forked, thread))

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """A sample has come to the check; so have all others that have not ended before it."""
        kept = self._best(book, book.threads.pace.race == book.threads.pace.race[thread])
        return verbs.prune(book, (books.numbers(book) == thread) & ~kept)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        samples = books.awaited(book, thread)
        return super().joined(book.update_own(samples, kept=self._best(book, samples)), thread)

    def _best(self, book: Book, samples: Bool[Array, "M"]) -> Bool[Array, "M"]:
        """Those of the samples that are kept. Scores do not change after the check."""
        return samples & (verbs.ranks(samples, book.threads.own.score, book.threads.line.ordinal) < self.keep)
