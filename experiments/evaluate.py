"""Evaluate methods on Countdown problems: one table, transcripts, plots and a page of thread timelines.

    python -m experiments.evaluate --config configs/demo.py
    python -m experiments.evaluate --problems-file my_problems.jsonl --output results/mine
    python -m experiments.evaluate --methods.apr.rollout.max-tokens 300 --only apr

The folder of the results holds summary.json, config.json, report.md, transcripts_METHOD.jsonl (+ .npz), two plots,
threads_METHOD.png (one problem that forked, solved if any was) and timeline.html.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.console
import rich.progress

from apr_jax import settings
from apr_jax.decode import transcript as transcripts
from apr_jax.evaluate import methods, outcomes, picture, plots, report, timeline
from apr_jax.evaluate.methods import MethodConfig, Result, Rollout, RolloutConfig
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown import problems as countdown
from apr_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation.

    Attributes:
        methods: by name; `--only` picks some of them.
        tokenizer: file of the Tokenizer model.
        settings: families of problems to draw from (see `apr_jax.tasks.countdown.problems.PRESETS`).
        problems_per_setting: held-out problems of each.
        problems_file: problems from a JSONL file instead of drawn ones.
        split: test or val.
        seed: of the problems drawn and of all sampling.
        only: names of the methods to run; empty: all.
        shown: problems of each method on the timeline page.
        output: folder of the results.
    """

    methods: Mapping[str, MethodConfig]
    tokenizer: str = str(SHIPPED / "compact.model")
    settings: tuple[str, ...] = ("three", "four")
    problems_per_setting: int = 100
    problems_file: str = ""
    split: countdown.Split = "test"
    seed: int = 0
    only: tuple[str, ...] = ()
    shown: int = 8
    output: str = "results/demo"

    def __post_init__(self):
        for name in self.settings:
            if name not in countdown.PRESETS:
                raise ValueError(f"settings: {name!r} is not one of {', '.join(countdown.PRESETS)}")
        for name in self.only:
            if name not in self.methods:
                raise ValueError(f"only: {name!r} is not one of the methods {', '.join(self.methods)}")
        if self.problems_per_setting < 1:
            raise ValueError(f"problems_per_setting is {self.problems_per_setting}; it must be at least 1")


def load_problems(config: EvaluateConfig) -> list[countdown.Problem]:
    """The problems of an evaluation."""
    if config.problems_file:
        return countdown.read_jsonl(Path(config.problems_file))
    drawn = []
    for name in config.settings:
        drawn += countdown.benchmark(countdown.PRESETS[name], config.seed, config.split, config.problems_per_setting)
    return drawn


def roll_out(
    problems: Sequence[countdown.Problem], config: RolloutConfig, words: Tokenizer, seed: int, name: str
) -> Rollout:
    """Decode with a progress bar."""
    columns = (
        "[progress.description]{task.description}",
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        "{task.fields[state]}",
    )
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=len(problems), state="compiling")

        def watch(progress):
            rate = progress.sampled / max(progress.seconds, 1e-9)
            state = f"{rate:,.0f} tokens/s, {progress.occupancy:.0%} of rows busy"
            bar.update(task, completed=progress.finished, state=state)

        return methods.roll_out(problems, config, words, seed, watch)


def run(config: EvaluateConfig) -> dict[str, Result]:
    """Run every method; rollouts that agree are decoded once."""
    problems = load_problems(config)
    words = Tokenizer.from_file(config.tokenizer)
    rollouts: dict[RolloutConfig, Rollout] = {}
    results = {}
    for name in config.only or config.methods:
        method = config.methods[name]
        if method.rollout not in rollouts:
            rollouts[method.rollout] = roll_out(problems, method.rollout, words, config.seed, name)
        results[name] = methods.evaluate(problems, method, rollouts[method.rollout], words)
    write(config, problems, results, words)
    return results


def write(
    config: EvaluateConfig, problems: Sequence[countdown.Problem], results: Mapping[str, Result], words: Tokenizer
) -> None:
    """Write everything an evaluation leaves."""
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {name: result.entry for name, result in results.items()}
    outcomes.write_summary(folder / "summary.json", len(problems), entries)
    found = {name: result.outcomes for name, result in results.items()}
    tables = [report.markdown(entries, len(problems)), *(report.budget_markdown(found, f) for f in outcomes.BUDGETS)]
    (folder / "report.md").write_text("\n".join(tables))
    for field in outcomes.BUDGETS:
        plots.plot_accuracy(folder / f"accuracy_{field}.png", found, field)
    shown = []
    for name, result in results.items():
        extra = [
            {"question": f"{list(p.nums)} -> {p.target}", "nums": list(p.nums), "target": p.target}
            | {"method": name, "answer": o.answer, "correct": o.correct}
            for p, o in zip(problems, result.outcomes, strict=True)
        ]
        transcripts.write(folder / f"transcripts_{name}.jsonl", result.rollout.transcripts, words.decode, extra)
        every = max(len(problems) // config.shown, 1)
        shown += [(name, result.rollout.transcripts[i], extra[i]) for i in range(0, len(problems), every)]
        forked = [i for i, o in enumerate(result.outcomes) if o.forked]
        forked.sort(key=lambda i: not result.outcomes[i].correct)
        if forked:
            transcript, about = result.rollout.transcripts[forked[0]], extra[forked[0]]
            heading = f"{about['question']}: {(about['answer'] or 'no solution found').replace(';', ', ')}"
            picture.draw_timeline(transcript, folder / f"threads_{name}.png", lambda t: words.decode([t]), heading)
    timeline.write_page(folder / "timeline.html", shown, lambda token: words.decode([token]), "Countdown: threads")


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, "configs/demo.py")
    print(settings.describe(config), flush=True)
    settings.save(config, config.output)
    start = time.monotonic()
    try:
        results = run(config)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    entries = {name: result.entry for name, result in results.items()}
    console = rich.console.Console()
    console.print(report.table(entries, len(next(iter(results.values())).outcomes)))
    console.print(
        f"{time.monotonic() - start:.0f} s; results are in {config.output}, open {config.output}/timeline.html"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
