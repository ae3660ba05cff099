"""The model of `configs/sft_three.py` learns on from its own answers to Countdown problems of three numbers.

python -m experiments.train_rl --config configs/rl_three.py
"""

import dataclasses

from apr_jax.rl.config import RlConfig
from apr_jax.rl.groups import GroupConfig
from apr_jax.tasks.countdown.task import Countdown
from configs import rl_countdown, sft_three


def config() -> RlConfig:
    four, start = rl_countdown.config(), sft_three.config()
    sampling = dataclasses.replace(four.rollout.sampling, max_tokens=160)
    return dataclasses.replace(
        four,
        rollout=dataclasses.replace(four.rollout, checkpoint=str(start.exported), sampling=sampling),
        task=Countdown(settings=("three",), problems_per_setting=1_000, split="train"),
        held_out=Countdown(settings=("three",), problems_per_setting=100, split="val"),
        groups=GroupConfig(length=512, threads=32, rows=96),
        steps=24,
        evaluate_every=4,
        workdir="work/rl_three",
    )
