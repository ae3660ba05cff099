"""A model learns to fork in waves of any width: the parent of runs in which rewards teach how wide to fork.

    python -m experiments.train_sft --config configs/sft_width.py
    python -m experiments.train_rl --config configs/rl_width.py

Countdown with three numbers. A demonstration forks at once, for the first 1 to 12 first operations in canonical order, however the
problem looks; where none of these leads to the target it forks once more, for some of the others, and then gives up. So the width
of a fork is a free choice that decides how often a problem is solved: in demonstrations about half of the time in a first wave of
one or two threads, nearly always in one of six and more (`python -m experiments.measure_width`).
"""

import dataclasses

from apr_jax.model.config import PRESETS
from apr_jax.tasks.countdown import problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig
from apr_jax.tasks.countdown.training import DataConfig, Part
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.sft import SftConfig

WAVES = DemonstrationConfig(
    setting=problems.PRESETS["three"], beam=(60, 60), sub_beam=(60, 60), promising=1.0, order="canonical", largest=99,
    width=(1, 12), waves=2,
)  # fmt: skip


def config() -> SftConfig:
    return SftConfig(
        data=DataConfig(
            folder="data/width",
            method="apr",
            mixture=(Part(1.0, WAVES),),
            train=12_000,
            held_out=200,
            length=320,  # entries of a row
            threads=32,
        ),
        model=dataclasses.replace(PRESETS["tiny"], layers=2),
        optimizer=OptimizerConfig(kind="muon", learning_rate=4e-3, warm_up=20, final=0.1),
        rows_per_batch=12,  # 3,840 tokens a step
        steps=900,
        log_every=10,
        evaluate_every=150,
        workdir="work/sft_width",
    )
