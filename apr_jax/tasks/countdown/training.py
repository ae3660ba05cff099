"""Training data of Countdown: demonstrations of one method, of a mixture of problems."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from apr_jax import settings, tokenizer
from apr_jax.record import Transcript
from apr_jax.tasks.countdown import compact, demonstrations, problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig, Method
from apr_jax.train.drawn import DrawnData

CLASSES = {
    "number": tuple(map(str, range(1000))),
    "operator": tuple("+-*/"),
    "goal": ("<goal>",),
    "control": tuple(word for word in compact.CONTROL if word != "<goal>"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One kind of problems in a mixture.

    Attributes:
        share: share of the demonstrations, relative to the shares of the other parts.
        demonstration: settings with which they are drawn.
    """

    share: float = 1.0
    demonstration: DemonstrationConfig = DemonstrationConfig()

    def __post_init__(self):
        if not self.share > 0:
            raise ValueError(f"share is {self.share}; it must be above 0 (leave the part out instead)")


@dataclasses.dataclass(frozen=True)
class DataConfig(DrawnData):
    """The configuration of a data folder.

    Attributes:
        folder: path of the folder (free).
        method: "apr" demonstrations fork, "sos" demonstrations search in one thread.
        mixture: kinds of problems.
        train, held_out: numbers of demonstrations; held-out problems are of another split.
        length: S, entries of a row.
        threads: U, threads of a row.
        too_long: "drop" leaves out threads that are longer than a row, and counts them; "error" stops.
        left_out: largest share of the labels of a split that "drop" may leave out; more is an error, and nothing is kept.
        whole: numbers up to this one are one token, see `apr_jax.tokenizer.compact`.
        seed: seed of the demonstrations.
        processes: number of processes that draw demonstrations in parallel (free).
    """

    folder: str = dataclasses.field(default="data/apr", metadata=settings.FREE)
    method: Method = "apr"
    mixture: tuple[Part, ...] = (Part(),)
    train: int = 10000
    held_out: int = 200
    length: int = 1024
    threads: int = 64
    too_long: Literal["drop", "error"] = "drop"
    left_out: float = 0.01
    whole: int = 199
    seed: int = 0
    processes: int = dataclasses.field(default=1, metadata=settings.FREE)

    def __post_init__(self):
        super().__post_init__()
        if not self.mixture:
            raise ValueError("mixture is empty; give at least one Part")

    def tokenizer(self) -> tokenizer.Tokenizer:
        return tokenizer.compact(self.whole)

    def classes(self) -> Mapping[str, Sequence[str]]:
        return CLASSES

    def demonstrate(self, split: str, span: tuple[int, int]) -> list[Transcript]:
        encode, found = self.tokenizer().encode, []
        shares = [part.share for part in self.mixture]
        for index in range(*span):
            pick = problems.generator(self.seed, f"{split}/mixture", index)
            part = pick.choices(self.mixture, shares)[0]
            _, threads = demonstrations.sample(self.method, part.demonstration, self.seed, index, split)
            found.append(demonstrations.to_transcript(threads, encode, index))
        return found
