"""The page of a study: table, verdicts, plot, and what they are worth."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from apr_jax.evaluate.show.plots import INK, PALETTE
from apr_jax.evaluate.statistics import Difference
from apr_jax.sweep import points, report
from apr_jax.sweep.findings import Finding
from apr_jax.sweep.study import Study

CURVES = ("accuracy", "threads")  # of a training step
Means = Mapping[str, Mapping[str, Difference]]


def summary(study: Study, means: Means, findings: Sequence[Finding]) -> dict:
    """What `summary.json` of a study holds."""
    return {
        "study": study.name,
        "smoke": study.smoke,
        "seeds": {arm: max(found.seeds[0] for found in each.values()) for arm, each in means.items()},
        "arms": {arm: {name: _numbers(found) for name, found in each.items()} for arm, each in means.items()},
        "claims": [
            {
                **dataclasses.asdict(found.claim),
                **_numbers(found.difference),
                "p_corrected": found.p,
                "smallest_resolvable": found.resolvable,
                "verdict": found.verdict,
            }
            for found in findings
        ],
    }


def _numbers(found: Difference) -> dict[str, float]:
    return {"mean": found.mean, "low": found.low, "high": found.high, "error": found.error}


def markdown(study: Study, problems: int, means: Means, findings: Sequence[Finding], pictures: Sequence[str]) -> str:
    """The page."""
    measures = list(study.measures)
    lines = [f"# {study.name.replace('_', ' ').capitalize()}", "", study.question, ""]
    if study.smoke:
        lines += ["**A smoke run: the smallest sizes, to see that everything runs. Its numbers mean nothing.**", ""]
    if study.exploratory:
        lines += ["Exploratory: what is shown was not predicted, and is to be repeated before it is believed.", ""]
    lines += [
        f"    python -m experiments.reproduce {study.name}",
        "",
        f"{problems:,} test problems, the same for all arms.",
        "",
    ]
    lines += ["| " + " | ".join(["arm", "seeds", *measures]) + " |", "|---" * (len(measures) + 2) + "|"]
    for arm, each in means.items():
        seeds = max(found.seeds[0] for found in each.values())
        lines.append("| " + " | ".join([arm, str(seeds), *(_interval(each[name]) for name in measures)]) + " |")
    lines += ["", "In brackets: 95 % intervals (bootstrap over problems and, where there are several, seeds).", ""]
    if findings:
        lines += [
            "| claim | published | difference | p, corrected | smallest resolvable | verdict |",
            "|---|---|---|---|---|---|",
        ]
        for found in findings:
            wants = found.claim.wants + (f" within {found.claim.margin:g}" if found.claim.margin else "")
            claim = f"{found.claim.arm}: {wants} {found.claim.measure} than {found.claim.than}"
            target = f" (target {found.claim.target:g})" if found.claim.target else ""
            cells = [claim + target, found.claim.published or "-", _interval(found.difference), f"{found.p:.3g}"]
            lines.append("| " + " | ".join([*cells, f"{found.resolvable:.3g}", found.verdict]) + " |")
        lines += ["", WORTH, ""]
    return "\n".join(lines + [f"![{name}]({name})\n" for name in pictures])


WORTH = (
    "p is of a paired bootstrap, and is corrected for the number of claims (Holm). Not resolved says that these runs cannot tell, "
    "not that there is no difference; equality is claimed only where two one-sided tests exclude the margin. An arm with one seed "
    "shows nothing of how much another seed would differ."
)


def _interval(found: Difference) -> str:
    return f"{found.mean:.4g} [{found.low:.4g}, {found.high:.4g}]"


def draw_front(path: Path, means: Means, x: str, y: str) -> None:
    """Draw the arms: y over x, with intervals of both."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    for number, (arm, each) in enumerate(means.items()):
        bars = [[[found.mean - found.low], [found.high - found.mean]] for found in (each[y], each[x])]
        axis.errorbar(
            each[x].mean,
            each[y].mean,
            bars[0],
            bars[1],
            "o",
            color=PALETTE[number % len(PALETTE)],
            label=arm,
            capsize=3,
        )
    axis.set_xlabel(x, color=INK)
    axis.set_ylabel(y, color=INK)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def draw_curves(path: Path, study: Study, choice: Mapping[str, Mapping]) -> bool:
    """Draw what training measured at each step, a line a seed; False if no arm has such curves."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    drawn, panels = False, figure.subplots(1, len(CURVES))
    for number, arm in enumerate(arm for arm in study.arms if arm.stages):
        tried = next(t for t in arm.tries if points.name(t) == choice[arm.name]["chosen"])
        for seed in study.numbers:
            steps = report.lines(study.trained(arm, tried, seed))
            for panel, key in zip(panels, CURVES, strict=True):
                found = [(line["step"], line[key]) for line in steps if key in line]
                label = arm.name if seed == 0 else None
                if found:
                    drawn = True
                    panel.plot(*zip(*found, strict=True), color=PALETTE[number % len(PALETTE)], lw=1, label=label)
    for panel, key in zip(panels, CURVES, strict=True):
        panel.set_xlabel("step", color=INK)
        panel.set_ylabel(f"{key}, samples of training", color=INK)
        panel.grid(alpha=0.3)
    if drawn:
        panels[0].legend(fontsize=8)
        figure.savefig(path, dpi=150)
    return drawn
