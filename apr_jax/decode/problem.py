"""A problem as the engine is given it, and what is refused before anything is decoded."""

import dataclasses
import math
import operator
from typing import Any

import numpy as np

from apr_jax.decode.sizes import Sizes

_INT32 = np.iinfo(np.int32)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be decoded.

    Attributes:
        id: the caller's number of the problem; part of the key of its random draws.
        prompt: Int [n], token ids, at least one.
        sample: the caller's number of the sample; part of the key too.
        temperature: 0 is greedy, and so is what is below `sampling.COLDEST`.
        top_k: keep that many tokens, 0 is off.
        top_p: keep that share of the probability, 1 is off.
        max_tokens: tokens that each thread may generate.
        child_max_tokens: the same for all threads but the root, 0: max_tokens.
    """

    id: int
    prompt: np.ndarray
    sample: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 512
    child_max_tokens: int = 0


def whole(name: str, value: Any, least: int = _INT32.min, meaning: str = "") -> int:
    """The number, if it is whole and fits 32 bits.

    Args:
        name: of the field, for the message.
        least: smallest number allowed.
        meaning: of the smallest number, for the message.

    Raises:
        ValueError: it is something else; the message has the field, the value and what is allowed.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} = {value!r}; a whole number is needed") from None
    if not least <= number <= _INT32.max:
        raise ValueError(f"{name} = {number}; allowed are {least}{meaning} .. {_INT32.max}")
    return number


def check_sampling(given: Any, where: str = "") -> None:
    """Refuse parameters of sampling and budgets that mean nothing.

    Args:
        given: what has the fields `temperature`, `top_k`, `top_p`, `max_tokens` and `child_max_tokens`.
        where: put before the name of the field, as in "problem 3: ".

    Raises:
        ValueError: with the field, its value and what is allowed.
    """
    if not 0 <= given.temperature < math.inf:
        raise ValueError(f"{where}temperature = {given.temperature}; a number from 0 (greedy) is needed")
    if not 0 < given.top_p <= 1:
        raise ValueError(f"{where}top_p = {given.top_p}; must be above 0 and at most 1 (1 is off)")
    whole(f"{where}top_k", given.top_k, 0, " (off)")
    whole(f"{where}max_tokens", given.max_tokens, 1)
    whole(f"{where}child_max_tokens", given.child_max_tokens, 0, " (like max_tokens)")


def check(problem: Problem, vocabulary: int, sizes: Sizes) -> None:
    """Refuse a problem that cannot be decoded as it is.

    Raises:
        ValueError: with the field, its value and what is allowed.
    """
    name = f"problem {problem.id}"
    whole(f"{name}: id", problem.id)
    whole(f"{name}: sample", problem.sample)
    prompt = np.asarray(problem.prompt)
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"{name}: prompt of shape {prompt.shape}; a list of at least one token id is needed")
    if not np.issubdtype(prompt.dtype, np.integer):
        raise ValueError(f"{name}: prompt of {prompt.dtype}; token ids are whole numbers")
    holds = {"prompt": sizes.prompt, "slots": sizes.slots, "log": sizes.log - 1}  # the log also holds what is sampled
    for size, most in holds.items():
        if len(prompt) > most:
            value = getattr(sizes, size)
            raise ValueError(f"{name}: prompt of {len(prompt)} tokens; sizes.{size} = {value} holds {most}, raise it")
    if prompt.min() < 0 or prompt.max() >= vocabulary:
        raise ValueError(f"{name}: token ids {prompt.min()} .. {prompt.max()}; allowed are 0 .. {vocabulary - 1}")
    check_sampling(problem, f"{name}: ")
