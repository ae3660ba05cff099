"""Rewards teach how wide to fork: the parent of `configs/sft_width.py`, whose forks have any width, learns from right and wrong.

    python -m experiments.train_rl --config configs/rl_width.py

512 samples a step and a small learning rate, because such gradients are mostly noise, and a model bears no large step along them:
`python -m experiments.measure_gradient` says how large (docs/reinforcement.md has figures).
"""

import dataclasses

from apr_jax.rl.config import RlConfig
from apr_jax.rl.groups import GroupConfig
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.train.optimizer import OptimizerConfig
from configs import rl_countdown, sft_width


def config() -> RlConfig:
    four, start = rl_countdown.config(), sft_width.config()
    sampling = dataclasses.replace(four.rollout.sampling, max_tokens=256)
    return dataclasses.replace(
        four,
        rollout=dataclasses.replace(four.rollout, checkpoint=str(start.exported), sampling=sampling),
        task=Countdown(settings=("three",), problems_per_setting=8_000, split="train"),
        held_out=Countdown(settings=("three",), problems_per_setting=300, split="val"),
        groups=GroupConfig(length=512, threads=32, rows=512),
        optimizer=OptimizerConfig(learning_rate=3e-5, warm_up=5, final=1.0, weight_decay=0.0, beta2=0.99),
        prompts=64,
        samples=8,
        steps=100,
        evaluate_every=20,
        workdir="work/rl_width",
    )
