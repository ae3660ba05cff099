"""A study: a sweep with claims.

Arms are trained (each seed in stages, each stage a run), settings are chosen by what training measured on validation problems,
the choice is written down, and then every arm is evaluated once on the test problems. Training and evaluation are runs like those
of any sweep, in the folders `train` and `test` of the results.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apr_jax import files
from apr_jax.sweep import points, report, runs
from apr_jax.sweep.config import Place, Written
from apr_jax.sweep.points import Point
from apr_jax.sweep.runs import Need, Run

CHOICE = "choice.json"
SMOKE = "_smoke"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of training.

    Attributes:
        config: configuration file, or FILE.py:FUNCTION.
        program: the module.
        options: overrides; `{before}` in a value stands for the folder of the stage before.
        seed: the option that takes the seed.
    """

    config: str
    program: str = "experiments.train_rl"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: str = "seed"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One of the things compared.

    Attributes:
        name: in tables.
        method: name of its method in the evaluation's configuration.
        stages: of its training; empty: it is evaluated as it is, once, without seeds.
        tries: overrides of the last stage; validation chooses one for all seeds.
        evaluate: overrides of the evaluation; `{trained}` in a value stands for the folder of the last stage.
    """

    name: str
    method: str
    stages: tuple[Stage, ...] = ()
    tries: tuple[Point, ...] = ({},)
    evaluate: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured on each problem.

    Attributes:
        field: of an `apr_jax.evaluate.outcomes.Outcome`.
        within: a field and a number: the problem counts only if that field is at most the number (accuracy at equal tokens).
    """

    field: str = "correct"
    within: tuple[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A difference that was published, or is expected.

    Attributes:
        arm, than: names of arms; the difference is `arm` minus `than`.
        measure: name of the measure.
        wants: "more", "less", or "equal" within `margin`.
        margin: for "equal", in units of the measure.
        target: the size of the difference that was hoped for, 0 for any.
        published: what others found.
    """

    arm: str
    than: str
    measure: str = "accuracy"
    wants: Literal["more", "less", "equal"] = "more"
    margin: float = 0.0
    target: float = 0.0
    published: str = ""


MEASURES = {
    "accuracy": Measure(),
    "critical path": Measure("critical_path"),
    "generated": Measure("generated"),
    "threads": Measure("threads"),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        question: what is asked, in one sentence.
        arms, claims: what is compared.
        evaluation: configuration file of the evaluation on test problems.
        options: overrides of every evaluation.
        measures: by name.
        validation: the number in `metrics.jsonl` by which a try is chosen.
        hours: of training and evaluation on two cores, as expected.
        small: overrides by program, for a smoke run.
        exploratory: one seed, or no published figure: nothing is claimed beyond what is shown.
        seeds: number of seeds of every trained arm.
        smoke: run everything in the smallest way, into another folder, and write no page into `page`.
        output: the results folder.
        page: folder of the page.
        need, place, retries: see `apr_jax.sweep.config.SweepConfig`.
    """

    question: Written[str]
    arms: Written[tuple[Arm, ...]]
    claims: Written[tuple[Claim, ...]]
    evaluation: Written[str]
    options: Written[Mapping[str, Any]]
    hours: Written[float]
    small: Written[Mapping[str, Mapping[str, Any]]]
    measures: Written[Mapping[str, Measure]] = dataclasses.field(default_factory=lambda: MEASURES)
    validation: Written[str] = "held_out/accuracy"
    exploratory: Written[bool] = False
    seeds: int = 3
    smoke: bool = False
    output: str = "results/studies/study"
    page: str = "docs/studies"
    need: Need = Need()
    place: Place = Place()
    retries: int = 1

    def __post_init__(self):
        names = [arm.name for arm in self.arms]
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be at least 1")
        if len(set(names)) < len(names):
            raise ValueError(f"arms: they are called {', '.join(names)}; each needs a name of its own")
        for claim in self.claims:
            for what, name, known in (
                ("arm", claim.arm, names), ("than", claim.than, names), ("measure", claim.measure, list(self.measures)),
            ):  # fmt: skip
                if name not in known:
                    raise ValueError(f"claims: {what} is {name!r}; it can be {', '.join(known)}")
            if (claim.wants == "equal") != (claim.margin > 0):
                raise ValueError(
                    f"claims: {claim.arm} against {claim.than} wants {claim.wants!r} with margin {claim.margin}; equality needs a "
                    "margin above 0, and nothing else has one"
                )

    @property
    def root(self) -> Path:
        return files.local(self.output + SMOKE * self.smoke, "output")

    @property
    def name(self) -> str:
        return Path(self.output).name

    @property
    def numbers(self) -> range:
        """The seeds of trained arms."""
        return range(1 if self.smoke else self.seeds)

    def stages(self) -> int:
        """The most stages of an arm."""
        return max(len(arm.stages) for arm in self.arms)

    def training(self, number: int) -> list[Run]:
        """The runs of the stage with this number, of all arms that have one."""
        found = []
        for arm in self.arms:
            if number >= len(arm.stages):
                continue
            last = number == len(arm.stages) - 1
            for tried in arm.tries if last else ({},):
                found += [self._stage(arm, number, tried, seed) for seed in self.numbers]
        return found

    def _stage(self, arm: Arm, number: int, tried: Point, seed: int) -> Run:
        stage = arm.stages[number]
        before = str(self.trained(arm, {}, seed, number - 1)) if number else ""
        options = {"config": stage.config, "workdir": "{folder}", **stage.options, **self._small(stage.program)}
        options = {key: _put(value, "{before}", before) for key, value in options.items()}
        label = {"arm": arm.name, "seed": seed, "stage": number, **tried}
        base = {**options, stage.seed: seed, **tried}
        run = runs.of_point(stage.program, {}, base, self.root / "train", points.name(label))
        return dataclasses.replace(run, point=label)

    def trained(self, arm: Arm, tried: Point, seed: int, number: int | None = None) -> Path:
        """The folder of a stage, by default the last."""
        stage = len(arm.stages) - 1 if number is None else number
        return self.root / "train" / points.name({"arm": arm.name, "seed": seed, "stage": stage, **tried})

    def _small(self, program: str) -> Mapping[str, Any]:
        return self.small.get(program, {}) if self.smoke else {}

    def choose(self) -> dict[str, dict]:
        """For each trained arm the try whose validation number, averaged over seeds, is largest; written down before any test.

        Raises:
            ValueError: an earlier choice was another one, after which the test problems have been seen; or a number is missing.
        """
        found = {}
        for arm in self.arms:
            if not arm.stages:
                continue
            scores = {points.name(tried): self._score(arm, tried) for tried in arm.tries}
            best = max(scores, key=lambda name: scores[name]) if len(scores) > 1 else next(iter(scores))
            found[arm.name] = {"chosen": best, "scores": scores, "by": self.validation}
        path = self.root / CHOICE
        before = files.read_json(path)
        changed = [name for name in before if name in found and before[name]["chosen"] != found[name]["chosen"]]
        if changed:
            raise ValueError(
                f"{path}: {changed[0]} was {before[changed[0]]['chosen']!r} and would now be {found[changed[0]]['chosen']!r}; test "
                "problems were seen by the first choice, so begin anew in another --output"
            )
        runs.write_json(path, found)
        return found

    def _score(self, arm: Arm, tried: Point) -> float:
        each = []
        for seed in self.numbers:
            folder = self.trained(arm, tried, seed)
            given = report.values(folder).get(self.validation)
            if given is None and len(arm.tries) > 1:
                raise ValueError(f"validation: {folder} has no {self.validation!r}; {arm.name} cannot be chosen by it")
            each.append(float("nan") if given is None else given)
        return float(np.mean(each))

    def tests(self, choice: Mapping[str, Mapping]) -> list[Run]:
        """The evaluations: one for each seed of a trained arm, one for each other arm."""
        found = []
        for arm in self.arms:
            chosen = next((t for t in arm.tries if points.name(t) == choice.get(arm.name, {}).get("chosen")), {})
            for seed in self.numbers if arm.stages else (None,):
                trained = str(self.trained(arm, chosen, seed)) if arm.stages else ""
                options = {"config": self.evaluation, "only": arm.method, "resume": True, "output": "{folder}"}
                options |= {**self.options, **arm.evaluate, **self._small("experiments.evaluate")}
                base = {key: _put(value, "{trained}", trained) for key, value in options.items()}
                label = {"arm": arm.name} | ({} if seed is None else {"seed": seed})
                run = runs.of_point("experiments.evaluate", {}, base, self.root / "test", points.name(label))
                found.append(dataclasses.replace(run, point=label))
        return found


def _put(value: Any, name: str, text: str) -> Any:
    return value.replace(name, text) if isinstance(value, str) else value


Drive = Callable[[Sequence[Run], Path], bool]
"""Runs so many runs in a folder; whether all of them are done."""


def carry_out(study: Study, drive: Drive) -> bool:
    """Train, choose, test; whether all of it is done."""
    for number in range(study.stages()):
        if not drive(study.training(number), study.root / "train"):
            return False
    return drive(study.tests(study.choose()), study.root / "test")
