"""The configuration of an evaluation: which methods answer which questions, and where the results go."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import tyro

from apr_jax.decode.problem import check_seed
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation.

    Attributes:
        methods: the methods, by name; `--only` selects some of them.
        task: the questions and their judge; the fields of the task are options without a prefix (`--problems-file`).
        tokenizer: path of the tokenizer, see `apr_jax.pretrained.tokenizer.load`.
        seed: seed of drawn questions and of all sampling.
        only: names of the methods to run; empty: all.
        makespan: numbers k of workers for which the mean makespan(k) is reported.
        shown: approximate number of questions on the timeline page; for each method a question on which it forked is added.
        output: folder of the results.
        resume: continue from the rollouts that an earlier run, with the same settings except methods, has left in `output`.
    """

    methods: Mapping[str, MethodConfig]
    task: Annotated[Task, tyro.conf.OmitArgPrefixes]
    tokenizer: str
    seed: int = 0
    only: tuple[str, ...] = ()
    makespan: tuple[int, ...] = (4, 8)
    shown: int = 8
    output: str = "results/demo"
    resume: bool = False

    def __post_init__(self):
        for name in self.only:
            if name not in self.methods:
                raise ValueError(f"only: {name!r} is not one of the methods {', '.join(self.methods)}")
        if len(set(self.makespan)) < len(self.makespan) or min(self.makespan, default=1) < 1:
            raise ValueError(f"makespan is {self.makespan}; it takes different numbers of workers, each at least 1")
        if self.shown < 1:
            raise ValueError(f"shown is {self.shown}; it must be at least 1")
        check_seed(self.seed)
