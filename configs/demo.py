"""Four methods, two small models, 200 held-out Countdown problems: half of them three numbers, half four as published.

    make demo

`sequential`, `self_consistency` and `best_of_n` use the model trained on SoS+ demonstrations, `apr` its twin trained on APR
demonstrations of the same problems. Self-consistency and best-of-N read the same three samples.
"""

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Likeliest, Majority, Verifier
from apr_jax.methods import Samples, Sampling, Sequential, SpawnJoin
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown.task import Countdown

SOS, APR = str(SHIPPED / "sos.safetensors"), str(SHIPPED / "apr.safetensors")
QUEUES = dict(feed_tiles=8, feed_chunk=16, prompt=32, queue=256, outbox=64)
LONGEST = 1280  # tokens of a row in the training of the SoS+ model

SEQUENTIAL = RolloutConfig(
    method=Sequential(),
    checkpoint=SOS,
    sampling=Sampling(max_tokens=LONGEST),
    sizes=Sizes(problems=64, lanes=1, rows=64, threads=1, slots=1536, log=1536, **QUEUES),
)
SAMPLES = RolloutConfig(
    method=Samples(3),
    checkpoint=SOS,
    sampling=Sampling(temperature=0.7, max_tokens=768),
    sizes=Sizes(problems=32, lanes=3, rows=96, threads=4, slots=2560, log=2560, **QUEUES),
)
SPAWN_JOIN = RolloutConfig(
    method=SpawnJoin(),
    checkpoint=APR,
    sampling=Sampling(max_tokens=320),
    sizes=Sizes(problems=24, lanes=8, rows=128, threads=24, slots=2560, log=3072, **QUEUES),
)


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods={
            "sequential": MethodConfig(SEQUENTIAL),
            "self_consistency": MethodConfig(SAMPLES, select=Majority()),
            "best_of_n": MethodConfig(SAMPLES, select=Likeliest(), also=(Verifier(),)),
            "apr": MethodConfig(SPAWN_JOIN),
        },
        task=Countdown(),
        tokenizer=str(SHIPPED / "compact.model"),
    )
