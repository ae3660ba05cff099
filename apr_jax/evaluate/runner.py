"""Runs an evaluation: decode, save, judge, and write the results.

The folder of the results holds summary.json, settings.json, report.md, samples.md (one readable transcript per method),
transcripts_METHOD.jsonl (+ .npz), two plots, threads_METHOD.png (one problem that forked, solved if any was) and timeline.html.
Rollouts are saved in rollouts/ as soon as a method is finished or interrupted, before its answers are judged.
"""

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from apr_jax import record, settings
from apr_jax.decode import Progress
from apr_jax.evaluate import kept, methods, outcomes, report, samples
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.kept import Asked, Kept
from apr_jax.evaluate.methods import Answer, Interrupted, Result, Rollout, RolloutConfig
from apr_jax.evaluate.show import picture, plots, timeline
from apr_jax.interrupt import Interrupt
from apr_jax.pretrained.tokenizer import load
from apr_jax.tokenizer import TextCodec

Decoded = tuple[Kept, TextCodec]
"""What was decoded, and the tokenizer that reads it."""
WRITTEN = (
    "summary.json", "report.md", "samples.md", "timeline.html", "transcripts_*", "accuracy_*.png", "threads_*.png",
    "rollouts/*",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """A rollout to decode.

    Attributes:
        name: name of its files: the first configured method that uses the rollout, whether that method is run or not.
        asked: the settings that determine the rollout.
        earlier: the part that is decoded already.
    """

    name: str
    asked: Asked
    earlier: Kept | None


def with_bar(name: str, questions: int, before: int, work: Callable[..., Decoded]) -> Decoded:
    """Run `work(watch, stop)` under a progress bar; Ctrl-C makes its `stop` return True. See `methods.roll_out`.

    Args:
        questions: number of questions.
        before: number of questions decoded earlier, at which the bar begins.

    Raises:
        Interrupted: the work was interrupted before all questions were decoded.
    """
    columns = (
        "[progress.description]{task.description}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        "{task.fields[state]}",
    )
    console = rich.console.Console(stderr=True)
    if console.is_jupyter:  # a moving bar would need a further package there; its last state is enough
        console = rich.console.Console(stderr=True, force_jupyter=False, force_terminal=False)
    with rich.progress.Progress(*columns, console=console) as bar, Interrupt() as interrupt:
        shown = bar.add_task(name, total=questions, completed=before, state="compiling")

        def watch(progress):
            bar.update(shown, completed=before + progress.finished, state=describe(progress))

        return work(watch, lambda: interrupt.requested)


def describe(progress: Progress) -> str:
    """The state of a run as text, without the number of finished problems."""
    rate = progress.sampled / max(progress.seconds, 1e-9)
    stops = ", ".join(f"{stop.name.lower()} {count}" for stop, count in sorted(progress.stops.items()))
    return f"{rate:,.0f} tokens/s, {progress.occupancy:.0%} of rows busy{', ended: ' if stops else ''}{stops}"


def run(config: EvaluateConfig) -> dict[str, Result]:
    """Run every method; equal rollouts are decoded once, and saved before they are judged.

    The results of finished methods are written even if other methods fail.

    Raises:
        ValueError, FileNotFoundError: a file cannot be read, or `output` must not be written to (`settings.claim`).
    """
    settings.claim(config, config.output, "output", WRITTEN)
    questions = config.task.questions(config.seed)
    codec = load(config.tokenizer)
    plans = begin(config, questions, codec)
    settings.save(config, config.output)
    rollouts: dict[RolloutConfig, Rollout] = {}
    results: dict[str, Result] = {}
    try:
        for name in config.only or config.methods:
            method = config.methods[name]
            if method.rollout not in rollouts:
                done, spoken = decode_and_keep(config, questions, codec, plans[method.rollout])
                rollouts[method.rollout] = methods.judged(
                    config.task, questions, done, spoken, method.rollout, config.makespan
                )
            results[name] = methods.evaluate(method, rollouts[method.rollout])
    finally:
        if results:
            write(config, questions, results)
    return results


def begin(config: EvaluateConfig, questions: Sequence, codec: TextCodec) -> Mapping[RolloutConfig, Plan]:
    """The plan of every rollout, before anything is decoded; without `resume`, saved parts are discarded.

    Raises:
        ValueError: a saved part belongs to another evaluation, or a question has no valid prompt.
    """
    folder, plans = Path(config.output) / "rollouts", {}
    for rollout in dict.fromkeys(config.methods[name].rollout for name in config.only or config.methods):
        prompts = [problem.prompt for problem in methods.requests(config.task, questions, rollout, codec)]
        name = next(name for name, method in config.methods.items() if method.rollout == rollout)
        asked = Asked.now(rollout, config.task, config.tokenizer, config.seed)
        plans[rollout] = Plan(name, asked, kept.read(folder, name, asked, prompts) if config.resume else None)
    if not config.resume:
        for plan in plans.values():
            kept.discard(folder, plan.name)
    return plans


def decode_and_keep(config: EvaluateConfig, questions: Sequence, codec: TextCodec, plan: Plan) -> Decoded:
    """Decode a rollout and save it, whether it was finished or interrupted; see `with_bar`."""
    finished = len(plan.earlier.finished) if plan.earlier else 0
    work = functools.partial(
        methods.roll_out, config.task, questions, plan.asked.rollout, codec, config.seed, earlier=plan.earlier
    )
    keep = functools.partial(kept.write, Path(config.output) / "rollouts", plan.name, plan.asked)
    about = list(map(config.task.about, questions))
    try:
        done, spoken = with_bar(plan.name, len(questions), finished, work)
    except Interrupted as interrupted:
        keep(interrupted.kept, about, interrupted.codec)
        raise
    if finished < len(questions):
        keep(done, about, spoken)
    return done, spoken


def write(config: EvaluateConfig, questions: Sequence, results: Mapping[str, Result]) -> None:
    """Write all results of an evaluation."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {name: result.entry for name, result in results.items()}
    outcomes.write_summary(folder / "summary.json", len(questions), entries)
    found = {name: result.outcomes for name, result in results.items()}
    tables = [report.markdown(entries, len(questions)), *(report.budget_markdown(found, f) for f in outcomes.BUDGETS)]
    told = (*report.machines(entries), *report.format_errors(entries), *report.judge_failures(entries))
    tables += [f"{line}\n" for line in told]
    (folder / "report.md").write_text("\n".join(tables))
    for field in outcomes.BUDGETS:
        plots.plot_accuracy(folder / f"accuracy_{field}.png", found, field)
    about = list(map(config.task.about, questions))
    (folder / "samples.md").write_text(samples.markdown(results, about), encoding="utf-8")
    write_threads(folder, about, results, config.shown)


def write_threads(folder: Path, about: Sequence[Mapping], results: Mapping[str, Result], shown: int) -> None:
    """Write the transcripts, a picture of each method that forked, and the timelines of about `shown` questions."""
    token_text = lambda method, token: results[method].rollout.codec.decode([token])
    chosen = {name: samples.choose(result) for name, result in results.items()}
    forks = {name: number for name, number in chosen.items() if results[name].outcomes[number].forked}
    numbers = sorted({*range(0, len(about), max(len(about) // shown, 1)), *forks.values()})
    items = []
    for name, result in results.items():
        rollout = result.rollout
        extra = [
            {**known, "method": name, "answer": o.answer, "correct": o.correct, "answers": list(map(answered, answers))}
            for known, o, answers in zip(about, result.outcomes, rollout.answers, strict=True)
        ]
        record.write(folder / f"transcripts_{name}.jsonl", rollout.transcripts, rollout.codec.decode, extra)
        machine = "; ".join(map(str, rollout.machines))
        items += [(name, rollout.transcripts[i], {**extra[i], "machine": machine}) for i in numbers]
    for name, number in forks.items():
        answer = results[name].outcomes[number].answer or "no answer"
        heading = f"{textwrap.shorten(about[number]['question'], 80)}: {answer.replace(';', ', ')}"
        file, text = folder / f"threads_{name}.png", functools.partial(token_text, name)
        picture.draw_timeline(results[name].rollout.transcripts[number], file, text, heading)
    timeline.write_page(folder / "timeline.html", items, token_text)


def answered(answer: Answer) -> dict[str, Any]:
    """The fields of one thread's answer, for the JSON line of its transcript."""
    given = answer.candidate
    failed = {"judge_failure": given.failure} if given.failure else {}
    return {"thread": answer.thread, "answer": given.answer, "correct": given.correct, **failed}
