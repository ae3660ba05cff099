"""The sequential twin of `sft_apr`: the same model learns SoS+ hybrid search, in one thread, from the same problems.

    python -m experiments.train_sft --config configs/sft_sos.py

The same beams and the same number of training tokens, which makes about two passes over the (shorter) demonstrations. Traces longer
than a row are left out and counted when the data are made, as the published 4,096-token context does.
"""

import dataclasses

from apr_jax.train.sft import SftConfig
from configs import sft_apr

THREE = dataclasses.replace(sft_apr.THREE, promising=0.5)
FOUR = dataclasses.replace(sft_apr.FOUR, promising=0.5)


def config() -> SftConfig:
    apr = sft_apr.config()
    mixture = tuple(
        dataclasses.replace(part, demonstration=d) for part, d in zip(apr.data.mixture, (THREE, FOUR), strict=True)
    )
    data = dataclasses.replace(apr.data, folder="data/sos", method="sos", mixture=mixture, length=1280, threads=32)
    return dataclasses.replace(
        apr,
        data=data,
        rows_per_batch=3,
        chunk=128,
        workdir="work/sft_sos",
        export="work/sft_sos/model.safetensors",
    )
