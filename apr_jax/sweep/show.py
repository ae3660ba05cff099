"""The table of a sweep while it runs."""

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import rich.console
from rich.live import Live
from rich.table import Table

from apr_jax.sweep import runs
from apr_jax.sweep.driver import Progress, reason

MOST = 20  # rows of the live table
ORDER = ("running", "failed", "waiting", "interrupted", "done")


class LiveTable:
    """A table that follows the runs on a terminal; elsewhere a line for each change. It is a driver's `watch`."""

    def __init__(self, console: rich.console.Console | None = None):
        self.console = console or rich.console.Console()
        self._live = Live(console=self.console, refresh_per_second=2) if self.console.is_terminal else None

    def __enter__(self) -> "LiveTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, progress: Sequence[Progress], changed: Progress | None) -> None:
        if self._live:
            self._live.update(overview(progress))
        elif changed:
            self.console.print(told(changed, progress), highlight=False, markup=False, soft_wrap=True)


def told(one: Progress, progress: Sequence[Progress]) -> str:
    """A line about a run that has changed."""
    counts = Counter(other.state for other in progress)
    again = f": {reason(one.code)}, tried again" if one.state == "waiting" else ""
    again = f": {reason(one.code)}" if one.state == "failed" else again
    return f"{one.run.name}  {one.state}{again}  ({counts['done']} of {len(progress)} done)"


def overview(progress: Sequence[Progress]) -> Table:
    """The table: how many are in each state, and the runs that matter now."""
    counts = Counter(one.state for one in progress)
    title = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    shown = Table("run", "state", "tries", "min", "last line of its log", title=title)
    now = time.monotonic()
    for one in sorted(progress, key=lambda one: ORDER.index(one.state))[:MOST]:
        line = next(iter(runs.tail(one.run.folder, 1)), "") if one.state in ("running", "failed") else ""
        minutes = f"{(now - one.since) / 60:.1f}" if one.state == "running" else ""
        shown.add_row(one.run.name[-48:], one.state, str(one.tries or ""), minutes, printable(line)[:80])
    if len(progress) > MOST:
        shown.caption = f"and {len(progress) - MOST} more"
    return shown


def printable(line: str) -> str:
    """A line of a log, which may hold anything, safe for a table."""
    return "".join(c if c.isprintable() else " " for c in line).replace("[", "\\[")
