"""Countdown in the compact format, as a task."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from apr_jax.tasks.countdown import compact, problems, verify
from apr_jax.tasks.countdown.problems import Problem
from apr_jax.tasks.task import Task
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Countdown(Task[Problem]):
    """Held-out problems, or the problems of a file.

    Attributes:
        settings: families of problems to draw from (see `apr_jax.tasks.countdown.problems.PRESETS`).
        problems_per_setting: number of held-out problems of each family.
        problems_file: a JSONL file of problems, instead of drawn ones.
        split: "test" or "val".
    """

    settings: tuple[str, ...] = ("three", "four")
    problems_per_setting: int = 100
    problems_file: str = ""
    split: problems.Split = "test"

    def __post_init__(self):
        for name in self.settings:
            if name not in problems.PRESETS:
                raise ValueError(f"settings: {name!r} is not one of {', '.join(problems.PRESETS)}")
        if self.problems_per_setting < 1:
            raise ValueError(f"problems_per_setting is {self.problems_per_setting}; it must be at least 1")

    def questions(self, seed: int) -> list[Problem]:
        if self.problems_file:
            return problems.read_jsonl(Path(self.problems_file))
        drawn = []
        for name in self.settings:
            drawn += problems.benchmark(problems.PRESETS[name], seed, self.split, self.problems_per_setting)
        return drawn

    def files(self) -> dict[str, str]:
        return {"problems_file": self.problems_file} if self.problems_file else {}

    def about(self, question: Problem) -> dict:
        nums = list(question.nums)
        return {"question": f"{nums} -> {question.target}", "nums": nums, "target": question.target}

    def prompt(self, question: Problem, codec: TextCodec) -> list[int]:
        return codec.encode(compact.prompt(question))

    def parts(self, question: Problem, prompt: Sequence[int], codec: TextCodec) -> dict[str, tuple[int, int]]:
        return {"question": (1, len(prompt) - 1)}  # between <s> and <go>

    def answer(self, ids: Sequence[int], codec: TextCodec) -> str | None:
        operations = compact.parse_answer(codec.decode(ids))
        return None if operations is None else ";".join(operations)

    def grade(self, pairs: Sequence[tuple[Problem, str]]) -> list[bool]:
        return [verify.check_solution(problem, answer.split(";")) for problem, answer in pairs]
