"""Evaluate methods on a task: one table, transcripts, plots and a page of thread timelines.

    python -m experiments.evaluate --config configs/demo.py
    python -m experiments.evaluate --problems-file my_problems.jsonl --output results/mine
    python -m experiments.evaluate --config configs/language_math.py --problems-file my_questions.jsonl
    python -m experiments.evaluate --methods.apr.rollout.max-tokens 300 --only apr

The folder of the results holds summary.json, settings.json, report.md, samples.md (one transcript a method, to be read),
transcripts_METHOD.jsonl (+ .npz), two plots, threads_METHOD.png (one problem that forked, solved if any was) and timeline.html.
Ctrl-C ends it with exit code 130; the methods that are finished by then are written as always. What was decoded is kept in
rollouts/ as soon as a method is done or was ended, before it is judged: the same command with `--resume True` decodes only
what is missing, and judges all of it again. An answer on which the judge fails counts as wrong, and is counted as such.
"""

import dataclasses
import functools
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import rich.console
import rich.progress
import tyro

from apr_jax import settings
from apr_jax.decode import Progress
from apr_jax.decode import transcript as transcripts
from apr_jax.decode.problem import check_seed
from apr_jax.evaluate import kept, methods, outcomes, picture, plots, report, samples, timeline
from apr_jax.evaluate.kept import Asked, Kept
from apr_jax.evaluate.methods import Answer, Interrupted, MethodConfig, Result, Rollout, RolloutConfig
from apr_jax.interrupt import Interrupt
from apr_jax.tasks.task import Task
from apr_jax.tokenizer import TextCodec
from apr_jax.tokenizer.load import load

