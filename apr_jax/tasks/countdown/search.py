"""The two demonstrators of APR (arXiv 2504.15466): SoS+ hybrid search (section 4.1) and parallel search (section 4.2).

Both yield an abstract trace, a tree of `Search`es; `compact` and `published` turn traces into text.
"""

import dataclasses
import heapq
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

from apr_jax.tasks.countdown.problems import Problem
from apr_jax.tasks.countdown.solver import expand

Order = Literal["shuffled", "canonical"]


class Node(NamedTuple):
    """A state of the search.

    Attributes:
        nums: the remaining numbers, the newest result last.
        operations: the operations from the problem to this node.
        ordinals: the published name of the node, `(0, 1, 0)` for `#0,1,0`.
        value: heuristic value, lower is better.
        parent: the predecessor, None for the problem itself.
    """

    nums: tuple[int, ...]
    operations: tuple[str, ...]
    ordinals: tuple[int, ...]
    value: int
    parent: "Node | None"


@dataclasses.dataclass(frozen=True)
class Step:
    """One expanded node.

    Attributes:
        node: the node taken from the queue.
        children: the kept successors, in the order in which they are written; the goal, if found, is the last one.
        branch: treatment of successors that are not terminal: queued, searched one by one, or searched in parallel.
        searches: the searches of these successors, in order; with `sub` the list ends with the first success.
    """

    node: Node
    children: tuple[Node, ...]
    branch: Literal["queue", "sub", "spawn"] = "queue"
    searches: tuple["Search", ...] = ()


@dataclasses.dataclass(frozen=True)
class Search:
    """A search: its start, the nodes it expanded in order, and the goal it found, if any."""

    root: Node
    steps: tuple[Step, ...]
    goal: Node | None


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Settings of a demonstrator.

    Attributes:
        beam: successors kept of a node, and nodes taken from the queue at once, in the outermost search.
        sub_beam: the same in inner searches.
        promising: probability that the successors of a node are searched at once (by `sub` or `spawn`), not queued.
        order: `shuffled` (published): kept successors are written in random order and searched best first.
            `canonical`: successors keep the order of `solver.expand` and are searched in the order of discovery, so that the
            written text determines the next step: a small model can learn it to the letter.
        largest: successors with a larger number are dropped; 0 keeps all (published: an argument, never used).
        width: the outermost search does not spawn all successors of a node at once, but in waves: their width is drawn uniformly
            from this range, whatever the problem; after a wave without success another one follows, of the successors that were
            not searched yet. None: all at once (published).
        waves: most waves.
    """

    beam: int
    sub_beam: int
    promising: float
    order: Order = "shuffled"
    largest: int = 0
    width: tuple[int, int] | None = None
    waves: int = 1

    def __post_init__(self):
        for name in ("beam", "sub_beam"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if not 0 <= self.promising <= 1:
            raise ValueError(f"promising: {self.promising} is a probability, allowed are 0..1")
        if self.order not in ("shuffled", "canonical"):
            raise ValueError(f"order: {self.order!r} is not one of shuffled, canonical")
        if self.width is not None and not 1 <= self.width[0] <= self.width[1]:
            raise ValueError(f"width: {self.width} must satisfy 1 <= least <= largest")
        if self.waves < 1 or (self.waves > 1 and self.width is None):
            raise ValueError(
                f"waves: {self.waves} must be at least 1, and 1 without width: all successors are in one wave then"
            )


def mult_heuristic(target: int) -> Callable[[tuple[int, ...]], int]:
    """The published heuristic for a target: summed distance of the numbers to the target's nearest factors above 1."""
    factors = [factor for factor in range(2, target + 1) if target % factor == 0] or [target]
    distances: dict[int, int] = {}

    def value(nums: tuple[int, ...]) -> int:
        total = 0
        for number in nums:
            if number not in distances:
                distances[number] = min(abs(number - factor) for factor in factors)
            total += distances[number]
        return total

    return value


class _Context(NamedTuple):
    """The constants of one demonstration."""

    target: int
    value: Callable[[tuple[int, ...]], int]
    parallel: bool
    config: SearchConfig
    rng: random.Random


