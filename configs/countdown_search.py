"""Search over steps on Countdown, beside the sequential method and self-consistency of the same model.

    python -m experiments.evaluate --config configs/countdown_search.py

A step of the shipped SoS+ model ends where it opens the next node of its search (`<node>`, `<sub>`), leaves one (`<exit>`), or
names its solution (`<goal>`). Beams are ranked by the mean log-probability of their tokens.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Likeliest, Majority, Verifier
from apr_jax.methods import BeamSearch, Sampling
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown.task import Countdown
from configs import demo

STEPS = ("<node>", "<sub>", "<exit>", "<goal>")
BEAM = RolloutConfig(
    method=BeamSearch(step_ends=STEPS, beams=2, width=3, steps=40, distinct=True),
    checkpoint=demo.SOS,
    sampling=Sampling(temperature=0.7, max_tokens=768),
    sizes=Sizes(
        problems=16, lanes=6, rows=96, threads=256, slots=8192, page_size=8, log=16384, log_page_size=8, **demo.QUEUES
    ),
)


def config() -> EvaluateConfig:
    dvts = dataclasses.replace(BEAM.method, subtrees=2)
    rollouts = {"beam_search": BEAM, "dvts": dataclasses.replace(BEAM, method=dvts)}
    return EvaluateConfig(
        methods={
            "sequential": MethodConfig(demo.SEQUENTIAL),
            "self_consistency": MethodConfig(demo.SAMPLES, select=Majority()),
            **{name: MethodConfig(each, also=(Likeliest(), Verifier())) for name, each in rollouts.items()},
        },
        task=Countdown(problems_per_setting=10),
        tokenizer=str(SHIPPED / "compact.model"),
    )
