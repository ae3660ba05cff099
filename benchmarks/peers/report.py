"""From timings to ratios, a table and `summary.json`."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers.rows import Job, Row
from benchmarks.peers.workers.serve import Measured

Timings = Mapping[tuple[str, Job], Sequence[Measured]]  # by model and job, one item a turn
Missing = Mapping[tuple[str, str | Job], str]  # by model and engine, or one job of it: why there are no timings


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a row.

    Attributes:
        row: the row.
        values: the ratio of every turn; empty where there is none.
        ours, theirs: medians, in tokens a second (milliseconds a run where one token is generated).
        missing: why there is no ratio.
    """

    row: Row
    values: tuple[float, ...] = ()
    ours: float | None = None
    theirs: float | None = None
    missing: str | None = None

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.values) if self.values else None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is no target or no ratio."""
        if self.ratio is None or self.row.target is None:
            return None
        return self.ratio <= self.row.target if self.row.at_most else self.ratio >= self.row.target

    def to_dict(self) -> dict[str, Any]:
        if self.missing:
            return {"ratio": None, "target": self.row.target, "missing": self.missing}
        spread = {"least": min(self.values), "most": max(self.values)}
        return {
            "ratio": self.ratio, **spread, "turns": list(self.values), "target": self.row.target, "met": self.met,
            "unit": unit(self.row), "ours": self.ours, "theirs": self.theirs, "against": self.row.theirs.engine,
        }  # fmt: skip


def unit(row: Row) -> str:
    return "ms" if row.ours.work.tokens == 1 else "tokens/s"


def results(rows: Sequence[Row], timings: Timings, missing: Missing) -> tuple[Result, ...]:
    """Compare; a ratio is taken within each turn, the median over turns."""

    def of(row: Row) -> Result:
        for job in (row.ours, row.theirs):
            reason = missing.get((row.model, job.engine)) or missing.get((row.model, job))
            if reason:
                return Result(row, missing=f"{job.engine}: {reason}")
        ours, theirs = (timings[row.model, job] for job in (row.ours, row.theirs))
        rate = lambda measured: measured.tokens / measured.seconds
        speeds = [rate(mine) / rate(other) for mine, other in zip(ours, theirs, strict=True)]
        values = tuple(1 / speed - 1 for speed in speeds) if row.cost else tuple(speeds)
        shown = (lambda measured: measured.seconds * 1e3) if unit(row) == "ms" else rate
        medians = (statistics.median(map(shown, side)) for side in (ours, theirs))
        return Result(row, values, *medians)

    return tuple(map(of, rows))


def worst(found: Sequence[Result], prefix: str) -> float | None:
    """The worst ratio of the rows of a family that have a target; None if one of them is missing."""
    family = [result for result in found if result.row.name.startswith(prefix) and result.row.target is not None]
    ratios = [result.ratio for result in family]
    if not family or None in ratios:
        return None
    return max(ratios) if family[0].row.cost else min(ratios)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def show(console: Console, found: Sequence[Result]) -> None:
    """Print the table of the rows."""
    table = Table(title="The project against its peers: speed over theirs, or what it costs more (%)")
    for heading in ("row", "ratio", "least .. most", "target", "ours", "theirs", "unit"):
        table.add_column(heading, justify="left" if heading in ("row", "unit") else "right")
    for result in found:
        row = result.row
        form = (lambda value: f"{value:+.1%}") if row.at_most else (lambda value: f"{value:.2f}")
        target = "" if row.target is None else f"{'<=' if row.at_most else '>='} {form(row.target)}"
        if result.missing:
            table.add_row(row.name, "-", "", target, "", "", result.missing)
            continue
        mark = "" if result.met is None else " ok" if result.met else " above" if row.at_most else " below"
        extremes = f"{form(min(result.values))} .. {form(max(result.values))}"
        table.add_row(
            row.name,
            form(result.ratio) + mark,
            extremes,
            target,
            f"{result.ours:,.1f}",
            f"{result.theirs:,.1f}",
            unit(row),
        )
    console.print(table)
