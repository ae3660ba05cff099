"""Factories of verifiers that run in a worker (`apr_jax.tasks.timed`)."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any


def mathematics() -> Callable[[str, str], bool]:
    """A verifier of mathematical equality of an answer and the right answer, by `math-verify`.

    Both answers are LaTeX, numbers or expressions, without dollar signs.
    """
    import math_verify  # here, so that only workers pay for the import

    def parse(text: str) -> list:
        # The worker has its own time limit, so math-verify needs no alarm.
        options = {"parsing_timeout": None, "raise_on_error": False}
        return math_verify.parse(f"${text}$", **options) or math_verify.parse(text, **options)

    def check(right: str, answer: str) -> bool:
        if right == answer:
            return True
        gold = parse(right)
        if not gold:
            raise ValueError(f"math-verify makes nothing of the right answer {right!r}")
        return bool(math_verify.verify(gold, parse(answer), timeout_seconds=None))

    return check


def gym(dataset: str, seed: int, size: int, options: Mapping[str, Any]) -> Callable[[int, str], bool]:
    """A verifier of an entry's number and an answer: True if the data set's own verifier gives full marks."""
    entries = gym_entries(dataset, seed, size, options)

    def check(number: int, answer: str) -> bool:
        return bool(entries.score_answer(answer, entries[number]) >= 1)

    return check


def gym_entries(dataset: str, seed: int, size: int, options: Mapping[str, Any]) -> Any:
    """The data set: entry i has `question`, `answer` and further fields for its verifier.

    Raises:
        ValueError: `reasoning-gym` is not installed, has no data set of that name, or refuses the options.
    """
    try:
        import reasoning_gym  # here, because the import takes seconds and no other task needs it
    except ImportError as error:
        raise ValueError(
            f"dataset {dataset!r} needs reasoning-gym: pip install -r requirements-gym.txt ({error})"
        ) from error
    known = reasoning_gym.factory.DATASETS
    if dataset not in known:
        near = difflib.get_close_matches(dataset, known, n=3) or sorted(known)[:3]
        raise ValueError(f"dataset: {dataset!r} is not in reasoning-gym; did you mean {', '.join(near)}?")
    try:
        return reasoning_gym.create_dataset(dataset, seed=seed, size=size, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"options {dict(options)} of reasoning-gym {dataset}: {error}") from error
