"""The sequential twin of `sft_apr`: the same model learns SoS+ hybrid search, in one thread, from the same problems.

    python -m experiments.train_sft --config configs/sft_sos.py

The same beams and the same number of training tokens, which makes more passes over the (shorter) demonstrations. Traces longer
than a row are left out and counted when the data are made, as the published 4,096-token context does.
"""

import dataclasses

from apr_jax.tasks.countdown.training import Part
from apr_jax.train.sft import SftConfig
from configs import sft_apr


def config() -> SftConfig:
    apr = sft_apr.config()
    mixture = tuple(
        Part(part.share, dataclasses.replace(part.demonstration, promising=0.5)) for part in apr.data.mixture
    )
    data = dataclasses.replace(apr.data, folder="data/sos", method="sos", mixture=mixture, length=1280, threads=100)
    return dataclasses.replace(
        apr,
        data=data,
        rows_per_batch=3,
        workdir="work/sft_sos",
    )
