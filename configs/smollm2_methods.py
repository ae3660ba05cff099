"""All methods on one real language model, SmolLM2-135M-Instruct: 20 questions of reasoning-gym's gsm_symbolic.

    python -m experiments.fetch_smollm2
    pip install -r requirements-gym.txt
    python -m experiments.evaluate --config configs/smollm2_methods.py

The model was never trained to fork. Its control words are added when it is loaded, each beginning as the mean of the words in
its brackets, and the prompt shows what they are for: enough for the model to continue the pattern, not to divide a problem
well. The logit of a mean is never above the largest of its words', so the rows get a gain of 1.1; and the words are single
tokens of this vocabulary ("task" is, "spawn" is not), whose row is all theirs.
"""

import dataclasses
from typing import get_args

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Likeliest, Majority, Verifier
from apr_jax.methods import Samples, Sampling, Sequential, SpawnJoin
from apr_jax.protocols.spawn_join import Context, Returns
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import Prompt, Shot

MODEL = "work/smollm2.gguf"  # carries its tokenizer and chat template
FORK_JOIN = SpawnJoin(spawn="<task>", end="", add=True, gain=1.1)
# Questions, their parts (task, how it is worked out, result) and what is concluded from the results.
EXAMPLES = (
    (
        "Ann buys 3 pens for 4 dollars each and 5 books for 6 dollars each. How many dollars does she pay?",
        (("3 pens for 4 dollars each", "3 * 4 = 12", "12"), ("5 books for 6 dollars each", "5 * 6 = 30", "30")),
        "12 + 30 = 42, so the answer is <answer>42</answer>",
    ),
    (
        "Tom runs 7 km on each of 4 days and walks 2 km on each of 3 days. How many km is that?",
        (("7 km on each of 4 days", "7 * 4 = 28", "28"), ("2 km on each of 3 days", "2 * 3 = 6", "6")),
        "28 + 6 = 34, so the answer is <answer>34</answer>",
    ),
)


def forking(context: Context, returns: Returns) -> Prompt:
    """The prompt that shows forks as threads see them: tasks, then work where it is seen, then results where they are told.

    In a system prompt and in the assistant's turns control words are control tokens; in a question they would stay text.
    """

    def shot(question: str, parts: tuple[tuple[str, str, str], ...], conclusion: str) -> Shot:
        tasks = "".join(f"<task>{task}" for task, _, _ in parts)
        work = "".join(f"<task>{task}<go>{steps}<join>{result}<|im_end|>" for task, steps, result in parts)
        results = "".join(f"<result>{result}" for _, _, result in parts)
        seen, told = context != "isolated" or returns != "message", returns == "message"
        return Shot(question, f"{tasks}<wait>{work * seen}{results * told}<go>{conclusion}")

    system = (
        "Split the question into parts that can be worked out at the same time: <task> and a part, <task> and "
        "the next part, then <wait>. Each part is worked out alone: <task>3 pens for 4 dollars each<go>3 * 4 = 12<join>12. "
        "The results come back, and after <go> the final answer is given between <answer> and </answer>."
    )
    return Prompt(system=system, shots=tuple(shot(*example) for example in EXAMPLES))


QUEUES = dict(prompt=640, feed_tiles=4, feed_chunk=64, queue=64, outbox=16)

SEQUENTIAL = RolloutConfig(
    method=Sequential(end=""),
    checkpoint=MODEL,
    sampling=Sampling(max_tokens=192),
    sizes=Sizes(problems=20, lanes=1, rows=20, threads=1, slots=1024, log=1024, **QUEUES),
)
SAMPLES = dataclasses.replace(
    SEQUENTIAL,
    method=Samples(4, end=""),
    sampling=Sampling(temperature=0.6, top_p=0.95, max_tokens=192),
    sizes=Sizes(problems=10, lanes=4, rows=40, threads=5, slots=2048, log=2048, **QUEUES),
)
FORK = dataclasses.replace(
    SAMPLES,
    method=FORK_JOIN,
    sampling=Sampling(temperature=0.7, top_p=0.95, max_tokens=96, child_max_tokens=32),
    sizes=Sizes(problems=20, lanes=4, rows=24, threads=16, slots=1536, log=2048, **QUEUES),
)


def methods() -> dict[str, MethodConfig]:
    def fork(context: Context, returns: Returns) -> RolloutConfig:
        method = dataclasses.replace(FORK_JOIN, context=context, returns=returns)
        return dataclasses.replace(FORK, method=method, ask=forking(context, returns))

    forks = {
        f"{context}_{returns}": MethodConfig(fork(context, returns))
        for context in get_args(Context)
        for returns in get_args(Returns)
    }
    return {
        "sequential": MethodConfig(SEQUENTIAL),
        "self_consistency": MethodConfig(SAMPLES, select=Majority(), also=(Verifier(),)),
        "best_of_n": MethodConfig(SAMPLES, select=Likeliest()),
        **forks,
    }


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods=methods(),
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/smollm2_methods",
    )
