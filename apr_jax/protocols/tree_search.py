"""Search in a tree of steps: Monte Carlo tree search, and depth first with pruning.

Sources: UCT, Kocsis and Szepesvari 2006, "Bandit based Monte-Carlo planning"; Chaslot, Winands and van den Herik 2008, "Parallel
Monte-Carlo tree search"; Yao et al. 2023, arXiv 2305.10601, algorithm 2 (ToT-DFS), for `policy` "depth". The rule:

    1. a node is the thread of one step; the root of the tree is the prompt. A simulation goes down from it to a leaf;
    2. "ucb": at each node to the child of the largest  mean value + explore sqrt(ln visits of the node / visits of the child);
       "depth": of all leaves that are not finished the deepest is taken, of these the one of the greatest value;
    3. from the leaf `width` steps are sampled and valued by the judge (`apr_jax.protocols.judges`), by a rollout to the end or
       by log-probability, say. Those below `prune` are no nodes, nor is one all of whose children are none;
    4. the mean of the new values, for a finished leaf its own, is added to the leaf and all above it, which count one visit more;
    5. after `simulations`, or with `enough` finished nodes, the search ends. It answers with the leaf to which most visits lead
       (`answer` "visited"), or the finished one of the greatest value ("valued"; the most valued leaf if none is finished). One
       that is not finished goes on to the end, as its rollout did if it has one.

`parallel` simulations go down before the first of them has values, and each goes elsewhere, since their visits count at once in the
second term. The mean is that of the values there are ("Watch the unobserved", Liu et al. 2020): a loss of 0 in it, the virtual loss
of Chaslot et al., would be a gain where values are log-probabilities. A simulation that comes to a leaf taken already waits for the
next round. Ties go by path, and values are whole numbers, so that no choice depends on the schedule. A round is a join of the root.

Released are leaves that are expanded or finished, so that slots are freed when the last child that sees them is; open leaves are
held to the end. A problem needs 1 + simulations x width threads, as many again for a judge's threads, and one for the answer.

What is easily done wrong: the means of UCB and `explore` must have one scale, which is that of the judge; a rollout's tokens count,
whoever selected it, and so do those of nodes that were never visited again; and log-probabilities are negative, so that a node
without a value must not count as 0, the best there is: here each has one as soon as it is a node.
"""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.problem import one_of
from apr_jax.decode.threads import collect
from apr_jax.protocols import verbs
from apr_jax.protocols.judges import Judged, Thought
from apr_jax.record import Stop

Policy = Literal["ucb", "depth"]
Answer = Literal["visited", "valued"]


