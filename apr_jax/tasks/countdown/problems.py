"""Countdown problems: combine all the numbers with + - * / to reach the target (Pan et al. 2025, arXiv 2504.15466, section 4.1).

Every problem is a function of (seed, split, index), so that a stream needs no storage and any part of it can be drawn
alone. A hash of numbers and target assigns problems to splits, so that streams of any length stay disjoint.
"""

import dataclasses
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from apr_jax import files
from apr_jax.tasks import splits
from apr_jax.tasks.countdown import solver
from apr_jax.tasks.splits import Split, generator

_TRIES = 20_000  # draws of numbers for one target
_TARGETS = 50  # targets given up before the split counts as empty


@dataclasses.dataclass(frozen=True)
class Problem:
    """Reach `target` from `nums`, each used exactly once."""

    nums: tuple[int, ...]
    target: int


@dataclasses.dataclass(frozen=True)
class Setting:
    """A family of problems: the count of numbers, and the ranges (both ends included) of the numbers and of the target."""

    numbers: int = 4
    low: int = 1
    high: int = 99
    target_low: int = 10
    target_high: int = 100

    def __post_init__(self):
        if not 2 <= self.numbers <= 6:
            raise ValueError(f"numbers: {self.numbers} is not in 2..6; the exhaustive solver is meant for these")
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low, high: {self.low}, {self.high} must satisfy 0 <= low <= high")
        if not 1 <= self.target_low <= self.target_high:
            raise ValueError(
                f"target_low, target_high: {self.target_low}, {self.target_high} must satisfy 1 <= low <= high"
            )


PRESETS: Mapping[str, Setting] = MappingProxyType(
    {
        "four": Setting(),  # as published
        "three": Setting(numbers=3, high=30, target_high=50),
    }
)


def check(problem: Problem, setting: Setting = PRESETS["four"]) -> None:
    """Check that a problem belongs to the setting (not that it can be solved).

    Raises:
        ValueError: the count of numbers is wrong, a number or the target is out of range, or a value is not an integer.
    """
    if len(problem.nums) != setting.numbers:
        raise ValueError(f"nums: {len(problem.nums)} numbers {list(problem.nums)}, expected {setting.numbers}")
    for number in problem.nums:
        _check_range("nums", number, setting.low, setting.high)
    _check_range("target", problem.target, setting.target_low, setting.target_high)


def check_any(problem: Problem) -> Setting:
    """The preset with as many numbers as the problem; checks that the problem keeps the preset's ranges.

    Raises:
        ValueError: no preset has that many numbers, or see `check`.
    """
    for setting in PRESETS.values():
        if setting.numbers == len(problem.nums):
            check(problem, setting)
            return setting
    counts = sorted(setting.numbers for setting in PRESETS.values())
    raise ValueError(
        f"nums: {len(problem.nums)} numbers {list(problem.nums)}; {' or '.join(map(str, counts))} are needed"
    )


def _check_range(field: str, value: object, low: int, high: int) -> None:
    if type(value) is not int:
        raise ValueError(f"{field}: {value!r} is not an integer; write whole numbers without quotes or decimal point")
    if not low <= value <= high:
        raise ValueError(f"{field}: {value} is out of range, allowed are {low}..{high}")


def split_of(problem: Problem) -> Split:
    """The split of a problem, from the sorted numbers and the target alone."""
    return splits.split_of(f"{sorted(problem.nums)}:{problem.target}")


def generate(setting: Setting, seed: int, split: Split, index: int) -> Problem:
    """Draw sample `index` of a split: a uniform target, then numbers until the target can be reached with all of them.

    Raises:
        ValueError: the split is unknown.
    """
    splits.check_split(split)
    return draw(setting, split, generator(seed, split, index))


def draw(setting: Setting, split: Split, rng: random.Random) -> Problem:
    """Draw one solvable problem of a split from `rng`.

    A target that no numbers of the split reach, as happens with two numbers, is replaced by another after many tries.

    Raises:
        ValueError: the split seems to hold no problem of this setting.
    """
    for _ in range(_TARGETS):
        target = rng.randint(setting.target_low, setting.target_high)
        for _ in range(_TRIES):
            nums = tuple(rng.randint(setting.low, setting.high) for _ in range(setting.numbers))
            problem = Problem(nums, target)
            if split_of(problem) == split and solver.solve(nums, target) is not None:
                return problem
    raise ValueError(f"split: {split!r} seems to hold no problem of {setting}; widen its ranges")


def stream(setting: Setting, seed: int, split: Split, start: int = 0) -> Iterator[Problem]:
    """The endless stream of a split from sample `start` on; samples may repeat, as in the published data."""
    for index in itertools.count(start):
        yield generate(setting, seed, split, index)


def benchmark(setting: Setting, seed: int, split: Split, count: int) -> list[Problem]:
    """The first `count` problems of a split that differ in (sorted numbers, target).

    Raises:
        ValueError: the setting seems to have fewer than `count` such problems (50 draws in a row brought nothing new
            per problem found so far, plus 1000).
    """
    identity = lambda problem: (tuple(sorted(problem.nums)), problem.target)
    return splits.distinct(stream(setting, seed, split), identity, count, f"the split {split!r} of {setting}")


def read_jsonl(path: Path, setting: Setting | None = None) -> list[Problem]:
    """Read problems, one JSON object `{"nums": [...], "target": ...}` a line; blank lines are skipped.

    Args:
        path: the file.
        setting: the family that all problems must belong to; None: the preset with as many numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a valid problem, named by file and line number; or the file has no problems or is not UTF-8.
    """
    path, problems = files.local(path, "problems_file"), []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"problems_file: {path} is not text in UTF-8 ({error}); save it as that") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            problem = _parse(line)
            check(problem, setting) if setting else check_any(problem)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        problems.append(problem)
    if not problems:
        raise ValueError(
            f"{path}: no problems in it; expected lines like " + '{"nums": [22, 26, 31, 53], "target": 27}'
        )
    return problems


def _parse(line: str) -> Problem:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'not JSON ({error}); expected {{"nums": [22, 26, 31, 53], "target": 27}}') from error
    if not isinstance(record, dict) or not {"nums", "target"} <= record.keys():
        raise ValueError(f"expected an object with the fields nums and target, got {line.strip()[:80]}")
    if not isinstance(record["nums"], list):
        raise ValueError(f"nums: {record['nums']!r} is not a list")
    return Problem(tuple(record["nums"]), record["target"])


def write_jsonl(path: Path, problems: list[Problem]) -> None:
    """Write problems in the format of `read_jsonl`."""
    path.write_text("".join(json.dumps({"nums": list(p.nums), "target": p.target}) + "\n" for p in problems))
