"""Checks solutions by replay, for both text formats: the result is yes or no for any model output, never an error."""

import re
from collections import Counter
from collections.abc import Sequence

from apr_jax.tasks.countdown.problems import Problem

_NUMBER = r"(0|[1-9][0-9]{0,17})"  # bounded, so that no text makes the arithmetic slow
_OPERATION = re.compile(rf"{_NUMBER}([-+*/]){_NUMBER}={_NUMBER}")
_EXPLORED = re.compile(
    rf"Exploring Operation: ({_NUMBER}[-+*/]{_NUMBER}={_NUMBER}), Resulting Numbers: \[(?P<left>[0-9, ]*)\]"
)


def check_solution(problem: Problem, operations: Sequence[str] | None) -> bool:
    """Whether the operations, replayed on the multiset of numbers, leave exactly the target."""
    numbers = Counter(problem.nums)
    for operation in operations or ():
        if not _apply(numbers, operation):
            return False
    return +numbers == Counter([problem.target])


def check_published(problem: Problem, text: str) -> bool:
    """Whether a finished main call in the published format solves the problem.

    The summary path, after the last but one `Goal Reached`, is replayed; its numbers must be right too.
    """
    parts = text.split("Goal Reached")
    if len(parts) < 3:
        return False
    numbers = Counter(problem.nums)
    for line in parts[-2].splitlines():
        if not line.startswith("Exploring Operation"):
            continue
        match = _EXPLORED.fullmatch(line.rstrip())
        if not match or not _apply(numbers, match[1]) or not _same(match["left"], numbers):
            return False
    return +numbers == Counter([problem.target])


def _apply(numbers: Counter, operation: str) -> bool:
    """Replace two numbers by their result; False if the operation is wrong, with `numbers` in any state."""
    match = _OPERATION.fullmatch(operation)
    if not match:
        return False
    a, b, result = int(match[1]), int(match[3]), int(match[4])
    correct = {
        "+": a + b == result,
        "-": a - b == result,
        "*": a * b == result,
        "/": b != 0 and b * result == a,
    }[match[2]]
    numbers.subtract((a, b))
    if not correct or min(numbers[a], numbers[b]) < 0:
        return False
    numbers[result] += 1
    return True


def _same(written: str, numbers: Counter) -> bool:
    pieces = written.split(", ")
    return all(re.fullmatch(_NUMBER, piece) for piece in pieces) and Counter(map(int, pieces)) == +numbers
