"""Skeleton of thought beside one thread, on 20 questions of reasoning-gym's gsm_symbolic, with SmolLM2-135M-Instruct.

    python -m experiments.evaluate --config configs/skeleton.py

Its authors report that it suits lists and advice, and does harm where steps build on each other, as in these questions: what is
compared here is the critical path. The words of the prompt are ours.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.methods import Sampling, Skeleton
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import Prompt, Shot
from configs.smollm2_methods import EXAMPLES, MODEL, QUEUES, SEQUENTIAL

WRAP = (
    "{question}\n\nGive only the skeleton of the answer: a numbered list of at most five points of three to five words."
)


def shot(question: str, parts: tuple[tuple[str, str, str], ...]) -> Shot:
    """An example of a skeleton."""
    points = [*(task for task, _, _ in parts), "Add the results"]
    return Shot(question, "\n".join(f"{number}. {point}" for number, point in enumerate(points, start=1)))


ASK = Prompt(wrap=WRAP, shots=tuple(shot(question, parts) for question, parts, _ in EXAMPLES), opening="1.")
ROLLOUT = dataclasses.replace(
    SEQUENTIAL,
    method=Skeleton(end=""),
    ask=ASK,
    sampling=Sampling(max_tokens=96, child_max_tokens=48),
    sizes=Sizes(problems=10, lanes=4, rows=40, threads=12, slots=4096, log=4096, **QUEUES),
)


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods={"sequential": MethodConfig(SEQUENTIAL), "skeleton": MethodConfig(ROLLOUT)},
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/skeleton",
    )
