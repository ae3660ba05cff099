"""Two workers on one memory, in the format of Hogwild! Inference, on 20 questions of reasoning-gym's gsm_symbolic.

    python -m experiments.evaluate --config configs/hogwild.py

The method needs no training, but a model that follows its prompt: the paper has QwQ-32B, and found that small models hardly work
together. SmolLM2, the default, shows the mechanics.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.methods import Hogwild, Sampling
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import Prompt
from configs.smollm2_methods import MODEL, QUEUES, SEQUENTIAL

PROMPT = Prompt(
    system=(
        "You solve the question together with another assistant. Both of you write at the same time, and see what the other has "
        "written so far: finished steps first, then the step that the other is writing, then your own. Divide the work, answer "
        "each other, and do not do the same work twice. A step ends with an empty line. Whoever knows the final answer gives it "
        "between <answer> and </answer>."
    )
)
ROLLOUT = dataclasses.replace(
    SEQUENTIAL,
    method=Hogwild(answer="<answer>", until="<", every=64),
    ask=PROMPT,
    sampling=Sampling(temperature=0.6, top_p=0.95, max_tokens=16, child_max_tokens=160),
    sizes=Sizes(problems=10, lanes=2, rows=20, threads=48, slots=2048, log=3072, **QUEUES),
)


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods={"hogwild": MethodConfig(ROLLOUT)},
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/hogwild",
    )
