"""Long multiplication, column by column. Digits stand with the least significant first, each with the carry that it leaves.

Of several integers the product so far is multiplied by the next one: a partial product for each digit of the next one, of one digit
more than the product so far (the last may be 0), then the sum of their columns without leading zeros.
"""

import dataclasses
from collections.abc import Sequence

from apr_jax.tasks.multiplication.problems import Problem

Pairs = tuple[tuple[int, int], ...]
"""Digits with their carries, least significant first."""


@dataclasses.dataclass(frozen=True)
class Partial:
    """The product so far times one digit of the next integer.

    Attributes:
        place: of the digit, 1 for the units: the product's first digit belongs into column `place`.
        digit: the digit.
        pairs: of the product.
    """

    place: int
    digit: int
    pairs: Pairs


@dataclasses.dataclass(frozen=True)
class Step:
    """One multiplication: the number of the next integer, its partial products, and their sum."""

    factor: int
    partials: tuple[Partial, ...]
    total: Pairs


def digits(number: int) -> tuple[int, ...]:
    """The digits of a number, least significant first."""
    return tuple(map(int, reversed(str(number))))


def partial(left: Sequence[int], digit: int) -> Pairs:
    """A number, as digits, times one digit; the last pair is the last carry."""
    pairs, carry = [], 0
    for each in left:
        carry, rest = divmod(each * digit + carry, 10)
        pairs.append((rest, carry))
    return (*pairs, (carry, 0))


def total(partials: Sequence[Partial]) -> Pairs:
    """The sum of partial products of one length, each moved to its place."""
    pairs, carry = [], 0
    for column in range(len(partials[0].pairs) + len(partials) - 1):
        moved = ((column - each.place + 1, each.pairs) for each in partials)
        carry, rest = divmod(carry + sum(row[i][0] for i, row in moved if 0 <= i < len(row)), 10)
        pairs.append((rest, carry))
    while len(pairs) > 1 and pairs[-1] == (0, 0):
        pairs.pop()
    return tuple(pairs)


def work(problem: Problem) -> tuple[Step, ...]:
    """All multiplications of a problem, from left to right."""
    left, steps = digits(problem.factors[0]), []
    for number, factor in enumerate(problem.factors[1:], start=1):
        partials = tuple(
            Partial(place, digit, partial(left, digit)) for place, digit in enumerate(digits(factor), start=1)
        )
        steps.append(Step(number, partials, total(partials)))
        left = tuple(digit for digit, _ in steps[-1].total)
    return tuple(steps)
