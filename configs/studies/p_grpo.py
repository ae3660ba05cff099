"""Advantages centred only, against divided by the group's standard deviation (ThreadWeaver, arXiv 2512.07843, P-GRPO).

    python -m experiments.reproduce p_grpo
    python -m experiments.reproduce p_grpo --smoke True

Correctness and the paper's bonus for acceleration: where all samples are right, division by the standard deviation makes a small
bonus as large as correctness. Two arms, three seeds, 150 steps.
"""

import dataclasses

from apr_jax.rl.config import RlConfig
from apr_jax.rl.rewards import Acceleration, Correctness, Part
from apr_jax.sweep.study import Arm, Claim, Stage, Study
from configs import rl_countdown
from configs.studies import rl_apr


def accelerated() -> RlConfig:
    return dataclasses.replace(rl_countdown.config(), rewards=(Part(Correctness()), Part(Acceleration())))


def config() -> Study:
    def arm(name: str, scale: str) -> Arm:
        stage = Stage("configs/studies/p_grpo.py:accelerated", options={"estimator.scale": scale})
        return Arm(name, "apr", (stage,), evaluate=rl_apr.CHECKPOINT)

    return Study(
        question="Does dividing advantages by the group's standard deviation cost accuracy when the reward has a small bonus?",
        arms=(Arm("parent", "apr"), arm("centred", "nothing"), arm("divided", "group")),
        claims=(Claim("centred", "divided", published="about 5 points"),),
        evaluation=rl_apr.EVALUATION,
        options=rl_apr.FOUR,
        hours=5,
        small=rl_apr.SMALL,
        output="results/studies/p_grpo",
    )
