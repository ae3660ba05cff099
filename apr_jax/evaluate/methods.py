"""Methods in an evaluation: their rollouts, their answers and their costs.

Several methods may share one rollout (a majority vote and the likeliest of the same samples): equal rollouts are decoded once, and
their wall time is reported with each of the methods.
"""

import dataclasses
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from apr_jax.decode import Engine, Problem, Progress, Sizes, Transcript
from apr_jax.decode.program import fit
from apr_jax.evaluate import machine, metrics
from apr_jax.evaluate.kept import Kept
from apr_jax.evaluate.machine import Machine
from apr_jax.evaluate.outcomes import Outcome, outcome, summary
from apr_jax.evaluate.select import Candidate, Only, Selector
from apr_jax.methods import Method, Sampling
from apr_jax.model import scorer
from apr_jax.model.transformer import Model
from apr_jax.pretrained import load_model, with_control_words
from apr_jax.pretrained.tokenizer import check_fits
from apr_jax.record import Stop
from apr_jax.tasks.prompt import Prompt
from apr_jax.tasks.task import Task, grades
from apr_jax.tasks.timed import Failure
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Configuration of a rollout.

    Attributes:
        method: the method: protocol, answering threads and control words.
        checkpoint: path of the model, see `apr_jax.pretrained.load_model`.
        scorer: path of a scorer's weights (`apr_jax.model.scorer`), for methods that read one; empty for others.
        sampling: sampling parameters and budgets.
        ask: the prompt format of this method, if it differs from the task's (tasks in language).
        sizes: static sizes of the compiled program.
    """

    method: Method
    checkpoint: str
    sampling: Sampling = Sampling()
    ask: Prompt | None = None
    sizes: Sizes = Sizes()
    scorer: str = ""

    def __post_init__(self):
        self.method.check(self.sampling)


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """A method: a rollout, and the selector of its answer.

    Attributes:
        rollout: configuration of the rollout.
        select: the selector, see `apr_jax.evaluate.select`.
        also: further selectors, reported as `accuracy_NAME`.
    """

    rollout: RolloutConfig
    select: Selector = Only()
    also: tuple[Selector, ...] = ()

    def __post_init__(self):
        names = [rule.name for rule in self.also]
        if len(set(names)) < len(names):
            raise ValueError(f"also: the rules are called {', '.join(names)}; each needs a name of its own")


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer of one thread: the thread's number, and the fields that selection reads."""

    thread: int
    candidate: Candidate


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The transcripts of a method, and the answers read from them.

    Attributes:
        transcripts, answers: in the order of the questions; answers are judged.
        codec: the tokenizer with the method's control words.
        progress: progress at the end of the run.
        traces: number of traces of the program.
        machines: the machines that decoded the rollout.
        makespan: by k, the mean over the questions of the steps that k workers need.
        compile_s: seconds of compiling.
    """

    transcripts: list[Transcript]
    answers: list[list[Answer]]
    codec: TextCodec
    progress: Progress
    traces: int
    machines: tuple[Machine, ...] = ()
    makespan: Mapping[int, float] = dataclasses.field(default_factory=dict)
    compile_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Result:
    """A method's outcomes on all questions."""

    outcomes: list[Outcome]
    entry: dict
    rollout: Rollout


def load(config: RolloutConfig, codec: TextCodec) -> tuple[Model, TextCodec]:
    """The model of a rollout and the tokenizer, with the control words that the method adds.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be read, or its vocabulary is smaller than the tokenizer's.
    """
    model = load_model(config.checkpoint)
    check_fits(codec, model.config.vocabulary, f"checkpoint {config.checkpoint}")
    if config.method.add:
        return with_control_words(model, codec, list(config.method.words), gain=config.method.gain)
    return model, codec


