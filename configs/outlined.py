"""Threads that the model asks for by tags, each method in its own format, on 20 questions of reasoning-gym's gsm_symbolic.

    python -m experiments.evaluate --config configs/outlined.py

For a checkpoint that was trained in one of the formats give its folder as `--methods.threadweaver.rollout.checkpoint` and
`--tokenizer`, with `--methods.threadweaver.rollout.method.add False`: its tokenizer has the tags. SmolLM2, the default, was never
trained for any; the tags are added when it is loaded, and the prompt shows what they are for. Released checkpoints have
configurations of their own, see `configs/pretrained`.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.methods import NPR, Multiverse, ParallelR1, Parason, Sampling, ThreadWeaver
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import Prompt, Shot
from configs.smollm2_methods import EXAMPLES, MODEL, QUEUES, SEQUENTIAL

GAIN = 1.1


def prompt(outlines: str, outline: str, thread: str, conclude: str, block: str = "") -> Prompt:
    """Shows outlines, then the threads, then what is concluded; `block` is what all this stands in, if anything."""

    def shot(question: str, parts: tuple[tuple[str, str, str], ...], conclusion: str) -> Shot:
        numbered = list(enumerate(parts, start=1))
        asked = "".join(f"<{outline}>{number}: {task}</{outline}>\n" for number, (task, _, _) in numbered)
        work = "".join(f"<{thread}>\n{number}: {steps}\n</{thread}>" for number, (_, steps, _) in numbered)
        begun, ended = (f"<{block}>\n", f"</{block}>\n") if block else ("", "")
        return Shot(question, f"{begun}<{outlines}>\n{asked}</{outlines}>\n{work}\n{conclude}{ended}{conclusion}")

    system = (
        f"Split the question into parts that can be worked out at the same time, and list them in <{outlines}>, one <{outline}> "
        f"each. Each part is worked out in a <{thread}>. Then the final answer is given between <answer> and </answer>."
    )
    return Prompt(system=system, shots=tuple(shot(*example) for example in EXAMPLES))


def paths() -> Prompt:
    """Shows two paths to one answer, and their summary."""

    def shot(question: str, parts: tuple[tuple[str, str, str], ...], conclusion: str) -> Shot:
        steps = [work for _, work, _ in parts]
        work = "".join(f"<Path>{'; '.join(order)}</Path>" for order in (steps, steps[::-1]))
        return Shot(question, f"<Parallel>{work}</Parallel>\n<Summary>{'; '.join(steps)}</Summary>{conclusion}")

    system = (
        "Where it helps write <Parallel>, and the question is worked out twice, in one <Path> each. Compare them in a <Summary>. "
        "Then the final answer is given between <answer> and </answer>."
    )
    return Prompt(system=system, shots=tuple(shot(*example) for example in EXAMPLES))


ROLLOUT = dataclasses.replace(
    SEQUENTIAL,
    sampling=Sampling(temperature=0.7, top_p=0.95, max_tokens=160, child_max_tokens=48),
    sizes=Sizes(problems=20, lanes=4, rows=24, threads=24, slots=2048, log=2560, **QUEUES),
)


def rollouts() -> dict[str, RolloutConfig]:
    added = dict(add=True, gain=GAIN)
    outlines = prompt("Outlines", "Outline", "Thread", "", "Parallel")
    made = {
        "threadweaver": (ThreadWeaver(**added, response=640), outlines),
        "multiverse": (
            Multiverse(**added),
            prompt("Goal", "Outline", "Path", "<Conclusion>\n</Conclusion>\n", "Parallel"),
        ),
        "npr": (
            NPR(**added, response=640, reserve=64),
            prompt("guideline", "plan", "step", "<takeaway>\n</takeaway>\n"),
        ),
        "parallel_r1_seen": (ParallelR1(**added, response=640), paths()),
        "parallel_r1_unseen": (ParallelR1(**added, response=640, join="stitch"), paths()),
        "parason": (Parason(**added, response=640), prompt("Outlines", "Subtask", "Thread", "", "Parallel")),
        "parason_vote": (
            Parason(**added, response=640, read="vote", answer="<answer>", answer_end="<"),
            prompt("Outlines", "Trial", "Thread", "", "Parallel"),
        ),
    }
    return {name: dataclasses.replace(ROLLOUT, method=method, ask=ask) for name, (method, ask) in made.items()}


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods={name: MethodConfig(rollout) for name, rollout in rollouts().items()},
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/outlined",
    )
