"""Thinkers that see each other while they write, in two sizes, on 20 questions of reasoning-gym's gsm_symbolic.

    python -m experiments.evaluate --config configs/group_think.py

SmolLM2 was never trained to work with others. The prompt tells it that there are some, as the paper does for its models, which are
not trained for it either. For a model with LaneRoPE (`ModelConfig.branch_stride`) give its file as
`--methods.two.rollout.checkpoint`, with `--methods.two.rollout.method.ranges False`.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.evaluate.select import Likeliest, Majority, Verifier
from apr_jax.methods import GroupThink, Sampling
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import Prompt
from configs.smollm2_methods import MODEL, QUEUES, SEQUENTIAL

PROMPT = Prompt(
    system=(
        "You are one of several thinkers who work on the same question at the same time. Each sees what the others have written "
        "so far. Do not repeat their work; go on from it. The final answer is given between <answer> and </answer>."
    )
)
ROLLOUT = dataclasses.replace(
    SEQUENTIAL,
    method=GroupThink(count=4),
    ask=PROMPT,
    sampling=Sampling(temperature=0.7, top_p=0.95, max_tokens=96),
    sizes=Sizes(problems=10, lanes=4, rows=40, threads=5, slots=2048, log=2048, **QUEUES),
)


def config() -> EvaluateConfig:
    two = dataclasses.replace(ROLLOUT, method=GroupThink(count=2))
    return EvaluateConfig(
        methods={
            name: MethodConfig(rollout, select=Majority(), also=(Likeliest(), Verifier()))
            for name, rollout in {"two": two, "four": ROLLOUT}.items()
        },
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/group_think",
    )
