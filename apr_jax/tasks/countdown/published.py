"""The published text of APR and SoS+ (Pan et al. 2025, arXiv 2504.15466, and its released code), letter for letter.

One deviation: after a spawn the released APR generator reuses a loop variable and can name a wrong node in the next
`Moving to Node` line; here this line always names the node that is expanded next.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from apr_jax.tasks.countdown.problems import Problem
from apr_jax.tasks.countdown.search import Node, Search, Step


@dataclasses.dataclass(frozen=True)
class Calls:
    """The texts of an APR search.

    Attributes:
        main_calls: the outermost search, one text per call; all calls but the last end with a spawn block, which the next
            call replaces by the results.
        sub_calls: for each spawn, the calls of its children in order.
    """

    main_calls: tuple[str, ...]
    sub_calls: tuple[tuple["Calls", ...], ...]


def apr_prompt(problem: Problem, sub_calls: int | None = None) -> str:
    """The prompt of the root thread; `sub_calls` adds the budget of the conditioned models."""
    budget = "" if sub_calls is None else f"Sub Call Budget: {sub_calls} "
    return f"{budget}Moving to Node #0\n{_state(problem.target, problem.nums, ())}"


def sos_prompt(problem: Problem, tokens: int | None = None) -> str:
    """The prompt of SoS+; `tokens` adds the budget of the conditioned models, a multiple of 512 up to 4096.

    Raises:
        ValueError: the models were not trained on this budget.
    """
    if tokens is not None and (tokens % 512 or not 512 <= tokens <= 4096):
        raise ValueError(f"tokens: {tokens} is not one of 512, 1024, ..., 4096")
    budget = "" if tokens is None else f"Token Budget: {tokens} "
    return f"{budget}{_state(problem.target, problem.nums, ())}"


def child_prompt(target: int, node: Node) -> str:
    """The prompt of a child: the node that its parent named."""
    return f"{_moving(node)}{_state(target, node.nums, node.operations)}"


def state_prompt(node: str, target: int, nums: Sequence[int], operations: Sequence[str]) -> str:
    """The prompt that the published client makes of a node and its state: the model itself writes the new line after it.

    Args:
        node: the name of the node without its `#`.
    """
    return f"Moving to Node #{node}\n{_state(target, tuple(nums), tuple(operations))}".removesuffix("\n")


def render_apr(target: int, search: Search) -> Calls:
    """The calls of an APR search and of its children."""
    text, main_calls, sub_calls = _moving(search.root), [], []
    for place, step in enumerate(search.steps):
        text += _expansion(target, step)
        if step.branch == "spawn":
            main_calls.append(text + _spawn_block(step))
            sub_calls.append(tuple(render_apr(target, child) for child in step.searches))
            text += _results_block(target, step)
            if search.goal is not None and place == len(search.steps) - 1:
                text += f"{target},{target} equal: Goal Reached\n"
        text += _transition(search, place)
    text += _summary(target, search.root, search.goal) if search.goal else "No solution found.\n"
    return Calls((*main_calls, text), tuple(sub_calls))


def render_sos(target: int, search: Search) -> str:
    """The text of an SoS+ search, from `Current State` of the root on."""
    return _render_sos(target, search, level=0, origin=search.root)


def _render_sos(target: int, search: Search, level: int, origin: Node) -> str:
    text = ""
    for place, step in enumerate(search.steps):
        text += _expansion(target, step)
        for sub in step.searches:
            text += f"Start Sub Search at level {level + 1}: {_moving(sub.root)}"
            text += _render_sos(target, sub, level + 1, origin)
            text += f"Exit Sub Search at level {level + 1}\n"
            text += "" if sub.goal else "No solution found in sub search\n"
        text += _transition(search, place)
    if search.goal is None:
        return f"{text}No solution found.\n"
    # The innermost search that found the goal writes the summary; the searches around it only close.
    return text if search.steps[-1].searches else text + _summary(target, origin, search.goal)


def _expansion(target: int, step: Step) -> str:
    text = _state(target, step.node.nums, step.node.operations)
    for child in step.children:
        text += _exploring(child)
        if len(child.nums) > 1:
            text += _generated(target, child)
        elif child.nums[0] == target:
            text += f"{target},{target} equal: Goal Reached\n"
        else:
            text += f"{child.nums[0]},{target} unequal: No Solution\n"
    return text


def _transition(search: Search, place: int) -> str:
    return _moving(search.steps[place + 1].node) if place + 1 < len(search.steps) else ""


def _spawn_block(step: Step) -> str:
    lines = [
        f"<Start Sub Search {number} at level 1> {_moving(child.root)}" for number, child in enumerate(step.searches)
    ]
    return f"<Calling Sub Searches>\n{''.join(lines)}<End Calling Sub Searches>\n"


def _results_block(target: int, step: Step) -> str:
    text = "<Sub Searches>\n"
    for number, child in enumerate(step.searches):
        outcome = "Goal Reached" if child.goal else "No Solution"
        text += f"<{outcome} in Sub Search {number} at level 1 at Node {_name(child.root)}>\n"
        text += _summary(target, child.root, child.goal) if child.goal else ""
    return f"{text}<End Sub Searches>\n"


def _summary(target: int, start: Node, goal: Node) -> str:
    """The text of the path from `start` to the goal, which is repeated after the goal was found."""
    text, path = "", _path(start, goal)
    for node, child in itertools.pairwise(path):
        text += _moving(node) + _state(target, node.nums, node.operations) + _exploring(child)
        text += _generated(target, child) if len(child.nums) > 1 else f"{target},{target} equal: Goal Reached\n"
    return text


def _path(start: Node, goal: Node) -> list[Node]:
    """The nodes from `start` to `goal`, both included."""
    path = [goal]
    while path[-1].operations != start.operations:
        path.append(path[-1].parent)
    return path[::-1]


def _name(node: Node) -> str:
    return "#" + ",".join(map(str, node.ordinals))


def _moving(node: Node) -> str:
    return f"Moving to Node {_name(node)}\n"


def _state(target: int, nums: tuple[int, ...], operations: tuple[str, ...]) -> str:
    return f"Current State: {target}:{list(nums)}, Operations: {list(operations)}\n"


def _exploring(node: Node) -> str:
    return f"Exploring Operation: {node.operations[-1]}, Resulting Numbers: {list(node.nums)}\n"


def _generated(target: int, node: Node) -> str:
    return f"Generated Node {_name(node)}: {target}:{list(node.nums)} Operation: {node.operations[-1]}\n"
