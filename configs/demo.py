"""Four methods, two small models, 200 held-out Countdown problems: half of them three numbers, half four as published.

    make demo

About two minutes on two CPU cores. `sequential`, `self_consistency` and `best_of_n` use the model trained on SoS+ demonstrations,
`apr` its twin trained on APR demonstrations of the same problems. Self-consistency and best-of-N read the same four samples.
"""

from apr_jax.decode import Sizes
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.tasks.countdown import SHIPPED
from experiments.evaluate import EvaluateConfig

SOS, APR = str(SHIPPED / "sos.safetensors"), str(SHIPPED / "apr.safetensors")

SEQUENTIAL = RolloutConfig(
    checkpoint=SOS,
    protocol="sequential",
    max_tokens=2048,
    sizes=Sizes(
        problems=64, lanes=1, rows=64, feed_tiles=8, feed_chunk=24, threads=1, slots=2560, log=2560, queue=256, outbox=64
    ),
)  # fmt: skip
SAMPLES = RolloutConfig(
    checkpoint=SOS,
    protocol="samples",
    samples=4,
    temperature=0.7,
    max_tokens=2048,
    sizes=Sizes(
        problems=32, lanes=4, rows=128, feed_tiles=8, feed_chunk=24, threads=5, slots=8704, log=8704, queue=256, outbox=32
    ),
)  # fmt: skip
SPAWN_JOIN = RolloutConfig(
    checkpoint=APR,
    protocol="spawn_join",
    max_tokens=512,
    sizes=Sizes(
        problems=24, lanes=8, rows=128, feed_tiles=8, feed_chunk=24, threads=24, slots=4096, log=4096, queue=256, outbox=64
    ),
)  # fmt: skip


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods={
            "sequential": MethodConfig(SEQUENTIAL),
            "self_consistency": MethodConfig(SAMPLES, select="majority"),
            "best_of_n": MethodConfig(SAMPLES, select="logprob", also=("verifier",)),
            "apr": MethodConfig(SPAWN_JOIN),
        }
    )
