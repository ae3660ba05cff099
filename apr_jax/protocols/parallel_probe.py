"""Samples that are probed while they run: what each would answer now prunes those that keep disagreeing, and ends all by consensus.

Source: Parallel-Probe, `evaluation/method.py` of its release. The rule:

    1. as in `apr_jax.protocols.samples`, `count` branches are forked from the prompt, and race;
    2. every `every` tokens a branch is probed: a fork of it is fed a closing phrase, samples a short answer, and is thrown away;
    3. a branch votes for what its last probe answered, one that has ended for its own answer; unfinished answers vote for nothing;
    4. after `warmup` probes, if the leading answer has `share` of the votes of all branches not pruned, a branch that has disagreed
       with the leading answers of `patience` probes running is pruned, but `least` branches are left;
    5. when the same answer has led `stable` probes running, all that still run are cut: the vote is that of their last probes.

A branch waits for its probe, and goes on at the clock at which the longest possible answer would have ended: all branches are
probed at the same clocks, so that a decision has all answers. Where the release leaves a case open: ended branches keep voting, of
equally frequent answers the first by path leads, and those that have disagreed longest are pruned first. What is easily done wrong:
a probe must not change what its branch says, so it draws with keys of its own, and is handed the branch's unfed token.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode import ends, races
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler
from apr_jax.protocols import verbs
from apr_jax.protocols.early_vote import Ballot, written
from apr_jax.protocols.samples import Samples
from apr_jax.record import Stop


@pytree
class Branch(Ballot):
    """What a branch, or a probe, keeps beside the ballot of its own text.

    Attributes:
        probe: it is a probe.
        count: tokens sampled.
        probes: probes so far.
        votes, vote: whether its last probe named an answer, and the hash of that.
        against: probes running in which it disagreed with the leading answer.
        resumes: the clock at which it goes on after its probe.
    """

    probe: Bool[Array, ""]
    count: Int[Array, ""]
    probes: Int[Array, ""]
    votes: Bool[Array, ""]
    vote: UInt32[Array, ""]
    against: Int[Array, ""]
    resumes: Int[Array, ""]


@pytree
class Consensus:
    """The probes that are decided: how many, the answer that led in the last one, and in how many running; 0: none led."""

    probes: Int[Array, ""]
    leader: UInt32[Array, ""]
    stood: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class ParallelProbe(Samples):
    """Attributes: as of `Samples`, and

    answer: the token after which an answer stands, up to the end.
    close: the closing phrase, as ids; an answer follows it as it would follow `answer`.
    every: tokens of a branch between two probes.
    answer_tokens: tokens that a probe may sample, its end included.
    warmup, share, patience, least, stable: see the rule.
    """

    answer: int
    close: tuple[int, ...]
    every: int = 500
    answer_tokens: int = 16
    warmup: int = 10
    share: float = 0.5
    patience: int = 3
    least: int = 3
    stable: int = 18

    def __post_init__(self):
        super().__post_init__()
        for field in ("every", "answer_tokens", "patience", "least", "stable"):
            if getattr(self, field) < 1:
                raise ValueError(f"parallel_probe.{field} is {getattr(self, field)}; at least 1 is needed")
        if self.warmup < 0:
            raise ValueError(f"parallel_probe.warmup is {self.warmup}; it must be 0 or more")
        if not 0 <= self.share <= 1:
            raise ValueError(f"parallel_probe.share is {self.share}; it must be from 0 to 1")
        if not self.close:
            raise ValueError("parallel_probe.close is empty; a probe is fed at least 1 token")

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, races=True, recorded=True)

    @property
    def templates(self) -> tuple[int, ...]:
        return self.close

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(verbs.end), self._probe)

    def own_state(self) -> Branch:
        zero, no, nothing = jnp.int32(0), jnp.bool(False), jnp.uint32(0)
        return Branch(no, nothing, no, zero, zero, no, nothing, zero, zero)

    def shared_state(self) -> Consensus:
        return Consensus(jnp.int32(0), jnp.uint32(0), jnp.int32(0))

    def observe(self, shared: Consensus, own: Branch, drawn: Drawn) -> tuple[Branch, Int[Array, ""], Int[Array, ""]]:
        own, token, event = super().observe(shared, own, drawn)
        own = dataclasses.replace(written(own, token, self.answer, event > 0), count=own.count + 1)
        due = ~own.probe & (own.count % self.every == 0)
        return own, token, jnp.where((event == 0) & due, 2, event)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        forked = super().drained(book, thread)
        return races.start(forked, books.awaited(forked, thread))

    def _probe(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Fork a probe, and wait for it."""
        number, own = books.numbers(book), book.threads.own
        rows = (
            len(self.close) + self.answer_tokens
        )  # of the longest probe: the handed token, the phrase, all but its last token
        resumes = book.threads.cursor.clock[thread] + rows
        book = book.update_own(number == thread, probes=own.probes + 1, resumes=resumes)
        book = books.open_child(book, thread)
        born = books.opened(book, thread)
        book = verbs.say(book, number, (books.TEMPLATE,), number, (number * 0,), (len(self.close),), born)
        book = book.update_own(born, probe=True, begun=True)
        return fork(book, thread, born, context=thread, hand=True, budget=self.answer_tokens)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """A branch's probe has ended, or all branches have."""
        own, probe = book.threads.own, books.awaited(book, thread)
        named = probe & own.begun & (book.threads.stop == Stop.END)
        vote = jnp.sum(jnp.where(named, own.hash, 0), dtype=jnp.uint32)
        voted = book.update_own(books.numbers(book) == thread, votes=jnp.any(named), vote=vote)
        voted = voted.update(thread, clock=own.resumes[thread])
        is_root = book.threads.line.nesting[thread] == 0
        return books.choose(is_root, super().joined(book, thread), races.defer(voted, thread))

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """A branch goes on after its probe; the first one of a round decides on all."""
        return books.choose(book.shared.probes < book.threads.own.probes[thread], self._round(book, thread), book)

    def _round(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Count the votes of a round, prune, or cut."""
        threads, own, shared = book.threads, book.threads.own, book.shared
        counts = (threads.pace.race == threads.pace.race[thread]) & (threads.stop != Stop.PRUNED)
        runs = counts & books.unfinished(book)
        ended = threads.stop == Stop.END
        votes = counts & jnp.where(ended, own.begun, own.votes)
        vote = jnp.where(ended, own.hash, own.vote)
        support = jnp.sum(votes[:, None] & votes & (vote[:, None] == vote), axis=1)
        leader = jnp.argmax(support)
        led, most, voters = support[leader] > 0, support[leader], jnp.sum(counts)
        same = led & (shared.stood > 0) & (vote[leader] == shared.leader)
        stood = jnp.where(same, shared.stood + 1, led.astype(jnp.int32))
        against = jnp.where(led & ~(votes & (vote == vote[leader])), own.against + 1, 0)
        sure = (own.probes[thread] > self.warmup) & (most >= self.share * voters)
        doubted = runs & sure & (against >= self.patience)
        order = verbs.ranks(doubted, against.astype(jnp.float32), threads.line.ordinal)
        pruned = doubted & (order < voters - self.least)
        settled = stood >= self.stable
        book = book.update_own(runs, against=against)
        book = book.replace(shared=Consensus(own.probes[thread], jnp.where(led, vote[leader], 0), stood))
        stop = jnp.where(settled, int(Stop.CUT), int(Stop.PRUNED))
        return ends.close(book, runs & (settled | pruned), stop)
