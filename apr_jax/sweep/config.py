"""The configuration of a sweep: a program, what all of its runs have in common, and the points by which they differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from apr_jax import files
from apr_jax.sweep import runs
from apr_jax.sweep.executors import Executor, Local
from apr_jax.sweep.points import Point
from apr_jax.sweep.runs import Need, Run

Written = tyro.conf.Fixed  # by the file alone
Executors = Literal["local", "ray", "slurm"]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where runs run.

    Attributes:
        executor: "local": on this machine; "ray": tasks of a Ray cluster; "slurm": nothing is run, an array script is printed.
        at_once: runs at once at most; 0: as many as fit.
        address: of the Ray cluster; empty: one is started on this machine.
    """

    executor: Executors = "local"
    at_once: int = 0
    address: str = ""

    def __post_init__(self):
        if self.executor not in get_args(Executors):
            raise ValueError(f"executor is {self.executor!r}; it can be {', '.join(get_args(Executors))}")
        if self.at_once < 0:
            raise ValueError(f"at_once is {self.at_once}; it must be at least 0, which is as many as fit")

    def start(self, need: Need) -> Executor:
        """The executor.

        Raises:
            ValueError: not even one run fits, or the executor is not installed.
        """
        if self.executor == "ray":
            from apr_jax.sweep.on_ray import Ray  # an extra

            return Ray(need, self.address)
        return Local(need, most=self.at_once)


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """A sweep.

    Attributes:
        program: the module that every run starts, such as experiments.evaluate.
        points: see `apr_jax.sweep.points`.
        base: overrides of every run, `config` first; `{folder}` in a value stands for the folder of the run.
        output: the results folder, with a folder for each run.
        need: the resources of each run.
        place: where they run.
        retries: how often a run that died is tried again.
    """

    program: Written[str]
    points: Written[Sequence[Point]]
    base: Written[Mapping[str, Any]]
    output: str = "results/sweep"
    need: Need = Need()
    place: Annotated[Place, tyro.conf.OmitArgPrefixes] = Place()
    retries: int = 1

    def __post_init__(self):
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}; it must be at least 0")
        if not self.points:
            raise ValueError("points is empty; a sweep needs at least one, [{}] is that of the base alone")
        if not any("{folder}" in str(value) for value in (*self.base.values(), *self.points[0].values())):
            raise ValueError(
                "base: no value holds {folder}, so that all runs would write to one place; give the program's option for its "
                "folder, such as 'output': '{folder}'"
            )
        runs.check_names(self.runs())

    def runs(self) -> list[Run]:
        """The runs, in the order of the points."""
        root = files.local(self.output, "output")
        return [runs.of_point(self.program, point, self.base, Path(root)) for point in self.points]
