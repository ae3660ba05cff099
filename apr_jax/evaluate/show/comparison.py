"""A comparison as a page of Markdown, as JSON, and as plots of accuracy against cost."""

import json
from collections.abc import Mapping
from pathlib import Path

from apr_jax.evaluate import report
from apr_jax.evaluate.comparison import COSTS, THIRDS
from apr_jax.evaluate.show import plots

HEADINGS = {"critical_path": "critical path", "generated_tokens": "generated tokens", "wall_s": "wall s"}
FILES = ("comparison.json", "comparison.md", "front_*.png")


def write(
    folder: Path, entries: Mapping[str, Mapping], found: Mapping[str, Mapping], left_out: Mapping[str, str]
) -> None:
    """Write comparison.json, comparison.md and one plot for each cost.

    Args:
        folder: of the results.
        entries: entries of `summary.json` by name.
        found: what the comparison adds to each, see `comparison.compared`.
        left_out: methods that did not fit, with the reason.
    """
    content = {"methods": {name: {**entries[name], **more} for name, more in found.items()}, "left_out": left_out}
    (folder / "comparison.json").write_text(json.dumps(content, indent=2) + "\n")
    (folder / "comparison.md").write_text(markdown(entries, found, left_out), encoding="utf-8")
    for cost in COSTS:
        plots.plot_front(folder / f"front_{cost}.png", content["methods"], cost, HEADINGS[cost])


def markdown(entries: Mapping[str, Mapping], found: Mapping[str, Mapping], left_out: Mapping[str, str]) -> str:
    """The tables: accuracy with its interval and costs, fronts, adaptivity, makespans; then what was left out."""
    parts = [_accuracy(entries, found), _fronts(entries, found), _adaptivity(found), _makespans(entries)]
    if left_out:
        parts.append("Left out:\n\n" + "".join(f"- {name}: {reason}\n" for name, reason in left_out.items()))
    parts += [f"{line}\n" for line in report.machines(entries)]
    return "\n".join(part for part in parts if part)


def _table(heading: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"## {heading}", "", "| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _accuracy(entries: Mapping[str, Mapping], found: Mapping[str, Mapping]) -> str:
    first, rows = next(iter(found)), []
    for name, more in found.items():
        entry, (low, high) = entries[name], more["accuracy_interval"]
        worse, better = more["difference_interval"]
        against = (
            f"{100 * more['difference']:+.1f} ({100 * worse:+.1f} .. {100 * better:+.1f})" if name != first else ""
        )
        accuracy = f"{_share(entry['accuracy'])} ({_share(low)} .. {_share(high)})"
        costs = [
            _number(entry[key]) for key in ("critical_path", "generated_tokens", "fed_tokens", "threads", "wall_s")
        ]
        rows.append([report.title(name), accuracy, against, *costs])
    columns = [
        "method",
        "accuracy %",
        f"minus {report.title(first)}",
        "critical path",
        "generated",
        "fed",
        "threads",
        "wall s",
    ]
    return _table("Accuracy and cost", columns, rows)


def _fronts(entries: Mapping[str, Mapping], found: Mapping[str, Mapping]) -> str:
    lines = ["## Fronts", "", "No other method is as accurate at a lower cost, or more accurate at no higher cost:", ""]
    for cost in COSTS:
        names = sorted((n for n, more in found.items() if cost in more["fronts"]), key=lambda n: entries[n][cost])
        told = (f"{report.title(n)} ({_number(entries[n][cost])}: {_share(entries[n]['accuracy'])} %)" for n in names)
        lines.append(f"- accuracy against {HEADINGS[cost]}: {', '.join(told)}")
    return "\n".join(lines) + "\n"


def _adaptivity(found: Mapping[str, Mapping]) -> str:
    rows = []
    for name, more in found.items():
        cells = [
            _number(more[third][key]) if third in more else ""
            for key in ("threads", "generated_tokens")
            for third in THIRDS
        ]
        rows.append([report.title(name), *cells, "" if more["rank"] != more["rank"] else f"{more['rank']:+.2f}"])
    columns = [
        *(f"threads, {third}" for third in THIRDS),
        *(f"generated, {third}" for third in THIRDS),
        "rank correlation",
    ]
    text = "Difficulty of a question: the share of all these methods that failed on it. "
    text += "The correlation is that of generated tokens with it.\n"
    return _table("Is it adaptive?", ["method", *columns], rows) + "\n" + text


def _makespans(entries: Mapping[str, Mapping]) -> str:
    prefix = "makespan_"
    workers = sorted(
        {int(key.removeprefix(prefix)) for entry in entries.values() for key in entry if key.startswith(prefix)}
    )
    if not workers:
        return ""
    rows = [[report.title(name), *(_number(entry[f"{prefix}{k}"]) for k in workers)] for name, entry in entries.items()]
    return _table("Makespan on k workers, steps", ["method", *map(str, workers)], rows)
