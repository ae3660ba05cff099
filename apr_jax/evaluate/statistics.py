"""What a difference between two arms of an experiment is worth.

An arm has S seeds (trained models, say), each measured on the same P problems: values [S, P]. Problems are paired between arms,
seeds are not. "Equal" is never concluded from a difference that is not significant: only an equivalence test with a margin shows
it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.special
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two arms' means.

    Attributes:
        mean: a - b.
        low, high: its bootstrap interval.
        error: its standard error, the standard deviation of the draws.
        p: two-sided, of the hypothesis that the difference is 0.
        equivalence: p of the hypothesis that it is at least the margin from 0; 1 without a margin.
        seeds: of both arms; where either is 1, the spread between seeds is not in the interval.
    """

    mean: float
    low: float
    high: float
    error: float
    p: float
    equivalence: float
    seeds: tuple[int, int]


def draws(
    values: Float[np.ndarray, "S P"], problems: Float[np.ndarray, "D P"], rng: np.random.Generator
) -> Float[np.ndarray, " D"]:
    """Means of an arm with its seeds drawn with replacement too.

    The mean of S drawn seeds varies by (S - 1) / S of what the mean of S seeds varies; the deviation is stretched by the root of
    S / (S - 1), without which the intervals of three seeds would be too narrow by a fifth.

    Args:
        values: of the arm.
        problems: how often each draw has taken each problem.
    """
    seeds, count = len(values), values.shape[1]
    by_seed = problems @ values.T / count  # [D, S]
    if seeds == 1:
        return by_seed[:, 0]
    taken = rng.multinomial(seeds, [1 / seeds] * seeds, size=len(problems)) / seeds  # [D, S]
    middle = by_seed.mean(axis=1)
    return middle + ((taken * by_seed).sum(axis=1) - middle) * np.sqrt(seeds / (seeds - 1))


def difference(
    a: Float[np.ndarray, "S P"],
    b: Float[np.ndarray, "T P"],
    margin: float = 0.0,
    count: int = 10_000,
    share: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Paired bootstrap over problems and seeds (Efron 1979): a draw takes problems, the same in both arms, and seeds of each arm.

    p is twice the smaller share of draws on one side of 0, and at least 2 / (count + 1); the equivalence test is two one-sided
    tests (Schuirmann 1987): the larger of the shares of draws beyond either end of the margin.

    Args:
        a, b: values of the arms; rows are seeds, columns problems.
        margin: half the width of what counts as equal; 0: no equivalence test.
        count: number of draws.
        share: of the draws that lie in the interval.

    Raises:
        ValueError: the arms were not measured on the same number of problems, or on none.
    """
    a, b = np.atleast_2d(np.asarray(a, np.float64)), np.atleast_2d(np.asarray(b, np.float64))
    if a.shape[1] != b.shape[1] or not a.size or not b.size:
        raise ValueError(f"values: {a.shape} and {b.shape}; both arms need the same problems, at least one")
    rng, problems = np.random.default_rng(seed), a.shape[1]
    parts = []
    for begin in range(0, count, 1000):  # [D, P] of counts at a time
        rows = min(1000, count - begin)
        picked = rng.integers(problems, size=(rows, problems)) + problems * np.arange(rows)[:, None]
        taken = np.bincount(picked.ravel(), minlength=rows * problems).reshape(rows, problems)
        parts.append(draws(a, taken, rng) - draws(b, taken, rng))
    drawn = np.concatenate(parts)
    low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2])
    beyond = lambda side: (1 + int(side.sum())) / (count + 1)
    p = min(1.0, 2 * min(beyond(drawn <= 0), beyond(drawn >= 0)))
    equivalence = max(beyond(drawn >= margin), beyond(drawn <= -margin)) if margin else 1.0
    mean = float(a.mean() - b.mean())
    return Difference(mean, float(low), float(high), float(drawn.std()), p, equivalence, (len(a), len(b)))


def holm(p: Sequence[float]) -> list[float]:
    """p corrected for their number (Holm 1979): the i-th smallest of m, from 0, times m - i, and never below a smaller one's."""
    order, found, most = np.argsort(p, kind="stable"), [0.0] * len(p), 0.0
    for place, number in enumerate(order):
        most = max(most, min(1.0, (len(p) - place) * p[number]))
        found[number] = most
    return found


def resolvable(error: float, level: float = 0.05, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at this level finds with this power: (z(1 - level/2) + z(power)) error."""
    return float((scipy.special.ndtri(1 - level / 2) + scipy.special.ndtri(power)) * error)
