"""Paths of thought side by side and a summary, in the format of ParaThinker, on 20 questions of reasoning-gym's gsm_symbolic.

    python -m experiments.evaluate --config configs/parathinker.py

For a released checkpoint give its folder as `--methods.first.rollout.checkpoint` (and of the other methods) and `--tokenizer`, with
`--methods.first.rollout.method.add False`: its tokenizer has the words, and its table `seg_embeddings` is read. SmolLM2, the
default, was never trained for them; the words are added when it is loaded, and the prompt shows what they are for.
"""

import dataclasses
from typing import get_args

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.methods import ParaThinker, Sampling
from apr_jax.methods.parathinker import Enough
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import Prompt, Shot
from configs.smollm2_methods import EXAMPLES, MODEL, QUEUES, SEQUENTIAL

METHOD = ParaThinker(add=True, gain=1.1, paths=4)


def prompt() -> Prompt:
    """Shows one path and the summary: a path sees no other."""

    def shot(question: str, parts: tuple[tuple[str, str, str], ...], conclusion: str) -> Shot:
        steps = ". ".join(work for _, work, _ in parts)
        answer = conclusion[conclusion.index("<answer>") :]
        return Shot(question, f"<think1>{steps}. {conclusion}</think1><summary>{METHOD.phrase} {answer}</summary>")

    system = "Think first, then sum up what was thought. The final answer stands between <answer> and </answer> in the summary."
    return Prompt(system=system, shots=tuple(shot(*example) for example in EXAMPLES))


ROLLOUT = dataclasses.replace(
    SEQUENTIAL,
    method=METHOD,
    ask=prompt(),
    sampling=Sampling(temperature=0.5, max_tokens=48, child_max_tokens=96),
    sizes=Sizes(problems=10, lanes=4, rows=40, threads=5, slots=2048, log=2048, **QUEUES),
)


def config() -> EvaluateConfig:
    methods = {enough: dataclasses.replace(METHOD, enough=enough) for enough in get_args(Enough)}
    return EvaluateConfig(
        methods={name: MethodConfig(dataclasses.replace(ROLLOUT, method=method)) for name, method in methods.items()},
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/parathinker",
    )
