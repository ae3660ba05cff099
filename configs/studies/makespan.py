"""A reward on the makespan of k workers: does the width of forks follow k? Open question 3; nobody has published it.

    python -m experiments.reproduce makespan
    python -m experiments.reproduce makespan --smoke True

Right answers earn up to half a point more, the sooner k workers would have been done. Three arms, three seeds, 150 steps.
"""

import dataclasses

from apr_jax.rl.config import RlConfig
from apr_jax.rl.rewards import Correctness, Makespan, Part
from apr_jax.sweep.study import Arm, Claim, Stage, Study
from configs import rl_countdown
from configs.studies import rl_apr

LANES = (2, 4, 8)


def priced() -> RlConfig:
    rewards = (Part(Correctness()), Part(Makespan(workers=LANES[0], budget=640), weight=0.5))
    return dataclasses.replace(rl_countdown.config(), rewards=rewards)


def config() -> Study:
    def arm(lanes: int) -> Arm:
        stage = Stage("configs/studies/makespan.py:priced", options={"rewards.1.reward.workers": float(lanes)})
        return Arm(f"{lanes} workers", "apr", (stage,), evaluate=rl_apr.CHECKPOINT)

    return Study(
        question="If the reward prices the steps of k workers, do threads follow k?",
        arms=(Arm("parent", "apr"), *map(arm, LANES)),
        claims=(Claim("8 workers", "2 workers", "threads"), Claim("4 workers", "2 workers", "threads")),
        evaluation=rl_apr.EVALUATION,
        options=rl_apr.FOUR,
        hours=7,
        small=rl_apr.SMALL,
        exploratory=True,
        output="results/studies/makespan",
    )
