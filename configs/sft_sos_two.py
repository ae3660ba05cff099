"""The second stage of `sft_sos`, like that of `sft_apr`.

python -m experiments.train_sft --config configs/sft_sos_two.py
"""

import dataclasses

from apr_jax.tasks.countdown.training import Part
from apr_jax.train.sft import SftConfig
from configs import sft_apr_two, sft_sos


def config() -> SftConfig:
    first, apr = sft_sos.config(), sft_apr_two.config()
    two, three, four = (dataclasses.replace(part.demonstration, promising=0.5) for part in apr.data.mixture)
    mixture = (Part(30.0, two), Part(3.3, three), Part(1.0, four))
    return dataclasses.replace(
        first,
        data=dataclasses.replace(
            first.data, folder="data/sos_two", train=66_000, held_out=6, seed=1, mixture=mixture, threads=100
        ),
        optimizer=apr.optimizer,
        start="work/sft_sos/model.safetensors",
        steps=780,
        checkpoint_every=100,
        workdir="work/sft_sos_two",
    )
