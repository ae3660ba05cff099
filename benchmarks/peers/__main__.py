"""Run the project and its peers side by side and write `summary.json`.

    make benchmark                                             # everything, on the newest jax that is found
    python -m benchmarks.peers --peer-python PYTHON       # peers in an interpreter of their own
    python -m benchmarks.peers --reduced True --repeats 1 # does everything run?
    python -m benchmarks.peers --models tiny --peers vllm

One process an engine; within a turn all workloads of a model take turns, and every second turn goes backwards. A ratio is
taken within each turn; what is reported is the median over turns, with the least and the most. A peer that is not
installed, or that fails, makes its rows say so.
"""

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from apr_jax import settings
from apr_jax.evaluate import machine
from benchmarks.peers import report, weights
from benchmarks.peers.remote import Remote, Unavailable
from benchmarks.peers.rows import ENGINE, LLAMACPP, PEERS, Job, Row, Scale, rows
from benchmarks.peers.workers.serve import Measured, Options
from benchmarks.peers.workloads import Events, ForkJoin, Threads

REST = 0.3  # seconds before a run: threads of the engine that ran last still spin for a moment


@dataclasses.dataclass(frozen=True)
class PeersConfig:
    """What is compared.

    Attributes:
        models: of `weights.SHAPES`.
        peers: of vllm, transformers, llamacpp.
        peer_python: interpreter of the peers; empty for the one that runs this.
        only: rows whose names begin with one of these; none for all.
        repeats: turns.
        cores: that every engine may use.
        dtype: of the project, vLLM and transformers.
        quantisation: GGUF type of llama.cpp's weights.
        block_size: tokens of a block of vLLM's cache, which shares prefixes by whole blocks; 0 for its own choice.
        temperature: 0 is greedy, the cheapest choice for every engine.
        reduced: a little of everything, to see that it runs; its ratios mean nothing.
        prefixes: lengths of the prefixes at which a fork and a join are timed.
        output: folder of `summary.json`, logs and weights.
        seed: of weights.
    """

    models: tuple[str, ...] = ("tiny", "smollm2")
    peers: tuple[str, ...] = PEERS
    peer_python: str = ""
    only: tuple[str, ...] = ()
    repeats: int = 5
    cores: int = 2
    dtype: str = "bfloat16"
    quantisation: str = "Q4_1"
    block_size: int = 0
    temperature: float = 0.0
    reduced: bool = False
    prefixes: tuple[int, ...] = (64, 512, 4096)
    output: str = "results/benchmark"
    seed: int = 0

    def __post_init__(self):
        for name, allowed in (("models", tuple(weights.SHAPES)), ("peers", PEERS)):
            for value in getattr(self, name):
                if value not in allowed:
                    raise ValueError(f"--{name} {value}: allowed are {', '.join(allowed)}")
        for name in ("repeats", "cores"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        if self.block_size < 0:
            raise ValueError(
                f"--block_size {self.block_size}: tokens of a block are needed, or 0 for vLLM's own choice"
            )

    @property
    def scale(self) -> Scale:
        return Scale.reduced() if self.reduced else Scale()

    @property
    def options(self) -> Options:
        return Options(
            self.cores, self.dtype, self.temperature, self.quantisation, weights.CONTEXT // 2, sequences=256,
            block_size=self.block_size,
        )  # fmt: skip


class Bench:
    """The engines of one model, started when first asked; what cannot be had, an engine or one of its jobs, with its reason."""

    def __init__(self, config: PeersConfig, model: str, say: Callable[[str], None]):
        self.config, self.model, self.say = config, model, say
        self.folder = Path(config.output) / "weights" / model
        weights.write(self.folder, weights.SHAPES[model], config.seed)
        self.missing: dict[str | Job, str] = {}
        self.versions: dict[str, str] = {}
        self._remotes: dict[str, Remote] = {}
        self._warm: set[Job] = set()

    def run(self, job: Job) -> Measured | None:
        """Let an engine do a job, warmed up by doing it once before; None if it cannot be had."""
        if not self.warm_up(job):
            return None
        time.sleep(REST)
        return self._ask(job)

    def warm_up(self, job: Job) -> bool:
        """Have the job done once by the engine's present process (the project compiles then); False if it cannot be had."""
        name = job.engine
        if name not in self._remotes and name not in self.missing:
            self._start(name)
        if name in self.missing or job in self.missing:
            return False
        if job not in self._warm and self._ask(job):
            self._warm.add(job)
        return job in self._warm

    def _ask(self, job: Job) -> Measured | None:
        name = job.engine
        try:
            measured = self._remotes[name].run(job.work)
        except Unavailable as error:
            # The process is gone; its other jobs get a new one, and are warmed up again.
            del self._remotes[name]
            self._warm = {other for other in self._warm if other.engine != name}
            self._lose(job, f"{name} in {type(job.work).__name__}", error)
            return None
        self.say(f"  {name:12} {type(job.work).__name__:9} {measured.seconds:9.3f} s")
        return measured

    def _start(self, name: str) -> None:
        config = self.config
        if name != ENGINE and name not in config.peers:
            self.missing[name] = "left out by --peers"
            return
        interpreter = sys.executable if name == ENGINE else config.peer_python or sys.executable
        if name == LLAMACPP:
            weights.write_gguf(self.folder, config.quantisation)
        try:
            remote = Remote(name, interpreter, config.cores, Path(config.output) / f"{self.model}_{name}.log")
            self.versions |= remote.load(self.folder, config.options)
            self._remotes[name] = remote
        except Unavailable as error:
            self._lose(name, name, error)

    def _lose(self, what: str | Job, described: str, error: Unavailable) -> None:
        self.missing[what] = str(error)
        self.say(f"{self.model}: {described} is out: {error}")

    def take_turns(self, jobs: Sequence[Job]) -> dict[Job, list[Measured]]:
        """Warm all jobs up and run them `repeats` times in turn."""
        self.say(f"{self.model}: warming up")
        for job in jobs:
            self.warm_up(job)
        found: dict[Job, list[Measured]] = {job: [] for job in jobs}
        for turn in range(self.config.repeats):
            self.say(f"{self.model}: turn {turn + 1} of {self.config.repeats}")
            for job in jobs[:: -1 if turn % 2 else 1]:
                measured = self.run(job)
                if measured:
                    found[job].append(measured)
        return found

    def close(self) -> None:
        for remote in self._remotes.values():
            remote.close()


def measure(config: PeersConfig, chosen: Sequence[Row], say: Callable[[str], None]) -> dict:
    """Time all rows model by model; returns the summary."""
    timings, missing, versions, extra = {}, {}, {}, {}
    for model in config.models:
        bench = Bench(config, model, say)
        jobs = dict.fromkeys(job for row in chosen if row.model == model for job in (row.ours, row.theirs))
        timings |= {(model, job): found for job, found in bench.take_turns(tuple(jobs)).items()}
        if not config.only:
            extra |= measure_alone(config, bench, model)
        missing |= {(model, what): reason for what, reason in bench.missing.items()}
        versions |= bench.versions
        bench.close()
    found = report.results([row for row in chosen if row.model in config.models], timings, missing)
    report.show(Console(width=None if sys.stdout.isatty() else 160), found)
    families = {name: report.worst(found, f"{name}_") for name in ("thread_overhead", "of_bare_products")}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "ratios": {result.row.name: result.ratio for result in found} | families | extra.pop("ratios", {}),
        "rows": {result.row.name: result.to_dict() for result in found},
        **extra,
    }


