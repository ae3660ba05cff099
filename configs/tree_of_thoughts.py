"""Tree of thoughts, breadth first, on 20 questions of reasoning-gym's gsm_symbolic, with SmolLM2-135M-Instruct.

    python -m experiments.evaluate --config configs/tree_of_thoughts.py

Thoughts are sampled or proposed, valued by labels or by votes; each of the four searches keeps the best one of five lines. The
published prompts are those of other tasks, so that the words here are ours.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.methods import Sampling, TreeOfThoughts
from apr_jax.methods.judges import Labelled, Vote
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from configs.smollm2_methods import MODEL, QUEUES, SEQUENTIAL

PROPOSE = "\nFive ways to write the next line, one on each line:\n"
SAMPLED = TreeOfThoughts(end="", step_ends=("\n", "\n\n"), beams=1, width=5, steps=4, judge=Labelled())
METHODS = {
    "sampled_valued": SAMPLED,
    "sampled_voted": dataclasses.replace(SAMPLED, judge=Vote()),
    "proposed_valued": dataclasses.replace(SAMPLED, propose=PROPOSE),
    "proposed_voted": dataclasses.replace(SAMPLED, propose=PROPOSE, judge=Vote()),
}
ROLLOUT = dataclasses.replace(
    SEQUENTIAL,
    method=SAMPLED,
    sampling=Sampling(temperature=0.7, max_tokens=192, child_max_tokens=64),
    sizes=Sizes(problems=4, lanes=15, rows=60, threads=96, slots=8192, log=12288, **QUEUES),
)


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods={name: MethodConfig(dataclasses.replace(ROLLOUT, method=method)) for name, method in METHODS.items()},
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/tree_of_thoughts",
    )
