"""Calls with a time limit, in a separate process: for verifiers that some model outputs make run for ever.

    run("apr_jax.tasks.language.verifiers:mathematics", {}, [("1/2", "0.5"), ("2", "9**9**9**9")], seconds=5)

The worker is `python -m apr_jax.tasks.timed`: it reads arguments and writes results, one JSON value per line. A worker is killed
if a call is late or uses too much memory; the next call gets a new worker. A call without a result gives a `Failure` and never
an error of the program.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

MEMORY = 4 << 30
"""Bytes of address space of a worker."""
START = 120.0
"""Seconds that a worker may take to start."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """A call without a result, with the reason."""

    reason: str


def run(
    factory: str, settings: Mapping[str, Any], calls: Sequence[Sequence[Any]], seconds: float
) -> list[Any | Failure]:
    """Call a function on each list of arguments, in order.

    Args:
        factory: `module:name` of the factory of the function; each worker calls the factory once.
        settings: keyword arguments of the factory.
        calls: arguments of each call, as JSON values.
        seconds: time limit of one call.

    Returns:
        One result per call; a `Failure` for a call that was late, raised, or ended the worker. If no worker starts, all
        remaining calls are failures.
    """
    worker: _Worker | None = None
    results: list[Any | Failure] = []
    try:
        for call in calls:
            try:
                worker = worker or _Worker(factory, settings)
            except RuntimeError as error:
                return results + [Failure(str(error))] * (len(calls) - len(results))
            results.append(worker.ask(call, seconds))
            if worker.ended:
                worker = None
    finally:
        if worker is not None:
            worker.stop()
    return results


class _Worker:
    """A started worker: a process that reads and writes lines; raises RuntimeError if the worker does not start."""

    def __init__(self, factory: str, settings: Mapping[str, Any]):
        command = [sys.executable, "-m", "apr_jax.tasks.timed", factory, json.dumps(settings)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.ended = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )
        started = False
        try:
            self._line(START)
            started = True
        except (EOFError, TimeoutError) as error:
            self._process.kill()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"the worker of {factory} did not start: {said[-1] if said else error}") from error
        finally:
            if not started:
                self.stop()

    def ask(self, call: Sequence[Any], seconds: float) -> Any | Failure:
        """The result of a call; the worker has ended if it gave no result in time."""
        try:
            self._process.stdin.write(json.dumps(list(call)).encode() + b"\n")
            self._process.stdin.flush()
            reply = json.loads(self._line(seconds))
        except (BrokenPipeError, EOFError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)
            self.stop(grace=0 if late else 1)
            code = self._process.returncode
            ended = f"signal {-code} ended the judge" if code < 0 else f"the judge ended with code {code}"
            return Failure(f"no reply in {seconds:g} s" if late else ended)
        return Failure(reply["failure"]) if "failure" in reply else reply["result"]

    def stop(self, grace: float = 0) -> None:
        """End the process, unless it ends by itself within `grace` seconds."""
        self.ended = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace)
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            try:
                file.close()
            except BrokenPipeError:  # the buffered output has no reader any more
                continue

    def _line(self, seconds: float) -> bytes:
        """The next line without its end; raises TimeoutError if there is none in time, EOFError if none will come."""
        read, until = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not read.endswith(b"\n"):
                if not selector.select(until - time.monotonic()):
                    raise TimeoutError(f"nothing in {seconds:g} s")
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    raise EOFError("it ended")
                read += part
        return read[:-1]


def serve(factory: str, settings: str, lines: IO[str], replies: IO[str]) -> None:
    """The worker: make the function, report that it is ready, and answer line by line; an exception is an answer too."""
    module, _, name = factory.partition(":")
    function = getattr(importlib.import_module(module), name)(**json.loads(settings))
    print("ready", file=replies, flush=True)
    for line in lines:
        try:
            reply = json.dumps({"result": function(*json.loads(line))})
        except Exception as error:  # a foreign verifier may raise anything on model output
            reply = json.dumps({"failure": f"{type(error).__name__}: {error}"})
        print(reply, file=replies, flush=True)


def main(argv: Sequence[str]) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # output printed by a verifier is not a reply
    serve(argv[0], argv[1], sys.stdin, replies)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
