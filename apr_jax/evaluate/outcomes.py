"""The result of a method on a problem, and the means over problems that `summary.json` holds."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from apr_jax.evaluate import metrics
from apr_jax.record import Stop, Transcript

# The keys of a method in `summary.json`, the same in every evaluation. A method may add others.
KEYS = (
    "accuracy",
    "critical_path",
    "generated_tokens",
    "fed_tokens",
    "threads",
    "activation",
    "acceleration_ratio",
    "parallel_ratio",
    "peak_context",
    "wall_s",
    "steps",
    "traces",
    "stop_reasons",
)
BUDGETS = ("critical_path", "peak_context")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a method on one problem, over all its samples.

    Attributes:
        problem: the caller's number of the problem.
        correct: whether the verifier accepts the answer.
        answer: the selected answer, None if no answer had a valid format.
        critical_path: generated tokens on the longest chain; for independent samples, of the longest sample.
        generated: sampled tokens, in all threads and samples.
        fed: tokens of prompts and messages, in all threads and samples.
        threads: number of lines that generated a token, in all samples.
        forked: whether the model forked in one of the samples.
        acceleration: 1 - critical path / generated.
        parallel: share of the generated tokens outside the root's line.
        peak_context: the most slots that one thread ever saw at once.
        stop: name of a `Stop` in lower case.
    """

    problem: int
    correct: bool
    answer: str | None
    critical_path: int
    generated: int
    fed: int
    threads: int
    forked: bool
    acceleration: float
    parallel: float
    peak_context: int
    stop: str


def outcome(transcript: Transcript, answer: str | None, correct: bool) -> Outcome:
    """Counts the threads of one problem as one computation.

    Samples are the children of a root that only reads the prompt. The stop reason is `end` only if every sample ended with
    `end`, otherwise the most frequent other reason.
    """
    cut = Counter(stop for stop in _stops(transcript) if stop != Stop.END)
    stop = cut.most_common(1)[0][0] if cut else Stop.END
    return Outcome(
        problem=transcript.problem,
        correct=bool(correct),
        answer=answer,
        critical_path=metrics.critical_path(transcript),
        generated=metrics.generated_tokens(transcript),
        fed=metrics.fed_tokens(transcript),
        threads=metrics.threads(transcript),
        forked=metrics.forked(transcript),
        acceleration=metrics.acceleration_ratio(transcript),
        parallel=metrics.parallel_ratio(transcript),
        peak_context=int(transcript.peak_context),
        stop=stop.name.lower(),
    )


def _stops(transcript: Transcript) -> list[Stop]:
    """The stop reason of a transcript, or those of its samples if the root generated no token."""
    log = transcript.log
    if transcript.stop != Stop.END or (log.sampled & (transcript.lines[log.thread] == 0)).any():
        return [transcript.stop]
    samples = [thread.stop for thread in transcript.threads if thread.parent == 0 and thread.stop != Stop.CONTINUED]
    return samples or [transcript.stop]


def accuracy_within(outcomes: Sequence[Outcome], budget: float, field: str = "critical_path") -> float:
    """Accuracy if a problem counts as solved only when it was solved with `field` <= budget (APR, 5.2).

    Args:
        outcomes: outcomes of one method on all problems.
        budget: budget in tokens.
        field: `critical_path` or `peak_context`.

    Raises:
        ValueError: `field` is another name, or there is no outcome.
    """
    if field not in BUDGETS:
        raise ValueError(f"field is {field!r}; a budget can be set on {' or '.join(BUDGETS)}")
    if not outcomes:
        raise ValueError("outcomes is empty; accuracy needs at least one problem")
    return sum(o.correct and getattr(o, field) <= budget for o in outcomes) / len(outcomes)


def summary(outcomes: Sequence[Outcome], wall_s: float, steps: int, traces: int) -> dict:
    """The entry of a method in `summary.json`.

    `accuracy` and `activation` are shares of problems; `critical_path`, `generated_tokens`, `fed_tokens`, `threads`,
    `acceleration_ratio`, `parallel_ratio` and `peak_context` means per problem (of a ratio the mean of the problems' ratios);
    `stop_reasons` counts problems.

    Args:
        outcomes: one per problem.
        wall_s: seconds for all problems together, without compiling.
        steps: device steps for all problems together.
        traces: number of traces of the decode program.

    Raises:
        ValueError: there is no outcome.
    """
    if not outcomes:
        raise ValueError("outcomes is empty; a summary needs at least one problem")

    def mean(field: str) -> float:
        return sum(getattr(o, field) for o in outcomes) / len(outcomes)

    return {
        "accuracy": mean("correct"),
        "critical_path": mean("critical_path"),
        "generated_tokens": mean("generated"),
        "fed_tokens": mean("fed"),
        "threads": mean("threads"),
        "activation": mean("forked"),
        "acceleration_ratio": mean("acceleration"),
        "parallel_ratio": mean("parallel"),
        "peak_context": mean("peak_context"),
        "wall_s": float(wall_s),
        "steps": int(steps),
        "traces": int(traces),
        "stop_reasons": dict(Counter(o.stop for o in outcomes).most_common()),
    }


def write_summary(path: Path, problems: int, methods: Mapping[str, Mapping]) -> dict:
    """Writes `summary.json` and returns its contents.

    Raises:
        ValueError: a method lacks one of `KEYS`.
    """
    written = {"problems": int(problems), "methods": {name: dict(entry) for name, entry in methods.items()}}
    _check(path, written)
    path.write_text(json.dumps(written, indent=2) + "\n")
    return written


def read_summary(path: Path) -> dict:
    """Reads a file written by `write_summary`.

    Raises:
        ValueError: the file has another shape.
    """
    read = json.loads(path.read_text())
    _check(path, read)
    return read


def _check(path: Path, content: dict) -> None:
    if not isinstance(content, dict) or not {"problems", "methods"} <= content.keys():
        raise ValueError(f'{path}: not a summary; {{"problems": ..., "methods": {{...}}}} is needed')
    for name, entry in content["methods"].items():
        missing = [key for key in KEYS if key not in entry]
        if missing:
            raise ValueError(f"{path}: method {name!r} lacks {', '.join(missing)}; a summary holds {', '.join(KEYS)}")
