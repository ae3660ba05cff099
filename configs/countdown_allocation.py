"""Methods that decide while samples run which of them deserve more tokens, beside self-consistency, on 20 Countdown problems.

    python -m experiments.evaluate --config configs/countdown_allocation.py

DeepConf stops samples whose confidence falls below the bar of the first ones; offline it filters finished samples, by four measures
of confidence; launch-prune (STOP) keeps the best few after some tokens; Parallel-Probe asks all samples for their answers now and
then; Gambit gives up the worst samples, and branches the best.
Scores are log-probabilities, because no scorer is shipped: for a scorer's weights give `score='scorer'` and the rollout's `scorer`.
"""

import dataclasses
from typing import get_args

from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.evaluate.select import Confident, Likeliest, Majority, Measure, Verifier, Weighted
from apr_jax.methods import DeepConf, Gambit, LaunchPrune, Method, ParallelProbe, Samples
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown.task import Countdown
from configs import countdown_search, demo

COUNT = 8
METHODS: dict[str, Method] = {
    "self_consistency": Samples(COUNT),
    "deepconf_low": DeepConf(COUNT, warmup=3, percentile=90, window=32),
    "deepconf_high": DeepConf(COUNT, warmup=3, percentile=10, window=32),
    "deepconf_offline": DeepConf(COUNT, warmup=COUNT, percentile=0, window=32),
    "launch_prune": LaunchPrune(COUNT, keep=3, after=64, score="logprob"),
    "parallel_probe": ParallelProbe(COUNT, every=64, answer_tokens=48, warmup=2, stable=4),
    "gambit": Gambit(
        COUNT,
        thought_ends=countdown_search.STEPS,
        every=8,
        warmup=32,
        threshold=0.5,
        replace=2,
        branches=32,
        score="logprob",
    ),
}
MEASURES = tuple(Confident(keep, measure, window=32) for keep in (0.1, 0.9) for measure in get_args(Measure))
SIZES = dataclasses.replace(countdown_search.BEAM.sizes, lanes=COUNT, rows=16 * COUNT, threads=112)


def config() -> EvaluateConfig:
    rollouts = {name: dataclasses.replace(demo.SAMPLES, method=method, sizes=SIZES) for name, method in METHODS.items()}
    select = {name: Majority() for name in METHODS} | {"gambit": Weighted()}
    select |= {name: Weighted() for name in METHODS if name.startswith("deepconf")}
    select |= {"deepconf_offline": MEASURES[1]}
    also = {name: (Likeliest(), Verifier()) for name in METHODS}
    also["deepconf_offline"] += MEASURES
    return EvaluateConfig(
        methods={
            name: MethodConfig(rollout, select=select[name], also=also[name]) for name, rollout in rollouts.items()
        },
        task=Countdown(problems_per_setting=10),
        tokenizer=str(SHIPPED / "compact.model"),
        output="results/countdown_allocation",
    )
