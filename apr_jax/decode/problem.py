"""A problem as the engine is given it, and what is refused before anything is decoded."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apr_jax.decode.needs import Needs
from apr_jax.decode.sizes import Sizes

_INT32, _FLOAT32 = np.iinfo(np.int32), np.finfo(np.float32)


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
        arguments: Int [n], what the protocol is told of this problem; n is its `needs.arguments`.
        parts: stretches of the prompt by name, from and to, those at least that the protocol needs (the question inside its
            template, say, which messages quote).
    """

    id: int
    prompt: np.ndarray
    sample: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 512
    child_max_tokens: int = 0
    arguments: Sequence[int] = ()
    parts: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


def whole(name: str, value: Any, least: int = _INT32.min, most: int = _INT32.max) -> int:
    """The number, if it is whole and in range.

    Raises:
        ValueError: with the name, the value and what is allowed.
    """
    if (
        isinstance(value, (bool, np.bool_))
        or not hasattr(value, "__index__")
        or not least <= operator.index(value) <= most
    ):
        raise ValueError(f"{name} is {value!r}; it must be a whole number of {least} .. {most}")
    return operator.index(value)


def check_seed(seed: int) -> int:
    """The seed, unless it draws what another one draws: JAX keeps 32 bits of it."""
    return whole("seed", seed, 0, 2**32 - 1)


def check_sampling(given: Any, where: str = "") -> None:
    """Refuse parameters of sampling and budgets that mean nothing, in the 32 bits in which sampling computes.

    Args:
        given: what has the fields `temperature`, `top_k`, `top_p`, `max_tokens` and `child_max_tokens`.
        where: put before the name of the field, as in "problem 3: ".

    Raises:
        ValueError: with the field, its value and what is allowed.
    """
    if not 0 <= given.temperature <= _FLOAT32.max:
        raise ValueError(
            f"{where}temperature is {given.temperature}; it must be 0 (greedy) or more, up to {_FLOAT32.max:g}"
        )
    if not _FLOAT32.tiny <= given.top_p <= 1:
        raise ValueError(
            f"{where}top_p is {given.top_p}; it must be above 0 ({_FLOAT32.tiny:g} or more) and at most 1 (1 is off)"
        )
    for name, least in (("top_k", 0), ("max_tokens", 1), ("child_max_tokens", 0)):
        whole(f"{where}{name}", getattr(given, name), least)


def check(problem: Problem, vocabulary: int, sizes: Sizes, needs: Needs = Needs()) -> None:  # noqa: B008 - frozen
    """Refuse a problem that cannot be decoded as it is; `needs`: of the protocol.

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
    if len(problem.arguments) != needs.arguments:
        raise ValueError(f"{name}: {len(problem.arguments)} arguments; the protocol needs {needs.arguments}")
    if missing := set(needs.parts) - set(problem.parts):
        raise ValueError(f"{name}: the prompt has no part {', '.join(sorted(missing))}; name it in parts")
    for part, (begin, end) in problem.parts.items():
        if not 0 <= begin <= end <= len(prompt):
            raise ValueError(f"{name}: part {part} is {begin} .. {end}; it must lie in the prompt, 0 .. {len(prompt)}")
    for argument in problem.arguments:
        whole(f"{name}: arguments", argument)
