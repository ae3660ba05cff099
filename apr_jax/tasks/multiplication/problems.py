"""Multiplication problems: integers to be multiplied, as functions of (seed, split, index).

A hash of the sorted integers assigns problems to splits, so that no split holds another's problem in another order.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from apr_jax.tasks import splits
from apr_jax.tasks.splits import Split

MOST = 8  # integers that the format has marks for
LARGEST = 9_999  # four digits, each of which can be a thread
_TRIES = 10_000  # draws given up before the split counts as empty


@dataclasses.dataclass(frozen=True)
class Problem:
    """The integers to be multiplied, in this order.

    Raises:
        ValueError: there are fewer than 2 integers or more than 8, or one is not in 0 .. 9,999.
    """

    factors: tuple[int, ...]

    def __post_init__(self):
        if not 2 <= len(self.factors) <= MOST:
            raise ValueError(f"factors: {len(self.factors)} integers {list(self.factors)}; give 2 to {MOST}")
        for factor in self.factors:
            if type(factor) is not int or not 0 <= factor <= LARGEST:
                raise ValueError(f"factors: {factor!r} is not an integer of 0 .. {LARGEST:,}")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A family of problems.

    Attributes:
        factors: least and largest number of integers, drawn uniformly.
        largest: the largest integer; all from 0 are drawn uniformly.
    """

    factors: tuple[int, int] = (2, 5)
    largest: int = 1_000

    def __post_init__(self):
        low, high = self.factors
        if not 2 <= low <= high <= MOST:
            raise ValueError(f"factors: ({low}, {high}) must satisfy 2 <= low <= high <= {MOST}")
        if not 0 <= self.largest <= LARGEST:
            raise ValueError(f"largest is {self.largest}; it must be 0 .. {LARGEST:,}")


PRESETS: Mapping[str, Setting] = MappingProxyType(
    {
        "two_to_five": Setting(),
        "two_to_eight": Setting((2, MOST)),
        "published": Setting((5, MOST)),  # ThreadWeaver's
    }
)


def split_of(problem: Problem) -> Split:
    """The split of a problem, from its sorted integers alone."""
    return splits.split_of("x".join(map(str, sorted(problem.factors))))


def generate(setting: Setting, seed: int, split: Split, index: int) -> Problem:
    """Draw sample `index` of a split: the number of integers, then integers until they belong to the split.

    Raises:
        ValueError: the split is unknown, or seems to hold no problem of this setting.
    """
    splits.check_split(split)
    rng = splits.generator(seed, f"multiplication/{split}", index)
    for _ in range(_TRIES):
        count = rng.randint(*setting.factors)
        problem = Problem(tuple(rng.randint(0, setting.largest) for _ in range(count)))
        if split_of(problem) == split:
            return problem
    raise ValueError(f"split: {split!r} seems to hold no problem of {setting}; widen its ranges")


def stream(setting: Setting, seed: int, split: Split, start: int = 0) -> Iterator[Problem]:
    """The endless stream of a split from sample `start` on; samples may repeat."""
    for index in itertools.count(start):
        yield generate(setting, seed, split, index)


def benchmark(setting: Setting, seed: int, split: Split, count: int) -> list[Problem]:
    """The first `count` problems of a split that differ in their sorted integers.

    Raises:
        ValueError: the setting seems to have fewer, see `apr_jax.tasks.splits.distinct`.
    """
    identity = lambda problem: tuple(sorted(problem.factors))
    return splits.distinct(stream(setting, seed, split), identity, count, f"the split {split!r} of {setting}")
