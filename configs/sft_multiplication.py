"""A small model learns to multiply two to five integers up to 1,000, with a thread for each partial product.

    python -m experiments.train_sft --config configs/sft_multiplication.py
    python -m experiments.train_sft --config configs/sft_multiplication.py --data.method sequential \\
        --data.folder data/multiplication_sequential --workdir work/multiplication_sequential
    python -m experiments.evaluate --config configs/multiplication.py --only parallel sequential

`--data.method` takes the formats of ThreadWeaver ("threadweaver"), Multiverse ("multiverse") and ParaThinker ("parathinker") in the
same way. Problems, digits and carries are the same for all; what the demonstrations cost, before any training:

    python -m experiments.measure_multiplication
"""

from apr_jax.model.config import PRESETS
from apr_jax.tasks.multiplication.training import DataConfig
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.sft import SftConfig


def config() -> SftConfig:
    return SftConfig(
        data=DataConfig(folder="data/multiplication_parallel", train=40_000, held_out=200, length=768, threads=64),
        model=PRESETS["tiny"],
        optimizer=OptimizerConfig(kind="muon", learning_rate=4e-3, warm_up=50, final=0.02),
        rows_per_batch=5,  # 3,840 tokens a step
        steps=3_000,
        workdir="work/multiplication_parallel",
    )
