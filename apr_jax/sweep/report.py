"""One table of a sweep, from the folders of its runs: seeds are aggregated, other values of points are axes."""

import csv
import dataclasses
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special

from apr_jax import files, settings
from apr_jax.sweep import points, runs

SUMMARY, METRICS, RESULT = "summary.json", "metrics.jsonl", "result.json"
SEED = "seed"
FIRST = (
    "accuracy", "critical_path", "generated_tokens", "threads", "held_out/accuracy", "held_out/threads", "held_out/loss",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """What a run has left.

    Attributes:
        name: of the run.
        state: where it stands.
        point: its overrides.
        values: the numbers that it found; empty before it is done.
    """

    name: str
    state: runs.State
    point: Mapping[str, Any]
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean over seeds: of `count` runs, with its 95 % interval by Student's t; low = high = mean of a single run, which tells
    nothing of the spread."""

    mean: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        mean, count = float(np.mean(values)), len(values)
        half = 0.0
        if count > 1:
            half = float(scipy.special.stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / np.sqrt(count))
        return cls(mean, mean - half, mean + half, count)

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + (f" ± {self.high - self.mean:.2g}" if self.count > 1 else "")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone: the point without its seed, and the means of their values."""

    point: Mapping[str, Any]
    means: Mapping[str, Mean]


def read(root: Path) -> list[Row]:
    """The runs of a results folder, in the order of their names.

    Raises:
        ValueError: there is none.
    """
    folders = sorted(path.parent for path in root.glob(f"*/{runs.RUN}"))
    if not folders:
        raise ValueError(
            f"{root} holds no run; `python -m experiments.sweep SWEEP.py` leaves one in each of its folders"
        )
    rows = []
    for folder in folders:
        about, state = files.read_json(folder / runs.RUN), runs.state(folder)
        rows.append(Row(about["name"], state, about["point"], values(folder) if state == "done" else {}))
    return rows


def values(folder: Path) -> dict[str, float]:
    """The numbers of a run, by name.

    Read are `summary.json` of an evaluation (of a single method without its name), the last value of each number in
    `metrics.jsonl` of training, and the numbers of `result.json`, for programs of one's own.
    """
    found = files.read_json(folder / RESULT)
    methods = files.read_json(folder / SUMMARY).get("methods", {})
    for name, entry in methods.items():
        found |= {key if len(methods) == 1 else f"{name}/{key}": value for key, value in entry.items()}
    for line in lines(folder):
        found |= {key: value for key, value in line.items() if key != "step"}
    flat = settings.flatten(found)
    return {key: float(value) for key, value in flat.items() if isinstance(value, int | float)}


def lines(folder: Path) -> list[dict]:
    """The lines of a run's `metrics.jsonl`; empty without one."""
    path = folder / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def is_seed(field: str) -> bool:
    """Whether a field is one over which runs are aggregated."""
    return field.rpartition(".")[2] == SEED


def axes(rows: Sequence[Row]) -> dict[str, list]:
    """The fields other than seeds in which points differ or which only some have, with their values in order."""
    found: dict[str, list] = {}
    for row in rows:
        for field, value in row.point.items():
            if not is_seed(field) and value not in found.setdefault(field, []):
                found[field].append(value)
    return {field: sorted(each, key=_order) for field, each in sorted(found.items())}


def _order(value: Any) -> tuple:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, value, "") if number else (1, 0, points.text(value))


def groups(rows: Sequence[Row]) -> list[Group]:
    """The runs that are done, aggregated over seeds, in the order of the axes' values."""
    together: dict[str, list[Row]] = {}
    fields = list(axes(rows))
    for row in rows:
        if row.state == "done":
            together.setdefault(points.name(_without_seed(row.point)), []).append(row)
    found = []
    for members in together.values():
        keys = dict.fromkeys(key for row in members for key in row.values)
        means = {key: Mean.of([row.values[key] for row in members if key in row.values]) for key in keys}
        found.append(Group(_without_seed(members[0].point), means))
    return sorted(found, key=lambda group: [_order(group.point.get(field)) for field in fields])


