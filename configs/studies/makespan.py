"""A reward on the makespan of k workers: does the width of forks follow k? Open question 3; nobody has published it.

    python -m experiments.train_sft --config configs/sft_width.py
    python -m experiments.reproduce makespan
    python -m experiments.reproduce makespan --smoke True

Right answers earn up to half a point more, the sooner k workers would have been done. The parent forks at any width, see
`configs/sft_width.py`: in the shipped model the number of threads is a constant of the problem's size.
"""

import dataclasses

from apr_jax.rl.config import RlConfig
from apr_jax.rl.rewards import Correctness, Makespan, Part
from apr_jax.sweep.study import Arm, Claim, Stage, Study
from configs import rl_width as wide
from configs.studies import rl_width

LANES = (2, 4, 8)


def priced() -> RlConfig:
    rewards = (Part(Correctness()), Part(Makespan(workers=LANES[0], budget=256), weight=0.5))
    return dataclasses.replace(wide.config(), rewards=rewards)


def config() -> Study:
    def arm(lanes: int) -> Arm:
        stage = Stage("configs/studies/makespan.py:priced", options={"rewards.1.reward.workers": float(lanes)})
        return Arm(f"{lanes} workers", "apr", (stage,), evaluate=rl_width.CHECKPOINT)

    return Study(
        question="If the reward prices the steps of k workers, do threads follow k?",
        arms=(Arm("parent", "apr"), *map(arm, LANES)),
        claims=(Claim("8 workers", "2 workers", "threads"), Claim("4 workers", "2 workers", "threads")),
        evaluation=rl_width.EVALUATION,
        options=rl_width.THREE,
        hours=7,
        small=rl_width.SMALL,
        exploratory=True,
        output="results/studies/makespan",
    )
