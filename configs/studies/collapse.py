"""Three ways against the collapse to one thread, none of them, and the reward switched off half way.

    python -m experiments.reproduce collapse
    python -m experiments.reproduce collapse --smoke True

Annealed (PARL, Kimi K2.5), capped (AsyncThink), z-scored on right answers (Parason): each was published alone. Five arms, three
seeds, 150 steps; the plot of training shows accuracy and threads over steps.
"""

import dataclasses

from apr_jax.rl.config import RlConfig
from apr_jax.rl.rewards import Annealed, Concurrency, Correctness, Part, Ratio, Spawned, ZScored
from apr_jax.sweep.study import Arm, Claim, Stage, Study
from configs import rl_countdown
from configs.studies import rl_apr

WEIGHT, HALF = 0.3, 75


def rewarded(*parts: Part) -> RlConfig:
    return dataclasses.replace(rl_countdown.config(), rewards=(Part(Correctness()), *parts))


def none() -> RlConfig:
    return rewarded()


def annealed() -> RlConfig:
    return rewarded(Part(Annealed(Spawned(), steps=100), WEIGHT))


def capped() -> RlConfig:
    return rewarded(Part(Concurrency(), WEIGHT))


def z_scored() -> RlConfig:
    return rewarded(Part(ZScored(Ratio("parallel"), limit=1.0), WEIGHT))


def switched_off() -> RlConfig:
    """The capped one for the first half."""
    return rewarded(Part(Annealed(Concurrency(), steps=1, start=HALF), WEIGHT))


def config() -> Study:
    names = ("none", "annealed", "capped", "z_scored", "switched_off")
    arms = [
        Arm(name, "apr", (Stage(f"configs/studies/collapse.py:{name}"),), evaluate=rl_apr.CHECKPOINT) for name in names
    ]
    return Study(
        question="Which reward keeps a model from falling back to one thread, and at what cost in accuracy?",
        arms=(Arm("parent", "apr"), *arms),
        claims=tuple(Claim(name, "none", "threads", published="collapse without it") for name in names[1:4]),
        evaluation=rl_apr.EVALUATION,
        options=rl_apr.FOUR,
        hours=12,
        small=rl_apr.SMALL,
        output="results/studies/collapse",
    )
