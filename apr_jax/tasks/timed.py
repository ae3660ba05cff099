"""Calls with a time limit, in a process of their own: for verifiers that a model's answer can make run for ever.

    run("apr_jax.tasks.language.verifiers:mathematics", {}, [("1/2", "0.5"), ("2", "9**9**9**9")], seconds=5)

The worker is `python -m apr_jax.tasks.timed`: it reads arguments and writes results, one JSON value a line. It is
killed when a call is late, grows beyond its memory or takes it down, and the next call gets another one.
"""

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


def run(factory: str, settings: Mapping[str, Any], calls: Sequence[Sequence[Any]], seconds: float) -> list[Any]:
    """Call a function on each list of arguments, in order.

    Args:
        factory: `module:name` of what makes the function, called once by each worker.
        settings: its keyword arguments.
        calls: arguments of each call, as JSON can hold them.
        seconds: limit of one call.

    Returns:
        One result per call; None where the call was late, raised, or took the worker down.

    Raises:
        RuntimeError: the worker does not start.
    """
    worker: _Worker | None = None
    results = []
    try:
        for call in calls:
            worker = worker or _Worker(factory, settings)
            answered, result = worker.ask(call, seconds)
            results.append(result)
            if not answered:
                worker.stop()
                worker = None
    finally:
        if worker is not None:
            worker.stop()
    return results


class _Worker:
    """A started worker: a process, and lines to and from it."""

    def __init__(self, factory: str, settings: Mapping[str, Any]):
        command = [sys.executable, "-m", "apr_jax.tasks.timed", factory, json.dumps(settings)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment
        )
        if self._line(START) != b"ready":
            self._process.kill()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            self.stop()
            raise RuntimeError(f"the worker of {factory} did not start: {said[-1] if said else 'no message'}")

    def ask(self, call: Sequence[Any], seconds: float) -> tuple[bool, Any]:
        """Whether a call was answered in time, and its result."""
        try:
            self._process.stdin.write(json.dumps(list(call)).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False, None
        line = self._line(seconds)
        return line is not None, None if line is None else json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            try:
                file.close()
            except BrokenPipeError:  # what was to be flushed has no reader any more
                continue

    def _line(self, seconds: float) -> bytes | None:
        """The next line without its end, None if there is none in time."""
        read, until = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not read.endswith(b"\n"):
                if not selector.select(until - time.monotonic()):
                    return None
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    return None
                read += part
        return read[:-1]


def serve(factory: str, settings: str, lines: IO[str], replies: IO[str]) -> None:
    """The worker: make the function, say that it is ready, answer line by line; a call that raises is answered by null."""
    module, _, name = factory.partition(":")
    function = getattr(importlib.import_module(module), name)(**json.loads(settings))
    print("ready", file=replies, flush=True)
    for line in lines:
        try:
            result = json.dumps(function(*json.loads(line)))
        except Exception:  # whatever a foreign verifier makes of a text of a model
            result = "null"
        print(result, file=replies, flush=True)


def main(argv: Sequence[str]) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # what a verifier prints is no reply
    serve(argv[0], argv[1], sys.stdin, replies)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
