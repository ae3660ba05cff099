"""A small model learns APR's parallel search on Countdown (imitation: APR, arXiv 2504.15466, section 4.3), on one CPU core.

    python -m experiments.train_sft --config configs/sft_apr.py

Problems of four numbers as published, forked at the root: the ten best first operations go to children, who search everything
below theirs; problems of three numbers, which one thread solves; and many of two numbers, in which every third result is the
target: without them "the result is the target" is what a model learns last, one token in sixty among sixty of other skills.
Successors stand in canonical order and numbers above 199 are pruned, so that what a thread writes next follows from what it sees
and its arithmetic stays small. What the demonstrators solve and cost:

    python -m experiments.measure_demonstrator --beams 10,15 --methods apr --promising 1 --largest 199
    python -m experiments.measure_demonstrator --beams 10,15 --methods sos --promising 0.5 --largest 199
"""

import dataclasses

from apr_jax.model.config import PRESETS
from apr_jax.tasks.countdown import problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig
from apr_jax.tasks.countdown.problems import Setting
from apr_jax.tasks.countdown.training import DataConfig, Part
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.sft import SftConfig

SEARCH = dict(sub_beam=(15, 15), order="canonical", largest=199)
FOUR = DemonstrationConfig(setting=problems.PRESETS["four"], beam=(10, 10), promising=1.0, **SEARCH)
THREE = DemonstrationConfig(setting=problems.PRESETS["three"], beam=(15, 15), promising=0.0, **SEARCH)
TWO = dataclasses.replace(THREE, setting=Setting(numbers=2))
TWO_WIDE = dataclasses.replace(THREE, setting=Setting(numbers=2, high=199))  # as nodes below other operations have them


def config() -> SftConfig:
    return SftConfig(
        data=DataConfig(
            folder="data/apr",
            method="apr",
            mixture=(Part(10.0, TWO), Part(10.0, TWO_WIDE), Part(3.0, THREE), Part(1.0, FOUR)),
            train=160_000,
            held_out=400,
            length=320,  # entries of a row
            threads=32,
            processes=2,
        ),
        model=PRESETS["tiny"],
        optimizer=OptimizerConfig(kind="muon", learning_rate=4e-3, warm_up=50, final=0.02),
        rows_per_batch=12,  # 3,840 tokens a step
        steps=3_800,
        checkpoint_every=250,
        workdir="work/sft_apr",
    )