def sos(problem: Problem, config: SearchConfig, rng: random.Random) -> Search:
    """SoS+ hybrid search: breadth first by heuristic, with depth-first sub searches of promising nodes."""
    return _demonstrate(problem, config, rng, parallel=False)


def apr(problem: Problem, config: SearchConfig, rng: random.Random) -> Search:
    """APR parallel search: promising nodes of the outermost search spawn searches of all their successors."""
    return _demonstrate(problem, config, rng, parallel=True)


def _demonstrate(problem: Problem, config: SearchConfig, rng: random.Random, parallel: bool) -> Search:
    value = mult_heuristic(problem.target)
    root = Node(problem.nums, (), (0,), value(problem.nums), None)
    return _search(_Context(problem.target, value, parallel, config, rng), root, level=0)


def _search(context: _Context, root: Node, level: int) -> Search:
    beam = context.config.sub_beam if level else context.config.beam
    queue, steps, pushed = [(root.value, 0, root)], [], 1
    while queue:
        batch = [heapq.heappop(queue)[-1] for _ in range(min(beam, len(queue)))]
        for node in batch:
            more, goal, waiting = _expand(context, node, beam, level)
            steps += more
            if goal is not None:
                return Search(root, tuple(steps), goal)
            for child in waiting:
                heapq.heappush(queue, (child.value if context.config.order == "shuffled" else 0, pushed, child))
                pushed += 1
    return Search(root, tuple(steps), None)


def _expand(context: _Context, node: Node, beam: int, level: int) -> tuple[list[Step], Node | None, list[Node]]:
    """Expand one node: returns its steps (one, or one for each wave), the goal if found, and the nodes for the queue."""
    listed, open_nodes = [], []
    for child in _kept(context, node, beam):
        child = child._replace(ordinals=(*node.ordinals, len(open_nodes)))
        listed.append(child)
        if len(child.nums) > 1:
            open_nodes.append(child)
        elif child.nums[0] == context.target:
            return [Step(node, tuple(listed))], child, []
    if context.config.order == "shuffled":
        open_nodes.sort(key=lambda child: child.value)
    enough = (level == 0 and len(open_nodes) > 1) if context.parallel else bool(open_nodes)
    if not enough or context.rng.random() >= context.config.promising:
        return [Step(node, tuple(listed))], None, open_nodes
    if context.parallel and context.config.width:
        return _waves(context, node, open_nodes, level)
    searches = []
    for child in open_nodes:
        searches.append(_search(context, child, level + 1))
        if searches[-1].goal is not None and not context.parallel:
            break
    goal = next((search.goal for search in searches if search.goal is not None), None)
    return [Step(node, tuple(listed), "spawn" if context.parallel else "sub", tuple(searches))], goal, []


def _waves(context: _Context, node: Node, open_nodes: list[Node], level: int) -> tuple[list[Step], Node | None, list]:
    """Search successors in waves of random width, until one finds the goal, none is left, or the waves are used up."""
    steps: list[Step] = []
    while open_nodes and len(steps) < context.config.waves:
        width = context.rng.randint(*context.config.width)
        wave, open_nodes = open_nodes[:width], open_nodes[width:]
        searches = tuple(_search(context, child, level + 1) for child in wave)
        steps.append(Step(node, tuple(wave), "spawn", searches))
        if goal := next((search.goal for search in searches if search.goal is not None), None):
            return steps, goal, []
    return steps, None, []


def _kept(context: _Context, node: Node, beam: int) -> list[Node]:
    """The `beam` best successors (ties: the earlier pair and operation), in the order of the configuration."""
    largest = context.config.largest or float("inf")
    successors = [successor for successor in expand(node.nums) if max(successor[1]) <= largest]
    values = [context.value(nums) for _, nums in successors]
    kept = sorted(range(len(successors)), key=values.__getitem__)[:beam]
    if context.config.order == "shuffled":
        context.rng.shuffle(kept)
    else:
        kept.sort()
    return [Node(successors[k][1], (*node.operations, successors[k][0]), (), values[k], node) for k in kept]