Decoded = tuple[Kept, TextCodec]
"""A rollout, and the tokenizer that reads it."""
WRITTEN = (
    "summary.json", "report.md", "samples.md", "timeline.html", "transcripts_*", "accuracy_*.png", "threads_*.png",
    "rollouts/*",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation.

    Attributes:
        methods: by name; `--only` picks some of them.
        task: questions and how they are judged; its fields are options without a prefix (`--problems-file`).
        tokenizer: what `apr_jax.tokenizer.load` reads.
        seed: of the questions drawn and of all sampling.
        only: names of the methods to run; empty: all.
        shown: questions of each method on the timeline page.
        output: folder of the results.
        resume: go on with what an earlier run, the same but for its methods, has left in `output`.
    """

    methods: Mapping[str, MethodConfig]
    task: Annotated[Task, tyro.conf.OmitArgPrefixes]
    tokenizer: str
    seed: int = 0
    only: tuple[str, ...] = ()
    shown: int = 8
    output: str = "results/demo"
    resume: bool = False

    def __post_init__(self):
        for name in self.only:
            if name not in self.methods:
                raise ValueError(f"only: {name!r} is not one of the methods {', '.join(self.methods)}")
        if self.shown < 1:
            raise ValueError(f"shown is {self.shown}; it must be at least 1")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A rollout to be decoded or resumed.

    Attributes:
        name: of its saved files: that of the first method that is read off it, whichever are run.
        asked: everything that determines it.
        earlier: its saved part, if any.
    """

    name: str
    asked: Asked
    earlier: Kept | None


def with_bar(name: str, questions: int, before: int, work: Callable[..., Decoded]) -> Decoded:
    """Run `work(watch, stop)` (`methods.roll_out`) under a progress bar from `before` on; Ctrl-C makes its `stop` return True.

    Raises:
        Interrupted: before all were decoded.
    """
    columns = (
        "[progress.description]{task.description}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        "{task.fields[state]}",
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as bar, Interrupt() as interrupt:
        shown = bar.add_task(name, total=questions, completed=before, state="compiling")

        def watch(progress):
            bar.update(shown, completed=before + progress.finished, state=describe(progress))

        return work(watch, lambda: interrupt.requested)


def describe(progress: Progress) -> str:
    """Speed, occupancy and stop reasons of a run so far, as the text beside the progress bar."""
    rate = progress.sampled / max(progress.seconds, 1e-9)
    stops = ", ".join(f"{stop.name.lower()} {count}" for stop, count in sorted(progress.stops.items()))
    return f"{rate:,.0f} tokens/s, {progress.occupancy:.0%} of rows busy{', ended: ' if stops else ''}{stops}"


def run(config: EvaluateConfig) -> dict[str, Result]:
    """Run every method; rollouts that agree are decoded once, and kept before they are judged.

    Methods that are finished are written, whatever becomes of the others.

    Raises:
        ValueError, FileNotFoundError: something cannot be read, or `output` is not to be written to (`settings.claim`).
    """
    settings.claim(config, config.output, "output", WRITTEN)
    questions = config.task.questions(config.seed)
    words = load(config.tokenizer)
    plans = begin(config, questions, words)
    settings.save(config, config.output)
    rollouts: dict[RolloutConfig, Rollout] = {}
    results: dict[str, Result] = {}
    try:
        for name in config.only or config.methods:
            method = config.methods[name]
            if method.rollout not in rollouts:
                done, spoken = decode_and_keep(config, questions, words, plans[method.rollout])
                rollouts[method.rollout] = methods.judged(config.task, questions, done, spoken, method.rollout)
            results[name] = methods.evaluate(method, rollouts[method.rollout])
    finally:
        if results:
            write(config, questions, results)
    return results


def begin(config: EvaluateConfig, questions: Sequence, words: TextCodec) -> Mapping[RolloutConfig, Plan]:
    """All rollouts with their saved parts, before anything is decoded; without `resume` saved parts are discarded.

    Raises:
        ValueError: it belongs to another evaluation, or a question cannot be asked.
    """
    folder, plans = Path(config.output) / "rollouts", {}
    for rollout in dict.fromkeys(config.methods[name].rollout for name in config.only or config.methods):
        prompts = [problem.prompt for problem in methods.requests(config.task, questions, rollout, words)]
        name = next(name for name, method in config.methods.items() if method.rollout == rollout)
        asked = Asked.now(rollout, config.task, config.tokenizer, config.seed)
        plans[rollout] = Plan(name, asked, kept.read(folder, name, asked, prompts) if config.resume else None)
    if not config.resume:
        for plan in plans.values():
            kept.discard(folder, plan.name)
    return plans


def decode_and_keep(config: EvaluateConfig, questions: Sequence, words: TextCodec, plan: Plan) -> Decoded:
    """A rollout, kept on disk whether it was finished or ended early; see `with_bar`."""
    finished = len(plan.earlier.finished) if plan.earlier else 0
    work = functools.partial(
        methods.roll_out, config.task, questions, plan.asked.rollout, words, config.seed, earlier=plan.earlier
    )
    keep = functools.partial(kept.write, Path(config.output) / "rollouts", plan.name, plan.asked)
    about = list(map(config.task.about, questions))
    try:
        done, spoken = with_bar(plan.name, len(questions), finished, work)
    except Interrupted as interrupted:
        keep(interrupted.kept, about, interrupted.words)
        raise
    if finished < len(questions):
        keep(done, about, spoken)
    return done, spoken


def write(config: EvaluateConfig, questions: Sequence, results: Mapping[str, Result]) -> None:
    """Write all files of the results folder."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {name: result.entry for name, result in results.items()}
    outcomes.write_summary(folder / "summary.json", len(questions), entries)
    found = {name: result.outcomes for name, result in results.items()}
    tables = [report.markdown(entries, len(questions)), *(report.budget_markdown(found, f) for f in outcomes.BUDGETS)]
    tables += [f"{line}\n" for line in report.judge_failures(entries)]
    (folder / "report.md").write_text("\n".join(tables))
    for field in outcomes.BUDGETS:
        plots.plot_accuracy(folder / f"accuracy_{field}.png", found, field)
    about = list(map(config.task.about, questions))
    (folder / "samples.md").write_text(samples.markdown(results, about), encoding="utf-8")
    token_text = lambda method, token: results[method].rollout.words.decode([token])
    shown = []
    for name, result in results.items():
        words = result.rollout.words
        extra = [
            {**known, "method": name, "answer": o.answer, "correct": o.correct, "answers": list(map(answered, answers))}
            for known, o, answers in zip(about, result.outcomes, result.rollout.answers, strict=True)
        ]
        transcripts.write(folder / f"transcripts_{name}.jsonl", result.rollout.transcripts, words.decode, extra)
        every = max(len(questions) // config.shown, 1)
        shown += [(name, result.rollout.transcripts[i], extra[i]) for i in range(0, len(questions), every)]
        best = samples.choose(result)
        if result.outcomes[best].forked:
            transcript, answer = result.rollout.transcripts[best], result.outcomes[best].answer or "no answer"
            heading = f"{textwrap.shorten(about[best]['question'], 80)}: {answer.replace(';', ', ')}"
            file = folder / f"threads_{name}.png"
            picture.draw_timeline(transcript, file, functools.partial(token_text, name), heading)
    timeline.write_page(folder / "timeline.html", shown, token_text)


def answered(answer: Answer) -> dict[str, Any]:
    """The fields of an answer in the JSON line of its transcript."""
    sample = answer.sample
    failed = {"judge_failure": sample.failure} if sample.failure else {}
    return {"thread": answer.thread, "answer": sample.answer, "correct": sample.correct, **failed}


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, "configs/demo.py")
    print(settings.describe(config), flush=True)
    start = time.monotonic()
    try:
        results = run(config)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    except Interrupted as interrupted:
        print(f"interrupted: {interrupted}; --resume True goes on with what is in {config.output}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:  # while answers were judged, or before there was anything to keep
        print(
            f"interrupted; what was decoded is kept, --resume True goes on with what is in {config.output}",
            file=sys.stderr,
        )
        return 130
    entries = {name: result.entry for name, result in results.items()}
    console = rich.console.Console()
    console.print(report.table(entries, len(next(iter(results.values())).outcomes)))
    console.print(
        f"{time.monotonic() - start:.0f} s; results are in {config.output}, open {config.output}/timeline.html"
    )
    for line in (lines := report.judge_failures(entries)):
        print(line, file=sys.stderr)
    if lines:
        print("mend the judge, then --resume True judges again without decoding", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