def measure_alone(config: PeersConfig, bench: Bench, model: str) -> dict:
    """What only the project is asked: forks and joins by prefix length, and how full its steps are."""
    vocabulary = weights.SHAPES[model].vocabulary
    if model == "smollm2":
        # A fork as peers do it: to the first token of 8 threads.
        work = Threads(1, 8, config.scale.prefix, 1, vocabulary)
        jobs = [Job(engine, work) for engine in (ENGINE, *config.peers)]
        found = {
            job.engine: [run.seconds * 1e3 for run in runs] for job, runs in bench.take_turns(jobs).items() if runs
        }
        return {"first_tokens_of_8_ms": {engine: report.spread(times) for engine, times in found.items()}}
    jobs = {prefix: Job(ENGINE, Events(prefix, 8, vocabulary)) for prefix in config.prefixes}
    found = bench.take_turns(tuple(jobs.values()))
    events = {
        prefix: {name: report.spread([run.extra[name] for run in found[job]]) for name in found[job][0].extra}
        for prefix, job in jobs.items()
        if found[job]
    }
    problems, in_flight = (8, 2) if config.reduced else (500, 32)
    # A row for each problem: enough wait for one that none is idle.
    many = ForkJoin(problems, in_flight, vocabulary, share=config.scale.share, seed=1, rows=1.0)
    busy = bench.run(Job(ENGINE, many))
    occupancy = {"lane_occupancy": busy.extra["occupancy"] if busy else None}
    fixed = {"lane_occupancy_of_fixed_batches": fixed_batches(many)}
    return {"events_ms_by_prefix": events, "ratios": occupancy | fixed}


def fixed_batches(work: ForkJoin) -> float:
    """Busy rows of batches that start and end together, with a row for each thread of the widest fork in them."""
    scripts = work.scripts
    batches = [scripts[first : first + work.in_flight] for first in range(0, len(scripts), work.in_flight)]
    rows_taken = [
        max(script.longest for script in batch) * sum(len(script.lengths) for script in batch) for batch in batches
    ]
    return work.tokens / sum(rows_taken)


def main(argv: Sequence[str]) -> int:
    say = lambda line: print(line, file=sys.stderr, flush=True)
    try:
        config = settings.parse(argv, PeersConfig())
    except ValueError as error:
        settings.fail(str(error))
    vocabularies = {name: shape.vocabulary for name, shape in weights.SHAPES.items()}
    known = rows(config.scale, vocabularies)
    chosen = [row for row in known if not config.only or row.name.startswith(config.only)]
    if not chosen:
        names = ", ".join(row.name for row in known)
        settings.fail(f"--only {' '.join(config.only)}: no row's name begins so; there are {names}")
    Path(config.output).mkdir(parents=True, exist_ok=True)
    summary = {
        "machine": machine.processor(),
        "cores": os.cpu_count(),
        "config": settings.to_dict(config),
    }
    try:
        summary |= measure(config, chosen, say)
    except (Unavailable, ValueError) as error:
        settings.fail(str(error))
    path = Path(config.output) / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
