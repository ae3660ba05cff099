"""Methods on Countdown: how each decodes, what its answer is, and what it costs.

Several methods may be read off one rollout (a majority vote and the likeliest of the same samples): rollouts that agree are decoded
once, and their wall time stands with each of the methods.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from apr_jax.decode import Engine, Problem, Progress, Sizes, Transcript
from apr_jax.evaluate import metrics, select
from apr_jax.evaluate.outcomes import Outcome, outcome, summary
from apr_jax.model import io
from apr_jax.protocols import Samples, Sequential, SpawnJoin
from apr_jax.protocols.spawn_join import Context, Returns
from apr_jax.tasks.countdown import compact, verify
from apr_jax.tasks.countdown import problems as countdown
from apr_jax.tokenizer import Tokenizer

ProtocolName = Literal["sequential", "samples", "spawn_join"]
SAMPLING = ("temperature", "top_k", "top_p", "max_tokens", "child_max_tokens")
Selection = Literal["only", "majority", "logprob", "verifier"]


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How problems are decoded.

    Attributes:
        checkpoint: the model's file.
        protocol: how threads come and go.
        samples: threads of `samples`.
        max_depth, context, returns: of `spawn_join`, see there.
        temperature, top_k, top_p: sampling; temperature 0 is greedy, top_k 0 and top_p 1 are off.
        max_tokens: tokens that one thread may generate.
        child_max_tokens: the same for all threads but the root, 0: max_tokens.
        sizes: static sizes of the compiled program.
    """

    checkpoint: str
    protocol: ProtocolName
    samples: int = 4
    max_depth: int = 1
    context: Context = "isolated"
    returns: Returns = "message"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 512
    child_max_tokens: int = 0
    sizes: Sizes = Sizes()

    def __post_init__(self):
        bounds = dict(samples=1, max_depth=1, max_tokens=1, child_max_tokens=0, temperature=0, top_k=0)
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 is off)")


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """A method: a rollout, and the rule that picks one of its answers.

    Attributes:
        rollout: how problems are decoded.
        select: `only` where there is one answer; among samples `majority`, `logprob` or `verifier` (an oracle).
        also: further rules reported as `accuracy_RULE`.
    """

    rollout: RolloutConfig
    select: Selection = "only"
    also: tuple[Selection, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What decoding gave: transcripts in the order of the problems, and the run's last progress."""

    transcripts: list[Transcript]
    progress: Progress
    traces: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What a method made of the problems."""

    outcomes: list[Outcome]
    entry: dict
    rollout: Rollout


def make_protocol(config: RolloutConfig, words: Tokenizer):
    """The protocol of a rollout with the control words of the compact format."""
    end = words.id("<end>")
    if config.protocol == "sequential":
        return Sequential(end)
    if config.protocol == "samples":
        return Samples(config.samples, end)
    names = ("spawn", "wait", "result", "join", "end", "go")
    ids = {name: words.id(f"<{name}>") for name in names}
    return SpawnJoin(**ids, max_depth=config.max_depth, context=config.context, returns=config.returns)


def make_engine(config: RolloutConfig, words: Tokenizer) -> Engine:
    """The engine of a rollout.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be read, or its vocabulary is smaller than the tokenizer's.
    """
    model = io.load(config.checkpoint)
    if model.config.vocabulary < words.size:
        raise ValueError(
            f"checkpoint {config.checkpoint}: vocabulary of {model.config.vocabulary}, the tokenizer has {words.size} pieces"
        )
    return Engine(model, make_protocol(config, words), config.sizes)


def requests(problems: Sequence[countdown.Problem], config: RolloutConfig, words: Tokenizer) -> list[Problem]:
    """The problems as the engine wants them; their numbers are their places."""
    sampling = {name: getattr(config, name) for name in SAMPLING}
    return [
        Problem(i, np.array(words.encode(compact.prompt(problem)), np.int32), **sampling)
        for i, problem in enumerate(problems)
    ]


def roll_out(
    problems: Sequence[countdown.Problem],
    config: RolloutConfig,
    words: Tokenizer,
    seed: int,
    watch: Callable[[Progress], None],
) -> Rollout:
    """Decode all problems."""
    engine = make_engine(config, words)
    last: list[Progress] = []

    def look(progress: Progress):
        last[:] = [progress]
        watch(progress)

    found = {t.problem: t for t in engine.decode(requests(problems, config, words), seed, slice_steps=200, watch=look)}
    return Rollout([found[i] for i in range(len(problems))], last[0], engine.traces)


def answers(transcript: Transcript, words: Tokenizer) -> list[tuple[int, tuple[str, ...] | None]]:
    """The threads that answer, and their answers: the root, or where the root only reads the prompt its children."""
    speaks = np.any(transcript.log.sampled & (transcript.log.thread == 0))
    threads = [0] if speaks else [i for i, thread in enumerate(transcript.threads) if thread.parent == 0]
    return [(i, compact.parse_answer(words.decode(transcript.tokens(i)))) for i in threads]


def judge(
    problem: countdown.Problem, transcript: Transcript, words: Tokenizer, rule: Selection
) -> tuple[int | None, str | None, bool]:
    """The thread that a rule picks, its answer as text and whether it is right; (None, None, False) without an answer."""
    threads, samples = [], []
    for thread, operations in answers(transcript, words):
        threads.append(thread)
        answer = None if operations is None else ";".join(operations)
        correct = operations is not None and verify.check_solution(problem, operations)
        logprob = metrics.mean_logprob(transcript, thread) if rule == "logprob" else 0.0
        samples.append(select.Sample(answer, correct, logprob))
    rules = {"majority": select.majority, "logprob": select.by_logprob, "verifier": select.by_verifier}
    chosen = rules[rule](samples) if rule in rules else (0 if samples[0].answer is not None else None)
    if chosen is None:
        return None, None, False
    return threads[chosen], samples[chosen].answer, samples[chosen].correct


def evaluate(problems: Sequence[countdown.Problem], method: MethodConfig, rollout: Rollout, words: Tokenizer) -> Result:
    """Judge a rollout by a method's rule and sum up."""
    pairs = list(zip(problems, rollout.transcripts, strict=True))

    def outcomes(rule: Selection) -> list[Outcome]:
        return [outcome([t], *judge(p, t, words, rule)[1:]) for p, t in pairs]

    found, progress = outcomes(method.select), rollout.progress
    entry = summary(found, progress.seconds, progress.feed_steps + progress.decode_steps, rollout.traces)
    for rule in method.also:
        entry[f"accuracy_{rule}"] = float(np.mean([o.correct for o in outcomes(rule)]))
    entry["tokens_per_second"] = progress.sampled / max(progress.seconds, 1e-9)
    entry["occupancy"] = progress.occupancy
    return Result(found, entry, rollout)
