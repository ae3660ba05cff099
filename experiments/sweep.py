"""Run a sweep, or report on what it has left.

    python -m experiments.sweep configs/sweeps/temperature.py
    python -m experiments.sweep configs/sweeps/temperature.py --executor slurm > array.sh
    python -m experiments.sweep report results/sweeps/temperature --x critical_path --y accuracy --by max_depth

Every point runs in a folder of its own as the command line that a user would type. Killed in whatever way, the same command goes
on: what is done is skipped, what was interrupted goes on, what died is tried again. Exit codes: 0 all runs are done, 1 some have
failed, 2 something in the configuration is wrong, 130 interrupted.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console
import rich.table

from apr_jax import settings
from apr_jax.sweep import driver, report, runs, show, slurm
from apr_jax.sweep.config import SweepConfig


@dataclasses.dataclass(frozen=True)
class Report:
    """What is shown of a results folder.

    Attributes:
        values: columns of the table; empty: the known ones that there are.
        x: an axis (a field of the points, by its whole name or an ending of it) or a value, for a plot; empty: no plot.
        y: the value that is drawn.
        by: an axis whose values are drawn as lines; empty: one line.
    """

    values: tuple[str, ...] = ()
    x: str = ""
    y: str = "accuracy"
    by: str = ""


def main(argv: Sequence[str]) -> int:
    words = list(argv)
    is_report = words[:1] == ["report"]
    if is_report:
        words.pop(0)
    if not words or words[0].startswith("-"):
        settings.fail(
            "give the file of a sweep, or `report` and a results folder; see python -m pydoc experiments.sweep"
        )
    place = words.pop(0)
    try:
        if is_report:
            return tell(Path(place), settings.parse(words, Report()))
        return run(settings.parse(words, place))
    except ValueError as error:
        settings.fail(str(error))


def run(config: SweepConfig) -> int:
    """Run a sweep, or print the script that does."""
    if not isinstance(config, SweepConfig):
        raise ValueError(f"the file describes {type(config).__name__}; a sweep is an apr_jax.sweep.config.SweepConfig")
    found, root = config.runs(), Path(config.output)
    if config.place.executor == "slurm":
        for one in found:
            runs.prepare(one, config.need)
        left = [one for one in found if runs.state(one.folder) != "done"]
        print(slurm.script(left, config.need, root, config.place.at_once), end="")
        return 0
    with show.LiveTable() as table:
        ended = driver.drive(found, config.place.start(config.need), root, config.need, config.retries, watch=table)
    for failure in ended.failures:
        print(failure, file=sys.stderr)
    if ended.interrupted:
        print(f"interrupted; the same command goes on with what is in {root}", file=sys.stderr)
        return 130
    status = 1 if ended.failures else 0
    if ended.counts["done"]:
        tell(root, Report())
    return status


def tell(root: Path, config: Report) -> int:
    """Print and write the table of a results folder, and a plot if one is wanted."""
    rows = report.read(root)
    found, fields = report.groups(rows), list(report.axes(rows))
    written = report.write(root, rows, config.values)
    if config.x:
        x, by = (_field(name, fields) for name in (config.x, config.by))
        written.append(root / f"{_file(config.y)}_over_{_file(config.x)}.png")
        from apr_jax.sweep import plots  # the driver itself starts fast, and never loads jax

        plots.draw(written[-1], found, x, config.y, by)
    console = rich.console.Console()
    head, *body = report.table(rows, config.values)
    table = rich.table.Table(*head)
    for cells in body:
        table.add_row(*map(show.printable, cells))
    console.print(table)
    print(f"written: {', '.join(map(str, written))}")
    if root / "runs.parquet" not in written:
        print("without runs.parquet, which needs pyarrow: pip install -r requirements-sweeps.txt")
    return 0


def _field(name: str, fields: Sequence[str]) -> str:
    """The field with this name or, alone, this ending; else the name, which may be that of a value."""
    ends = [field for field in fields if field.endswith(f".{name}")]
    return ends[0] if name not in fields and len(ends) == 1 else name


def _file(name: str) -> str:
    return name.replace("/", "_")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
