"""Drives runs to their end: skips what is done, goes on with what was interrupted, and tries again what died.

One driver at a time works on a results folder, by a lock that the kernel frees when the driver is gone. Nothing is remembered
outside the folders of the runs: a driver that is killed is replaced by the same command.
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_jax.interrupt import Interrupt
from apr_jax.sweep import runs
from apr_jax.sweep.executors import Executor
from apr_jax.sweep.runs import Need, Run

LOCK = "driver.lock"


@dataclasses.dataclass
class Progress:
    """Where a run stands, for a table while it runs.

    Attributes:
        run: the run.
        state: "failed" means that it is not tried again.
        tries: how often this driver has started it.
        code: exit code of the last try.
        since: monotonic time of the last change, seconds.
    """

    run: Run
    state: runs.State
    tries: int = 0
    code: int | None = None
    since: float = dataclasses.field(default_factory=time.monotonic)

    def become(self, state: runs.State) -> None:
        self.state, self.since = state, time.monotonic()


Watch = Callable[[Sequence[Progress], Progress | None], None]
"""Called with all runs, and with the one that has just changed, if one has."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of the runs.

    Attributes:
        progress: of each run.
        interrupted: the driver was asked to end before all of them had ended.
    """

    progress: tuple[Progress, ...]
    interrupted: bool

    @property
    def counts(self) -> Mapping[str, int]:
        return Counter(one.state for one in self.progress)

    @property
    def failures(self) -> list[str]:
        """For each failed run its exit code, the reason if it is known, and the last lines of its log."""
        told = []
        for one in self.progress:
            if one.state == "failed":
                tries = f"{one.tries} {'try' if one.tries == 1 else 'tries'}"
                lines = [f"    {line}" for line in runs.tail(one.run.folder)]
                log = one.run.folder / runs.LOG
                told.append(
                    "\n".join([f"{one.run.name}: {reason(one.code)}, after {tries}; the end of {log}:", *lines])
                )
        return told


def reason(code: int | None) -> str:
    """What an exit code of a worker says."""
    if code is None:
        return "its worker was lost"
    if code < 0:
        return f"its worker was ended by signal {-code}"
    known = {runs.REFUSED: "its configuration was refused (code 2)", 124: "it was ended at its time limit"}
    return known.get(code, f"ended by signal {code - 128}" if code > 128 else f"ended with code {code}")


def drive(
    found: Sequence[Run],
    executor: Executor,
    root: Path,
    need: Need,
    retries: int = 1,
    env: Mapping[str, str] | None = None,
    watch: Watch = lambda progress, changed: None,
    every: float = 0.25,
) -> Ended:
    """Run all that is not done, until it is done or has failed; SIGINT and SIGTERM end it, and let the runs save their state.

    Args:
        found: the runs.
        executor: where they run.
        root: the results folder, for the lock.
        need: the resources of each run.
        retries: how often a run that died is tried again; one whose configuration is refused is not.
        env: environment variables of the runs, beside those of this process.
        watch: told of changes.
        every: seconds between looks at the runs.

    Raises:
        ValueError: another driver works on the folder, two runs have one name, or a folder holds a run of another command.
    """
    runs.check_names(found)
    held = runs.lock(root / LOCK)  # kept until this process ends, however it does
    if held is None:
        raise ValueError(f"output: another driver works on {root}; wait for it or end it")
    for run in found:
        runs.prepare(run, need, env)
    progress = [Progress(run, runs.state(run.folder)) for run in found]
    for one in progress:
        if one.state == "failed":
            one.state = "waiting"  # the user runs the command again because something has changed
    try:
        with Interrupt() as interrupt:
            return _Drive(executor, progress, retries, watch, every, interrupt).run()
    finally:
        executor.close()
        runs.unlock(held)


@dataclasses.dataclass
class _Drive:
    executor: Executor
    progress: list[Progress]
    retries: int
    watch: Watch
    every: float
    interrupt: Interrupt
    handles: dict[str, Any] = dataclasses.field(default_factory=dict)
    asked: bool = False

    def run(self) -> Ended:
        self.watch(self.progress, None)
        while True:
            if self.interrupt.requested and not self.asked:
                self.asked = True
                for handle in self.handles.values():
                    self.executor.cancel(handle)
            for one in self.progress:
                self._look(one)
            if not self.asked:
                self._submit()
            if not self.handles and (self.asked or all(one.state in ("done", "failed") for one in self.progress)):
                self.watch(self.progress, None)
                return Ended(tuple(self.progress), self.asked)
            self.watch(self.progress, None)
            time.sleep(self.every)

    def _submit(self) -> None:
        for one in self.progress:
            if one.state in ("done", "failed") or one.run.name in self.handles:
                continue
            handle = self.executor.submit(one.run)
            if handle is None:
                return
            self.handles[one.run.name] = handle
            one.tries += 1
            self._change(one, "running")

    def _look(self, one: Progress) -> None:
        handle = self.handles.get(one.run.name)
        if handle is None:
            return
        one.code = self.executor.poll(handle)
        if one.code is None:
            return
        del self.handles[one.run.name]
        if (one.run.folder / runs.DONE).is_file():
            self._change(one, "done")
        elif self.asked:
            self._change(one, "interrupted")
        elif one.code == runs.REFUSED or one.tries > self.retries:
            self._change(one, "failed")
        else:
            self._change(one, "waiting")

    def _change(self, one: Progress, state: runs.State) -> None:
        one.become(state)
        self.watch(self.progress, one)