def make_engine(
    config: RolloutConfig, codec: TextCodec, model: Model | None = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[Engine, TextCodec]:
    """The engine of a rollout, and the tokenizer with the control words that the method adds.

    Args:
        model: what `load` gave, with `codec`; None: load it here.
        mesh: see `Engine`.

    Raises:
        FileNotFoundError, ValueError: see `load`.
    """
    model, codec = load(config, codec) if model is None else (model, codec)
    weights, method = scorer.load(config.scorer) if config.scorer else None, config.method
    return Engine(model, method.protocol(codec), config.sizes, mesh, host=method.host(codec), scorer=weights), codec


def put(task: Task, config: RolloutConfig) -> Task:
    """The task with the method's own prompt format, if the method has one; raises ValueError if the task has one format only."""
    return task.asking(config.ask) if config.ask else task


def requests(task: Task, questions: Sequence, config: RolloutConfig, codec: TextCodec) -> list[Problem]:
    """The questions as problems of the engine, numbered in order. `codec` may lack the control words that the method adds.

    Raises:
        ValueError: a prompt is longer than the sizes allow, or has no token under the chat template; or the method cannot work
            with the sizes.
    """
    sampling = dataclasses.asdict(config.sampling)
    task, codec = put(task, config), config.method.spoken(codec)
    protocol = config.method.protocol(codec)
    fit(protocol, config.sizes)
    made = []
    for i, question in enumerate(questions):
        prompt = np.array(task.prompt(question, codec), np.int32)
        shown = textwrap.shorten(str(task.about(question)["question"]), 60)
        if not len(prompt):
            raise ValueError(
                f"question {i + 1} ({shown!r}): the chat template makes no token of it; it must show messages"
            )
        if len(prompt) > config.sizes.prompt:
            raise ValueError(
                f"question {i + 1} ({shown!r}): its prompt has {len(prompt)} tokens; sizes.prompt = {config.sizes.prompt} is "
                "the most, raise it (and sizes.slots and sizes.log with it) or leave the question out"
            )
        parts = task.parts(question, prompt.tolist(), codec) if protocol.needs.parts else {}
        made.append(Problem(i, prompt, **sampling, parts=parts))
    return made


class Interrupted(Exception):
    """A rollout was interrupted; `kept` is its finished part, `codec` the tokenizer that reads it."""

    def __init__(self, kept: Kept, questions: int, codec: TextCodec):
        super().__init__(f"{len(kept.finished)} of {questions} questions are finished")
        self.kept, self.codec = kept, codec


def roll_out(
    task: Task,
    questions: Sequence,
    config: RolloutConfig,
    codec: TextCodec,
    seed: int,
    watch: Callable[[Progress], None],
    stop: Callable[[], bool] | None = None,
    earlier: Kept | None = None,
) -> tuple[Kept, TextCodec]:
    """Decode all questions except those in `earlier`; returns the rollout and the tokenizer that reads its transcripts.

    Args:
        watch: called with the progress after each slice.
        stop: called after each slice; True interrupts the rollout.
        earlier: the finished part of the rollout.

    Raises:
        Interrupted: `stop` returned True before all questions were decoded, or a second Ctrl-C came within a slice.
    """
    asked = requests(task, questions, config, codec)
    if earlier and len(earlier.finished) == len(questions):
        return earlier, config.method.spoken(codec)
    kept, codec = _decode(
        [p for p in asked if not earlier or p.id not in earlier.finished], config, codec, seed, watch, stop
    )
    kept = kept.after(earlier)
    if len(kept.finished) < len(questions):
        raise Interrupted(kept, len(questions), codec)
    return kept, codec


def judged(
    task: Task, questions: Sequence, kept: Kept, codec: TextCodec, config: RolloutConfig, workers: Sequence[int] = ()
) -> Rollout:
    """Read and judge the answers of a rollout whose questions are all finished; `kept` is not changed.

    Args:
        workers: numbers k for which makespan(k) is computed.
    """
    transcripts = [kept.finished[i] for i in range(len(questions))]
    answers = read(put(task, config), questions, transcripts, codec, config)
    spans = np.mean([metrics.makespans(transcript, workers) for transcript in transcripts], axis=0).tolist()
    makespan = dict(zip(workers, spans, strict=True))
    return Rollout(transcripts, answers, codec, kept.progress, kept.traces, kept.machines, makespan, kept.compile_s)


def _decode(
    asked: Sequence[Problem],
    config: RolloutConfig,
    codec: TextCodec,
    seed: int,
    watch: Callable[[Progress], None],
    stop: Callable[[], bool] | None,
) -> tuple[Kept, TextCodec]:
    """Decode problems until `stop` returns True; returns the rollout and the tokenizer that reads it."""
    engine, codec = make_engine(config, codec)
    begin = time.perf_counter()
    engine.compile()
    compile_s = time.perf_counter() - begin
    last: list[Progress] = []

    def look(progress: Progress):
        last[:] = [progress]
        watch(progress)

    found = {}
    try:
        for transcript in engine.decode(asked, seed, slice_steps=200, watch=look, stop=stop):
            found[transcript.problem] = transcript
    except KeyboardInterrupt:
        if not last:
            raise
    return Kept(found, last[0], engine.traces, (machine.of(engine),), compile_s), codec


def read(
    task: Task, questions: Sequence, transcripts: Sequence[Transcript], codec: TextCodec, config: RolloutConfig
) -> list[list[Answer]]:
    """The graded answers of each transcript, from the method's answering threads and answer tokens.

    A transcript in which the model gave NaN has no answers.
    """
    said = lambda transcript, thread: config.method.said(transcript, thread, codec)
    answers = [
        [
            (i, None if transcript.stop == Stop.NOT_FINITE else task.answer(said(transcript, i), codec))
            for i in config.method.voices(transcript)
        ]
        for transcript in transcripts
    ]
    # Equal answers to one question are graded once, because verifiers may be slow.
    wanted = {(place, answer) for place, given in enumerate(answers) for _, answer in given if answer is not None}
    pairs = sorted(wanted)
    found = grades(task, [(questions[place], answer) for place, answer in pairs])
    known = dict(zip(pairs, found, strict=True))

    def answered(transcript: Transcript, thread: int, answer: str | None, grade: bool | Failure) -> Answer:
        failure = grade.reason if isinstance(grade, Failure) else ""
        logprob = metrics.mean_logprob(transcript, config.method.chain(transcript, thread))
        weight = config.method.weight(transcript, thread)
        confidences = config.method.confidences(transcript, thread)
        return Answer(thread, Candidate(answer, grade is True, logprob, failure, weight, confidences))

    return [
        [answered(transcript, i, answer, known.get((place, answer), False)) for i, answer in given]
        for place, (transcript, given) in enumerate(zip(transcripts, answers, strict=True))
    ]


def choose(answers: Sequence[Answer], rule: Selector) -> Answer | None:
    """The answer that a selector selects; None if no answer has a valid format."""
    chosen = rule.choose([answer.candidate for answer in answers])
    return None if chosen is None else answers[chosen]


def evaluate(method: MethodConfig, rollout: Rollout) -> Result:
    """Select among a rollout's answers by the method's selector, and compute the outcomes."""

    def chosen(rule: Selector) -> list[tuple[str | None, bool]]:
        picked = [choose(answers, rule) for answers in rollout.answers]
        return [(c.candidate.answer, c.candidate.correct) if c else (None, False) for c in picked]

    pairs = zip(rollout.transcripts, chosen(method.select), strict=True)
    found, progress = [outcome(transcript, *pick) for transcript, pick in pairs], rollout.progress
    entry = summary(found, progress.seconds, progress.feed_steps + progress.decode_steps, rollout.traces)
    entry |= {f"makespan_{k}": span for k, span in rollout.makespan.items()}
    for rule in method.also:
        entry[f"accuracy_{rule.name}"] = float(np.mean([correct for _, correct in chosen(rule)]))
    if method.rollout.method.independent:
        entry |= metrics.of_fewer([[answer.candidate for answer in answers] for answers in rollout.answers])
    entry["oracles"] = [rule.name for rule in method.also if rule.oracle]
    entry["tokens_per_second"] = progress.sampled / max(progress.seconds, 1e-9)
    if progress.questions:
        entry |= {"host_questions": progress.questions, "host_returns": progress.returns}
    entry["occupancy"], entry["compile_s"] = progress.occupancy, rollout.compile_s
    entry["machines"] = [dataclasses.asdict(one) for one in rollout.machines]
    errors = sum((Counter(method.rollout.method.format_errors(t)) for t in rollout.transcripts), Counter())
    entry |= {"format_errors": errors.total(), "format_error_kinds": dict(errors.most_common())}
    failures = Counter(a.candidate.failure for answers in rollout.answers for a in answers if a.candidate.failure)
    entry |= {"judge_failures": failures.total(), "judge_failure_reasons": dict(failures.most_common())}
    return Result(found, entry, rollout)
