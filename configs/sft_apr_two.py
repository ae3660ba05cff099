"""The second stage of `sft_apr`: many problems of two numbers, in which every third result is the target.

    python -m experiments.train_sft --config configs/sft_apr_two.py

Whether a result equals the target is what the first stage teaches last: one token in sixty, among sixty of other skills.
"""

import dataclasses

from apr_jax.tasks.countdown.problems import Setting
from apr_jax.tasks.countdown.training import Part
from apr_jax.train.sft import SftConfig
from configs import sft_apr

TWO = dataclasses.replace(sft_apr.THREE, setting=Setting(numbers=2))


def config() -> SftConfig:
    first = sft_apr.config()
    mixture = (Part(38.0, TWO), Part(3.3, sft_apr.THREE), Part(1.0, sft_apr.FOUR))
    return dataclasses.replace(
        first,
        data=dataclasses.replace(first.data, folder="data/apr_two", train=66_000, held_out=6, seed=1, mixture=mixture),
        optimizer=dataclasses.replace(first.optimizer, learning_rate=2e-3, warm_up=50),
        start="work/sft_apr/model.safetensors",
        steps=650,
        checkpoint_every=100,
        workdir="work/sft_apr_two",
    )
