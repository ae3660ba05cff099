"""Multiplication of two to five integers by models that were trained with `configs/sft_multiplication.py`, each in its own format.

    python -m experiments.evaluate --config configs/multiplication.py --only parallel sequential

Every method reads the checkpoint in `work/multiplication_METHOD`; `--only` names those that are trained. All have one tokenizer.
"""

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.methods import Sampling
from apr_jax.tasks.multiplication.task import Multiplication
from apr_jax.tasks.multiplication.text import METHODS

SIZES = Sizes(
    problems=16, lanes=4, rows=48, threads=24, slots=1024, log=1536, feed_tiles=8, feed_chunk=16, prompt=64, queue=256
)


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods={
            name: MethodConfig(
                RolloutConfig(
                    method=method,
                    checkpoint=f"work/multiplication_{name}/model.safetensors",
                    sampling=Sampling(max_tokens=480),
                    sizes=SIZES,
                )
            )
            for name, method in METHODS.items()
        },
        task=Multiplication(),
        tokenizer="data/multiplication_parallel",
        output="results/multiplication",
    )
