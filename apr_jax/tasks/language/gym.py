"""Questions drawn by `reasoning-gym`, judged by its own verifiers."""

import dataclasses
from collections.abc import Mapping, Sequence

from apr_jax.tasks import timed
from apr_jax.tasks.language import verifiers
from apr_jax.tasks.language.task import LanguageTask, Question
from apr_jax.tasks.prompt import Prompt
from apr_jax.tasks.timed import Failure

TAGS = Prompt(
    system="Think step by step, then give the final answer between <answer> and </answer>, nothing else there."
)


Option = bool | int | float | str


@dataclasses.dataclass(frozen=True)
class Drawn(Question):
    """A question drawn with a seed, with which the verifier can draw the question again."""

    seed: int


@dataclasses.dataclass(frozen=True)
class ReasoningGym(LanguageTask):
    """A data set of `reasoning-gym`: `gsm_symbolic`, `countdown`, `products` and about a hundred others.

    Attributes:
        dataset: name of the data set.
        count: number of questions.
        options: fields of its configuration other than seed and size, such as {"difficulty": 1.0} of `gsm_symbolic`.
    """

    ask: Prompt = TAGS
    dataset: str = "gsm_symbolic"
    count: int = 100
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"count is {self.count}; it must be at least 1")

    def questions(self, seed: int) -> list[Drawn]:
        entries = verifiers.gym_entries(self.dataset, seed, self.count, self.options)
        drawn = ((i, entries[i]) for i in range(self.count))
        return [Drawn(i, entry["question"], str(entry["answer"]), seed) for i, entry in drawn]

    def grade(self, pairs: Sequence[tuple[Drawn, str]]) -> list[bool | Failure]:
        if not pairs:
            return []
        settings = {
            "seed": pairs[0][0].seed,
            "size": self.count,
            "dataset": self.dataset,
            "options": dict(self.options),
        }
        calls = [(question.number, answer) for question, answer in pairs]
        return timed.run("apr_jax.tasks.language.verifiers:gym", settings, calls, self.seconds)
