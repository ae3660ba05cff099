"""A model of half a million parameters learns to search in threads on Countdown with three numbers, in minutes on two cores.

    python -m experiments.train_sft --config configs/sft_three.py
    python -m experiments.train_rl --config configs/rl_three.py

A demonstration forks at once: one thread for each first operation, which tries the second ones and reports what it found.
"""

import dataclasses

from apr_jax.model.config import PRESETS
from apr_jax.tasks.countdown import problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig
from apr_jax.tasks.countdown.training import DataConfig, Part
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.sft import SftConfig

THREE = DemonstrationConfig(
    setting=problems.PRESETS["three"], beam=(15, 15), promising=1.0, order="canonical", largest=99
)


def config() -> SftConfig:
    return SftConfig(
        data=DataConfig(
            folder="data/three",
            method="apr",
            mixture=(Part(1.0, THREE),),
            train=5_000,
            held_out=100,
            length=320,  # entries of a row
            threads=32,
        ),
        model=dataclasses.replace(PRESETS["tiny"], layers=2),
        optimizer=OptimizerConfig(kind="muon", learning_rate=4e-3, warm_up=20, final=0.1),
        rows_per_batch=12,  # 3,840 tokens a step
        steps=300,
        log_every=10,
        evaluate_every=100,
        workdir="work/sft_three",
    )
