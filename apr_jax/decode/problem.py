"""The problems given to the engine, and the checks made before decoding."""

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
    """A problem to decode.

    Attributes:
        id: the caller's number of the problem; part of the random key.
        prompt: Int [n], token ids, at least one.
        sample: the caller's number of the sample; part of the random key.
        temperature: sampling is greedy at 0, and at values below `sampling.COLDEST`.
        top_k: number of tokens to keep, 0 means off.
        top_p: share of the probability to keep, 1 means off.
        max_tokens: tokens that each thread may generate.
        child_max_tokens: the same for all threads except the root; 0 means `max_tokens`.
        arguments: Int [n], numbers for the protocol; n is the protocol's `needs.arguments`.
        parts: ranges (begin, end) of the prompt by name, at least those that the protocol needs. Messages may quote them, for
            example the question without its template.
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
    """`value` as an int, if it is whole and in range.

    Raises:
        ValueError: `value` is not; the message has the name, the value and the allowed range.
    """
    if (
        isinstance(value, (bool, np.bool_))
        or not hasattr(value, "__index__")
        or not least <= operator.index(value) <= most
    ):
        raise ValueError(f"{name} is {value!r}; it must be a whole number of {least} .. {most}")
    return operator.index(value)


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a choice that is none of those allowed.

    Raises:
        ValueError: the message has the name, the value and what is allowed.
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def check_seed(seed: int) -> int:
    """The seed, if it fits into the 32 bits that JAX keeps; a larger seed would draw the same numbers as a smaller one."""
    return whole("seed", seed, 0, 2**32 - 1)


def check_sampling(given: Any, where: str = "") -> None:
    """Refuse sampling parameters and budgets that are out of range, in the 32 bits in which sampling computes.

    Args:
        given: an object with the fields `temperature`, `top_k`, `top_p`, `max_tokens` and `child_max_tokens`.
        where: prefix of the field's name in messages, as in "problem 3: ".

    Raises:
        ValueError: a field is out of range; the message has the field, its value and the allowed range.
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
    """Refuse a problem that cannot be decoded.

    Args:
        vocabulary: V, number of token ids of the model.
        sizes: the static sizes, which must hold the prompt.
        needs: the needs of the protocol.

    Raises:
        ValueError: a field is out of range; the message has the field, its value and the allowed range.
    """
    name = f"problem {problem.id}"
    whole(f"{name}: id", problem.id)
    whole(f"{name}: sample", problem.sample)
    prompt = np.asarray(problem.prompt)
    if prompt.ndim != 1 or not len(prompt):
        raise ValueError(f"{name}: prompt of shape {prompt.shape}; a list of at least one token id is needed")
    if not np.issubdtype(prompt.dtype, np.integer):
        raise ValueError(f"{name}: prompt of {prompt.dtype}; token ids are whole numbers")
    holds = {"prompt": sizes.prompt, "slots": sizes.slots, "log": sizes.log - 1}  # the log also holds the sampled token
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