def _without_seed(point: Mapping[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in point.items() if not is_seed(field)}


def short(fields: Sequence[str]) -> dict[str, str]:
    """The shortest endings by which fields can be told apart."""
    found = {}
    for field in fields:
        parts = field.split(".")
        endings = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
        others = [other for other in fields if other != field]
        alone = (end for end in endings if not any(other == end or other.endswith(f".{end}") for other in others))
        found[field] = next(alone, field)
    return found


def shown(found: Sequence[Group], wanted: Sequence[str]) -> list[str]:
    """The values of a table: those that are wanted, or by default the first known ones that there are.

    Raises:
        ValueError: a wanted value is in no run that is done.
    """
    known = sorted({key for group in found for key in group.means})
    for name in wanted:
        if name not in known:
            raise ValueError(f"values: no run that is done has {name!r}; they have {', '.join(known) or 'nothing'}")
    return list(wanted) or [name for name in FIRST if name in known] or known[:6]


def table(rows: Sequence[Row], wanted: Sequence[str] = ()) -> list[list[str]]:
    """The cells of the table, headings first."""
    found, fields = groups(rows), list(axes(rows))
    names, keys = short(fields), shown(found, wanted)
    cells = [[*(names[field] for field in fields), "runs", *keys]]
    for group in found:
        count = str(max((mean.count for mean in group.means.values()), default=0))
        means = [str(group.means[key]) if key in group.means else "" for key in keys]
        cells.append([*(points.text(group.point.get(field, "")) for field in fields), count, *means])
    return cells


def markdown(rows: Sequence[Row], wanted: Sequence[str] = ()) -> str:
    """The table as Markdown, with what is not done, and what ± means."""
    head, *body = table(rows, wanted)
    line = lambda cells: "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    text = [line(head), line(["---"] * len(head)), *map(line, body), ""]
    if any("±" in cell for cells in body for cell in cells):
        text += ["± is half of the 95 % interval of the mean over seeds (Student's t).", ""]
    left = Counter(row.state for row in rows if row.state != "done")
    if left:
        text += [
            "Not in the table: " + ", ".join(f"{count} {state}" for state, count in sorted(left.items())) + ".",
            "",
        ]
    return "\n".join(text)


def as_csv(cells: Sequence[Sequence[Any]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def columns(rows: Sequence[Row]) -> dict[str, list]:
    """Every run with its point and all its values, a list for each column; None where a run has no such value."""
    fields = list(dict.fromkeys(field for row in rows for field in row.point))
    keys = sorted({key for row in rows for key in row.values})
    found: dict[str, list] = {"run": [row.name for row in rows], "state": [row.state for row in rows]}
    for field in fields:
        given = [row.point.get(field) for row in rows]
        same = len({type(value) for value in given if value is not None}) == 1 and not isinstance(given[0], list)
        found[field] = given if same else [None if value is None else points.text(value) for value in given]
    return found | {key: [row.values.get(key) for row in rows] for key in keys if key not in found}


def write(root: Path, rows: Sequence[Row], wanted: Sequence[str] = ()) -> list[Path]:
    """Write report.md and report.csv (seeds aggregated), runs.csv and, if pyarrow is installed, runs.parquet (each run)."""
    every = columns(rows)
    texts = {
        "report.md": markdown(rows, wanted),
        "report.csv": as_csv(table(rows, wanted)),
        "runs.csv": as_csv([list(every), *zip(*every.values(), strict=True)]),
    }
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    written = [root / name for name in texts]
    if importlib.util.find_spec("pyarrow"):
        import pyarrow
        import pyarrow.parquet

        written.append(root / "runs.parquet")
        pyarrow.parquet.write_table(pyarrow.table(every), written[-1])
    return written
