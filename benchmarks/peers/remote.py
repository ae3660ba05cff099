"""An engine in a process of its own, spoken to line by line (`workers/serve.py` has the protocol)."""

import dataclasses
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers import workloads
from benchmarks.peers.workers.serve import Measured, Options

ROOT = Path(__file__).parents[2]
WORKERS = ("benchmarks.peers.workers", "experiments.benchmark.workers")  # now, and in earlier commits


class Unavailable(RuntimeError):
    """An engine that cannot be started, or that died; the message says why in one line."""


class Remote:
    """A worker process.

    Args:
        name: file of the worker in `workers/`.
        interpreter: the Python that runs it.
        cores: threads of computation.
        log: file that gets its standard error.
        root: the project as which it runs; another checkout, to compare commits.

    Raises:
        Unavailable: there is no such interpreter.
    """

    def __init__(self, name: str, interpreter: str, cores: int, log: Path, root: Path = ROOT):
        self.name, self.log = name, log
        command = [interpreter, "-m", f"{_workers(root)}.{name}"]
        # Weights are local; without these, libraries would ask a hub about them.
        environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
        try:
            with log.open("w") as errors:
                self.process = subprocess.Popen(
                    command,
                    cwd=root,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
        except OSError as error:
            raise Unavailable(f"{interpreter}: {error.strerror}") from error

    def load(self, folder: Path, options: Options) -> dict[str, str]:
        """Load weights; returns versions by package."""
        return self._ask({"do": "load", "folder": str(folder.resolve()), "options": _given(options)})["versions"]

    def run(self, work: workloads.Workload) -> Measured:
        """Let the engine do the work once."""
        return Measured(**self._ask({"do": "run", "work": workloads.to_json(work)}))

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error
        answer = self.process.stdout.readline()
        if not answer:
            raise self._death()
        return json.loads(answer)

    def _death(self) -> Unavailable:
        code = self.process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return Unavailable(f"{how}; the last line of {self.log.name}: {lines[-1]}" if lines else how)


def _given(options: Options) -> dict[str, Any]:
    """The settings that differ from their defaults: the worker of an earlier commit knows no newer ones."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return {name: value for name, value in dataclasses.asdict(options).items() if value != defaults[name]}


def _workers(root: Path) -> str:
    """The package of the workers in a checkout of the project."""
    return next(package for package in WORKERS if (root / package.replace(".", "/")).is_dir())
