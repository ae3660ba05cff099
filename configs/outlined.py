"""Threads that the model outlines, in the formats of ThreadWeaver and Multiverse, on 20 questions of reasoning-gym's gsm_symbolic.

    python -m experiments.evaluate --config configs/outlined.py

For a checkpoint that was trained in one of the formats give its folder as `--methods.threadweaver.rollout.checkpoint` and
`--tokenizer`, with `--methods.threadweaver.rollout.method.add False`: its tokenizer has the tags. SmolLM2, the default, was never
trained for either; the tags are added when it is loaded, and the prompt shows what they are for.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.methods import Multiverse, Sampling, ThreadWeaver
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import Prompt, Shot
from configs.smollm2_methods import EXAMPLES, MODEL, QUEUES, SEQUENTIAL

GAIN = 1.1


def prompt(outlines: str, thread: str, conclude: str) -> Prompt:
    """Shows outlines, then the threads, then what is concluded."""

    def shot(question: str, parts: tuple[tuple[str, str, str], ...], conclusion: str) -> Shot:
        numbered = list(enumerate(parts, start=1))
        asked = "".join(f"<Outline>{number}: {task}</Outline>\n" for number, (task, _, _) in numbered)
        work = "".join(f"<{thread}>\n{number}: {steps}\n</{thread}>" for number, (_, steps, _) in numbered)
        return Shot(
            question, f"<Parallel>\n<{outlines}>\n{asked}</{outlines}>\n{work}\n{conclude}</Parallel>\n{conclusion}"
        )

    system = (
        f"Split the question into parts that can be worked out at the same time, and list them in <{outlines}>, one <Outline> "
        f"each. Each part is worked out in a <{thread}>. Then the final answer is given between <answer> and </answer>."
    )
    return Prompt(system=system, shots=tuple(shot(*example) for example in EXAMPLES))


ROLLOUT = dataclasses.replace(
    SEQUENTIAL,
    sampling=Sampling(temperature=0.7, top_p=0.95, max_tokens=160, child_max_tokens=48),
    sizes=Sizes(problems=20, lanes=4, rows=24, threads=24, slots=2048, log=2560, **QUEUES),
)


def config() -> EvaluateConfig:
    threadweaver = dataclasses.replace(
        ROLLOUT, method=ThreadWeaver(add=True, gain=GAIN, response=640), ask=prompt("Outlines", "Thread", "")
    )
    multiverse = dataclasses.replace(
        ROLLOUT, method=Multiverse(add=True, gain=GAIN), ask=prompt("Goal", "Path", "<Conclusion>\n</Conclusion>\n")
    )
    return EvaluateConfig(
        methods={"threadweaver": MethodConfig(threadweaver), "multiverse": MethodConfig(multiverse)},
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/outlined",
    )
