"""The line protocol of a worker: a JSON object a line on the standard input, one on the standard output for each.

    {"do": "load", "folder": ..., "options": {...}}  ->  {"versions": {...}}
    {"do": "run", "work": {"kind": ..., ...}}        ->  {"seconds": s, "tokens": n, "extra": {...}}
    end of input                                     ->  the worker ends

Libraries that print to the standard output are sent to the standard error. A worker that fails dies with its traceback.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.peers import workloads


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings that every engine gets with its weights.

    Attributes:
        cores: threads of computation; the process is also bound to that many cores.
        dtype: of weights and activations ("bfloat16" or "float32").
        temperature: 0 is greedy.
        quantisation: the GGUF type that llama.cpp reads its weights in.
        context: tokens of the longest sequence.
        sequences: sequences in flight at most.
        block_size: tokens of a block of vLLM's cache; 0 for its own choice.
    """

    cores: int
    dtype: str
    temperature: float
    quantisation: str
    context: int
    sequences: int
    block_size: int = 0


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of a run: seconds of wall time, tokens generated, and further numbers by name."""

    seconds: float
    tokens: int
    extra: dict[str, float] = dataclasses.field(default_factory=dict)


class Worker(Protocol):
    """An engine with weights loaded."""

    versions: dict[str, str]

    def run(self, work: workloads.Workload) -> Measured:
        """Do the work once and time it."""


def serve(load: Callable[[str, Options], Worker]) -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "load":
            options = Options(**request["options"])
            bind(options.cores)
            worker = load(request["folder"], options)
            answer: dict[str, Any] = {"versions": worker.versions}
        else:
            answer = dataclasses.asdict(worker.run(workloads.from_json(request["work"])))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def bind(cores: int) -> None:
    """Keep this process on `cores` of the cores it may use; engines size their thread pools by that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def unsupported(work: workloads.Workload, engine: str) -> ValueError:
    """The error for a workload that an engine cannot do."""
    return ValueError(f"workload {type(work).__name__}: {engine} cannot do it")
