"""Runs the command of one run: what every executor starts, wherever it starts it.

    python -m apr_jax.sweep.worker FOLDER

It holds the run's lock, which the program inherits: if this process is killed and the program lives on, no second one starts beside
it. A worker that finds the lock held waits for it, and has nothing to do if the run is done by then. Exit codes: that of the
program, 128 + N if signal N ended it, 124 at the time limit.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from apr_jax import files
from apr_jax.sweep import runs

TIMED_OUT = 124
CORES = "SWEEP_CORES"
"""The environment variable with the numbers of the cores to run on."""


def main(argv: Sequence[str]) -> int:
    folder = Path(argv[0])
    about = files.read_json(folder / runs.RUN)
    if not about:
        print(f"error: {folder} has no {runs.RUN}; `python -m experiments.sweep` writes it", file=sys.stderr)
        return runs.REFUSED
    if cores := os.environ.get(CORES):
        os.sched_setaffinity(0, map(int, cores.split(",")))
    deadline = time.monotonic() + about["hours"] * 3600 if about["hours"] else float("inf")
    held = _wait_for(folder / runs.LOCK, deadline)
    if held is None:
        last = next((line for line in reversed(runs.attempts(folder)) if "began" in line), {})
        _log(
            folder, f"sweep: an earlier attempt still runs: process {last.get('process')} on {last.get('host')}; end it"
        )
        return TIMED_OUT
    if (folder / runs.DONE).is_file():
        return 0
    return _attempt(folder, about, held, deadline)


def _wait_for(path: Path, deadline: float) -> int | None:
    while (held := runs.lock(path)) is None:
        if time.monotonic() > deadline:
            return None
        time.sleep(0.2)
    return held


def _attempt(folder: Path, about: dict, held: int, deadline: float) -> int:
    """Run the command, and write down how it ended."""
    ended: list[int] = []
    began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    with (folder / runs.LOG).open("ab") as log:
        # Signals that come before the program is there are noted too.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: ended.append(number))
        _note(folder, {"began": began, "host": socket.gethostname(), "process": os.getpid()})
        process = subprocess.Popen(
            about["command"], cwd=about["place"], env={**os.environ, "PYTHONUNBUFFERED": "1", **about["env"]},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(held,),
        )  # fmt: skip
        code, timed_out = _watch(process, ended, deadline, about["grace"])
    seconds = time.monotonic() - start
    code = TIMED_OUT if timed_out else runs.INTERRUPTED if ended and code else 128 - code if code < 0 else code
    _note(folder, {"exit": code, "seconds": round(seconds, 3)})
    if timed_out:
        _log(folder, f"sweep: ended at its time limit of {about['hours']:g} hours")
    if code == 0:
        spent = sum(line.get("seconds", 0.0) for line in runs.attempts(folder))
        done = {"exit": 0, "seconds": round(spent, 3), "finished": datetime.now(UTC).isoformat(timespec="seconds")}
        runs.write_json(folder / runs.DONE, {**done, "point": about["point"], "command": about["command"]})
    return code


def _watch(process: subprocess.Popen, ended: list[int], deadline: float, grace: float) -> tuple[int, bool]:
    """Wait for the program; its exit code, and whether the time limit ended it. It is asked to end before it is killed."""
    asked = None
    while process.poll() is None:
        now = time.monotonic()
        if asked is None and (ended or now > deadline):
            process.send_signal(signal.SIGTERM)
            asked = now
        if asked is not None and now > asked + grace:
            process.kill()
        time.sleep(0.05)
    return process.returncode, asked is not None and not ended


def _note(folder: Path, line: dict) -> None:
    """Append a line; one that a killed process has left unfinished is ended first."""
    path = folder / runs.ATTEMPTS
    whole = not path.is_file() or path.read_bytes()[-1:] in (b"\n", b"")
    with path.open("a") as file:
        file.write(("" if whole else "\n") + json.dumps(line) + "\n")


def _log(folder: Path, line: str) -> None:
    with (folder / runs.LOG).open("a") as log:
        log.write(line + "\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
