"""Progress of a run: JSON lines, TensorBoard curves, and a progress bar, or lines without a terminal."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from apr_jax import files


class Metrics:
    """Writes numbers by step to `metrics.jsonl` and to TensorBoard event files in one folder."""

    def __init__(self, folder: str | Path, from_step: int = 0, tensorboard: bool = True):
        """Opens the files.

        Args:
            folder: the folder of both; made if missing.
            from_step: step at which the run continues; lines of an earlier attempt about later steps are dropped; -1: all are.
            tensorboard: write TensorBoard event files too.
        """
        folder = files.local(folder, "folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = (line for line in self._complete() if json.loads(line)["step"] <= from_step)
            files.write_text(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a")
        self._board = SummaryWriter(str(folder), purge_step=from_step + 1) if tensorboard else None

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

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step; names may contain slashes ("held_out/loss")."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items() if self._board is not None else ():
            self._board.add_scalar(name, value, step)


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
        self._bar = None
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

    def note(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, flush=True)


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
