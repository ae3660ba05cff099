"""Multiplication of several integers, as a task."""

import dataclasses
import math
from collections.abc import Sequence

from apr_jax.tasks.multiplication import problems, text
from apr_jax.tasks.multiplication.problems import Problem
from apr_jax.tasks.splits import Split, check_split
from apr_jax.tasks.task import Task
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Multiplication(Task[Problem]):
    """Held-out problems; an answer is right if it is the exact product.

    Attributes:
        settings: families of problems to draw from (see `apr_jax.tasks.multiplication.problems.PRESETS`).
        problems_per_setting: number of held-out problems of each family.
        split: "test" or "val".
    """

    settings: tuple[str, ...] = ("two_to_five",)
    problems_per_setting: int = 100
    split: Split = "test"

    def __post_init__(self):
        check_split(self.split)
        for name in self.settings:
            if name not in problems.PRESETS:
                raise ValueError(f"settings: {name!r} is not one of {', '.join(problems.PRESETS)}")
        if self.problems_per_setting < 1:
            raise ValueError(f"problems_per_setting is {self.problems_per_setting}; it must be at least 1")

    def questions(self, seed: int) -> list[Problem]:
        drawn = []
        for name in self.settings:
            drawn += problems.benchmark(problems.PRESETS[name], seed, self.split, self.problems_per_setting)
        return drawn

    def about(self, question: Problem) -> dict:
        factors = question.factors
        product = str(math.prod(factors))  # larger than the numbers that JSON readers keep exact
        return {"question": " x ".join(map(str, factors)), "factors": list(factors), "product": product}

    def prompt(self, question: Problem, codec: TextCodec) -> list[int]:
        return codec.encode(text.prompt(question))

    def parts(self, question: Problem, prompt: Sequence[int], codec: TextCodec) -> dict[str, tuple[int, int]]:
        return {"question": (1, len(prompt) - 1)}  # between <s> and <go>

    def answer(self, ids: Sequence[int], codec: TextCodec) -> str | None:
        return text.parse_answer(codec.decode(ids))

    def grade(self, pairs: Sequence[tuple[Problem, str]]) -> list[bool]:
        return [answer == str(math.prod(problem.factors)) for problem, answer in pairs]
