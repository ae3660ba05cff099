"""Workers, promises and executors beside or below one parent, calls and returns, on 20 questions of reasoning-gym's gsm_symbolic.

    python -m experiments.fetch_smollm2
    pip install -r requirements-gym.txt
    python -m experiments.evaluate --config configs/beside.py

SmolLM2 was never trained for any of these formats: their words are added when it is loaded, and the prompt shows what they are for.
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.methods import AsyncThink, CallReturn, Pasta, Sampling, Sprint
from apr_jax.methods.method import Method
from apr_jax.methods.spawn_join import Budgets
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tasks.prompt import Prompt, Shot
from configs.smollm2_methods import EXAMPLES, FORK, MODEL, QUEUES

WORDS = dict(end="", add=True, gain=1.1)
WORKER = "<|im_start|>user\n{query}\nEnd with <RETURN>the result</RETURN>.<|im_end|>\n<|im_start|>assistant\n"
FINAL = "Then the final answer is given between <answer> and </answer>."
SAMPLING = Sampling(temperature=0.7, top_p=0.95, max_tokens=160, child_max_tokens=48)
SIZES = Sizes(problems=20, lanes=4, rows=24, threads=24, slots=2048, log=3072, **QUEUES)


def shots(tell) -> tuple[Shot, ...]:
    """The examples: question, parts and conclusion, told as a method writes them."""
    return tuple(
        Shot(question, tell(list(enumerate(parts, start=1)), conclusion)) for question, parts, conclusion in EXAMPLES
    )


def async_think() -> Prompt:
    def tell(parts, conclusion: str) -> str:
        forks = "".join(f"<FORK-{number}>{task}</FORK-{number}>" for number, (task, _, _) in parts)
        joins = "".join(f"<JOIN-{number}>{result}</JOIN-{number}>" for number, (_, _, result) in parts)
        return f"{forks}{joins}{conclusion}"

    system = "Give each part of the question to a worker with <FORK-1>, and read its result with <JOIN-1>."
    return Prompt(system=f"{system} {FINAL}", shots=shots(tell))


def call_return() -> Prompt:
    def tell(parts, conclusion: str) -> str:
        calls = (f"<call>{task}</call><result>{result}<go>" for _, (task, _, result) in parts)
        return f"{''.join(calls)}{conclusion}</return>"

    system = "Call yourself for each part of the question with <call>. End with <return>the result</return>."
    return Prompt(system=f"{system} {FINAL}", shots=shots(tell))


def sprint() -> Prompt:
    def tell(parts, conclusion: str) -> str:
        prompts = "".join(f"<prompt_1.{number}>{task}</prompt_1.{number}>\n" for number, (task, _, _) in parts)
        work = "".join(f"<execution_1.{n}>\n{steps}</execution_1.{n}>\n" for n, (_, steps, _) in parts)
        plan = f"<Plan_1>\n{prompts}</Plan_1>\n\n<Execution_1>\n{work}</Execution_1>\n"
        return f"{plan}<Plan_2>\n<Final_answer>{conclusion}</Final_answer>"

    system = "Plan the parts of the question, each in a <prompt_1.1>; each is worked out in an <execution_1.1>."
    return Prompt(system=f"{system} {FINAL}", shots=shots(tell))


def pasta() -> Prompt:
    def tell(parts, conclusion: str) -> str:
        made = (f'<promise topic="{task}" tokens="1"/><async>{steps}</async>\n' for _, (task, steps, _) in parts)
        return f"{''.join(made)}<sync/>{conclusion}"

    system = "Promise each part of the question with <promise>, wait for all with <sync/>."
    return Prompt(system=f"{system} {FINAL}", shots=shots(tell))


def rollout(method: Method, ask: Prompt) -> MethodConfig:
    return MethodConfig(dataclasses.replace(FORK, method=method, ask=ask, sampling=SAMPLING, sizes=SIZES))


def config() -> EvaluateConfig:
    budgets = Budgets(threads=6, reserve=32, threads_text=" ({number} calls left)")
    return EvaluateConfig(
        methods={
            "async_think": rollout(AsyncThink(worker=WORKER, **WORDS), async_think()),
            "call_return": rollout(CallReturn(allowance=budgets, add=True, gain=1.1), call_return()),
            "sprint": rollout(Sprint(phases=3, plan_tokens=96, **WORDS), sprint()),
            "pasta": rollout(Pasta(**WORDS), pasta()),
        },
        task=ReasoningGym(ask=TAGS, dataset="gsm_symbolic", count=20),
        tokenizer=MODEL,
        output="results/beside",
    )
