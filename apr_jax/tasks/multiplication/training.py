"""Training data of multiplication: demonstrations in the format of one method."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from apr_jax import settings
from apr_jax.decode.problem import one_of
from apr_jax.record import Transcript
from apr_jax.tasks.multiplication import problems, text
from apr_jax.tasks.multiplication.problems import Setting
from apr_jax.tasks.multiplication.text import Method
from apr_jax.tasks.script import record
from apr_jax.tokenizer import Tokenizer
from apr_jax.train.drawn import DrawnData


@dataclasses.dataclass(frozen=True)
class DataConfig(DrawnData):
    """The configuration of a data folder. All methods have the same problems under the same seed.

    Attributes:
        folder: path of the folder (free).
        method: whose format the demonstrations are rendered in; "sequential" is the same work in one thread.
        setting: family of problems.
        train, held_out: numbers of demonstrations; held-out problems are of another split.
        length: S, entries of a row; the threads of a problem share one. Five integers take up to 700, eight up to 1,600.
        threads: U, threads of a row.
        too_long: "drop" leaves out problems that are longer than a row, and counts them; "error" stops.
        left_out: largest share of the labels of a split that "drop" may leave out; more is an error, and nothing is kept.
        seed: seed of the demonstrations.
        processes: number of processes that draw demonstrations in parallel (free).
    """

    folder: str = dataclasses.field(default="data/multiplication", metadata=settings.FREE)
    method: Method = "parallel"
    setting: Setting = problems.PRESETS["two_to_five"]
    train: int = 10_000
    held_out: int = 200
    length: int = 768
    threads: int = 64
    too_long: Literal["drop", "error"] = "drop"
    left_out: float = 0.01
    seed: int = 0
    processes: int = dataclasses.field(default=1, metadata=settings.FREE)

    def __post_init__(self):
        super().__post_init__()
        one_of("method", self.method, get_args(Method))

    def tokenizer(self) -> Tokenizer:
        return text.vocabulary()

    def classes(self) -> Mapping[str, Sequence[str]]:
        return text.CLASSES

    def demonstrate(self, split: str, span: tuple[int, int]) -> list[Transcript]:
        encode, found = text.vocabulary().encode, []
        for index in range(*span):
            problem = problems.generate(self.setting, self.seed, split, index)
            found.append(record(text.render(problem, self.method), encode, index))
        return found
