"""Progress of a run: JSON lines, curves in TensorBoard or Weights & Biases, and a progress bar, or lines without a terminal."""

import importlib
import importlib.util
import json
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from apr_jax import files

WIDTH, REPEATED = 7, 20
"""Least width of a column, and rows after which the heads of a table are repeated."""


WANDB = "wandb.json"
"""In the working folder of a run, the id of its curves in Weights & Biases, so that a resumed run draws them on."""


def require_wandb(project: str) -> None:
    """Raises ValueError if a project is named and the package of Weights & Biases is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"wandb is {project!r}, a project of Weights & Biases, whose package is not installed: pip install wandb, or leave "
            "it empty (metrics.jsonl and TensorBoard have the same numbers)"
        )


class Metrics:
    """Writes numbers by step to `metrics.jsonl`, and to TensorBoard event files in the same folder or to Weights & Biases."""

    def __init__(self, folder: str | Path, from_step: int = 0, tensorboard: bool = True, wandb: str = ""):
        """Opens the files.

        Args:
            folder: the folder of both; made if missing.
            from_step: step at which the run continues; lines of an earlier attempt about later steps are dropped; -1: all are.
            tensorboard: write TensorBoard event files too.
            wandb: a project of Weights & Biases, to which they go too; empty: none.

        Raises:
            ValueError: see `require_wandb`.
        """
        require_wandb(wandb)
        folder = files.local(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = (line for line in self._complete() if json.loads(line)["step"] <= from_step)
            files.write_text(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder), purge_step=from_step + 1) if tensorboard else None
        self._wandb = _wandb_run(wandb, folder) if wandb else None

    def _complete(self) -> list[str]:
        """The complete lines of the file: a killed run may have left half a line."""
        lines = self.path.read_text().split("\n")
        return [line for line in lines[:-1] if line]

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step; names may contain slashes ("held_out/loss")."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items() if self._board is not None else ():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)


def _wandb_run(project: str, folder: Path):
    """The run of Weights & Biases that belongs to a working folder."""
    noted = files.read_json(folder / WANDB) or {"id": secrets.token_hex(4)}
    files.write_text(folder / WANDB, json.dumps(noted) + "\n")
    wandb = importlib.import_module("wandb")  # an option, which takes seconds to import
    return wandb.init(project=project, dir=str(folder), id=noted["id"], resume="allow")


class ProgressReport:
    """Shows the progress of a run: a bar with speed and remaining time on a terminal, a line per report elsewhere."""

    def __init__(self, total: int, done: int = 0, terminal: bool | None = None):
        """Starts the report.

        Args:
            total: number of steps of the run.
            done: steps done before now.
            terminal: whether to draw a bar; None asks the standard output.
        """
        self._total, self._first, self._start = total, done, time.monotonic()
        self._bar, self._rows = None, 0
        if sys.stdout.isatty() if terminal is None else terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns)
            self._task = self._bar.add_task("training", total=total, completed=done)

    def __enter__(self) -> "ProgressReport":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Shows numbers of a step."""
        text = "  ".join(
            f"{name} {value:.4g}" if value < 1000 else f"{name} {value:,.0f}" for name, value in values.items()
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        else:
            rate = (time.monotonic() - self._start) / max(step - self._first, 1)
            print(f"step {step}/{self._total}  {text}  {_clock(rate * (self._total - step))} left", flush=True)

    def row(self, step: int, cells: Mapping[str, str]) -> None:
        """Shows a step as a row of a table, and moves the bar there; the heads of the columns are repeated now and then."""
        texts = {"step": f"{step}/{self._total}", **cells}
        if self._rows % REPEATED == 0:
            self.note("  ".join(f"{head:>{WIDTH}}" for head in texts))
        self.note("  ".join(f"{text:>{max(len(head), WIDTH)}}" for head, text in texts.items()))
        self._rows += 1
        self.advance(step)

    def note(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, flush=True)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