@pytree
class Node(Thought):
    """What a thread knows of the node that it is.

    Attributes:
        visits: simulations that came through it, its birth included; of the root of the tree too.
        worth: the sum of their values.
        expanded: steps were sampled from it.
        selected: it is the leaf of a simulation that has no values yet.
        simulations: of the root: how many there were.
        over: of the root: the search has ended, its answer goes on to the end.
    """

    visits: Int[Array, ""]
    worth: Int[Array, ""]
    expanded: Bool[Array, ""]
    selected: Bool[Array, ""]
    simulations: Int[Array, ""]
    over: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class TreeSearch(Judged):
    """The choices of a search; `distinct` and the budgets of a step are those of `StepSearch`.

    Attributes:
        policy: how a simulation goes down.
        explore: the weight of what was visited seldom, on the scale of the judge's values.
        simulations: at most.
        parallel: of one round, at most.
        prune: values below it are those of dead ends.
        enough: finished nodes that end the search; 0: none do.
        answer: which leaf the answer is.
    """

    policy: Policy = "ucb"
    explore: float = 1.0
    simulations: int = 32
    parallel: int = 1
    prune: float = -math.inf
    enough: int = 0
    answer: Answer = "visited"

    def __post_init__(self):
        super().__post_init__()
        self._least("simulations", "parallel")
        one_of(f"{self.name}.policy", self.policy, get_args(Policy))
        one_of(f"{self.name}.answer", self.answer, get_args(Answer))
        if self.judge.reads:
            raise ValueError(
                f"{self.name}.judge is a vote, which compares the candidates of one round; nodes need values of their own"
            )
        if self.enough < 0:
            raise ValueError(f"{self.name}.enough is {self.enough}; it must be 0 (off) or more")
        if not self.explore >= 0:
            raise ValueError(f"{self.name}.explore is {self.explore}; it must be 0 (greedy) or more")

    @property
    def candidates(self) -> int:
        return self.width

    def own_state(self) -> Node:
        zero, no = jnp.int32(0), jnp.bool(False)
        return Node(
            **vars(super().own_state()), visits=zero, worth=zero, expanded=no, selected=no, simulations=zero, over=no
        )

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The first simulation has come to the root of the tree."""
        begun = super().drained(book, thread)
        root = begun.threads.line.parent == books.NOBODY
        return begun.update_own(
            root & (book.threads.own.simulations == 0), expanded=True, selected=True, visits=1, simulations=1
        )

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        over = book.threads.own.over[thread]
        return books.choose(over, self._answered(book, thread), super().joined(book, thread))

    def decide(self, book: Book, thread: Int[Array, ""]) -> Book:
        book, chosen = self._select(self._bury(self._back_up(book)), thread)
        held = book.threads.bond.held
        open_ = self._open(book) & ~chosen
        many = jnp.sum(chosen, dtype=jnp.int32)
        expanded = book.update_own(chosen, expanded=True, selected=True)
        expanded = ends.release(self.go_on(expanded, thread, chosen, many * self.width), held & ~open_)
        return books.choose(many > 0, expanded, self._end(book, thread))

    def _open(self, book: Book) -> Bool[Array, "M"]:
        """Leaves that may be expanded."""
        own = book.threads.own
        return own.candidate & ~own.finished & ~own.expanded

    def _above(self, book: Book) -> Int[Array, "M"]:
        """The node above each node."""
        above = jnp.maximum(book.threads.line.follows, 0)
        return jnp.where(book.threads.own.candidate, above, books.NOBODY)

    def _paths(self, book: Book) -> Bool[Array, "M M"]:
        """[a, b]: node b is node a or stands above it."""
        number = books.numbers(book)
        return jax.vmap(lambda row: books.has(row, number))(book.sees)

    def _back_up(self, book: Book) -> Book:
        """The values of the new nodes go up from the leaves that they were sampled from."""
        own, above = book.threads.own, self._above(book)
        new = own.candidate & (own.visits == 0)
        many = collect(above, new.astype(jnp.int32), "add")
        mean = collect(above, jnp.where(new, own.value, 0), "add") // jnp.maximum(many, 1)
        leaves = own.selected & (many > 0)
        worth = own.worth + jnp.sum(
            jnp.where(leaves[:, None] & self._paths(book), mean[:, None], 0), axis=0, dtype=jnp.int32
        )
        book = book.update_own(jnp.ones_like(new), worth=worth, selected=False)
        book = book.update_own(new, visits=1, worth=own.value)
        return book.update_own(new & (own.value < self.prune * verbs.UNITS), candidate=False)

    def _bury(self, book: Book) -> Book:
        """Nodes from which all ways were tried, and lead nowhere, are none."""

        def dead(book):
            below = collect(self._above(book), book.threads.own.candidate.astype(jnp.int32), "add")
            return book.threads.own.candidate & book.threads.own.expanded & (below == 0)

        return jax.lax.while_loop(
            lambda book: jnp.any(dead(book)), lambda book: book.update_own(dead(book), candidate=False), book
        )

    def _select(self, book: Book, root: Int[Array, ""]) -> tuple[Book, Bool[Array, "M"]]:
        """Let simulations go down; returns the leaves that some came to."""
        own, paths, number = book.threads.own, self._paths(book), books.numbers(book)
        finished = jnp.sum(own.candidate & own.finished, dtype=jnp.int32)
        enough = (finished >= self.enough) if self.enough else jnp.bool(False)

        def goes_on(carry):
            _, _, chosen, simulations, lost = carry
            return ~lost & (simulations < self.simulations) & (jnp.sum(chosen) < self.parallel)

        def simulate(carry):
            visits, worth, chosen, simulations, _ = carry
            at, found = self._down(book, visits, worth, chosen, jnp.sum(chosen[:, None] & paths, axis=0))
            over, lost = own.finished[at] & found, ~found | chosen[at]
            passed = paths[at] & ~lost
            worth = jnp.where(passed & over, worth + own.value[at], worth)
            chosen = chosen | ((number == at) & ~lost & ~over)
            return visits + passed, worth, chosen, simulations + ~lost, lost

        begin = (own.visits, own.worth, jnp.zeros_like(own.candidate), own.simulations[root], enough)
        visits, worth, chosen, simulations, _ = jax.lax.while_loop(goes_on, simulate, begin)
        book = book.update_own(jnp.ones_like(chosen), visits=visits, worth=worth)
        return book.update_own(number == root, simulations=simulations), chosen

    def _down(
        self,
        book: Book,
        visits: Int[Array, "M"],
        worth: Int[Array, "M"],
        chosen: Bool[Array, "M"],
        unseen: Int[Array, "M"],
    ) -> tuple[Int[Array, ""], Bool[Array, ""]]:
        """The leaf that a simulation comes to, and whether there is one.

        Args:
            chosen: leaves that others of the round came to.
            unseen: visits of each node that have no value yet.
        """
        own, above = book.threads.own, self._above(book)
        if self.policy == "depth":
            left = self._open(book) & ~chosen
            deepest = left & (own.steps == jnp.max(jnp.where(left, own.steps, 0)))
            return jnp.argmax(jnp.where(deepest, own.value, jnp.iinfo(jnp.int32).min)).astype(jnp.int32), jnp.any(left)
        times = jnp.maximum(visits, 1).astype(jnp.float32)
        seldom = jnp.sqrt(jnp.log(times[jnp.maximum(above, 0)]) / times)
        # Whole units again: what is equal stays equal however it was computed.
        mean = worth.astype(jnp.float32) / jnp.maximum(visits - unseen, 1).astype(jnp.float32)
        score = jnp.round(mean + self.explore * verbs.UNITS * seldom)
        return self._walk(own.expanded, above, score), jnp.any(above == 0)

    def _walk(self, expanded: Bool[Array, "M"], above: Int[Array, "M"], score: Float[Array, "M"]) -> Int[Array, ""]:
        """From the root of the tree to a leaf, always to the child of the largest score, of equal ones to the first by path."""

        def down(at):
            return jnp.argmax(jnp.where(above == at, score, -jnp.inf)).astype(jnp.int32)

        return jax.lax.while_loop(lambda at: expanded[at] & jnp.any(above == at), down, jnp.int32(0))

    def _end(self, book: Book, root: Int[Array, ""]) -> Book:
        """Choose the answer; it is there, or one more thread goes on to it. Other whole answers come after it, by value."""
        own, ordinal, number = book.threads.own, book.threads.line.ordinal, books.numbers(book)
        above, follows = self._above(book), book.threads.line.follows
        leaves = own.candidate & ~own.expanded
        if self.answer == "visited":
            best = self._walk(own.expanded, above, own.visits.astype(jnp.float32))
        else:
            among = jnp.where(jnp.any(leaves & own.finished), leaves & own.finished, leaves)
            best = jnp.argmax(jnp.where(among, own.value, jnp.iinfo(jnp.int32).min)).astype(jnp.int32)
        some, rolls = jnp.any(leaves), own.judges & jnp.bool(self.judge.rolls)
        rolled = rolls & (follows == best) & ~own.finished[best]
        chosen = jnp.where(jnp.any(rolled), rolled, number == best)
        whole = (own.candidate & own.finished) | rolls
        value = jnp.where(chosen, jnp.inf, own.value.astype(jnp.float32))
        place = jnp.where(whole & some, verbs.ranks(whole, value, ordinal), -1)
        answered = ends.close(book.update_own(jnp.ones_like(whole), place=place), root, jnp.int32(Stop.END))
        if self.judge.rolls:
            return answered
        # The new thread, whose number comes next, will be the first; until then no whole answer has the place 0.
        later = book.update_own(whole, place=place + 1).update_own(number == root, over=True)
        last = self.go_on(later, root, number == best, jnp.int32(1), last=True)
        return books.choose(some & ~own.finished[best], last, answered)

    def _answered(self, book: Book, root: Int[Array, ""]) -> Book:
        """The thread that went on to the end is the first answer."""
        last = books.awaited(book, root)
        return ends.close(book.update_own(last, place=0, candidate=False), root, jnp.int32(Stop.END))
