"""The engine of another commit beside this one's, turn by turn: is anything slower than it was?

    python -m benchmarks.commits --before HEAD~5
    python -m benchmarks.commits --before v1 --models tiny --turns 9

Both run in processes of their own on the same weights; every second turn goes backwards. What is printed and written to
`commits.json` is the speed of this tree over the other's within each turn (its median, the least and the most), and `best`, the
same for the shortest run of each: on short jobs single runs scatter by a quarter.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from apr_jax import settings
from benchmarks.peers import report, weights
from benchmarks.peers.remote import ROOT, Remote
from benchmarks.peers.rows import ENGINE
from benchmarks.peers.workers.serve import Options
from benchmarks.peers.workloads import ForkJoin, Threads, Workload

REST = 0.3  # seconds before a run: threads of the engine that ran last still spin for a moment


@dataclasses.dataclass(frozen=True)
class CommitsConfig:
    """Settings of the comparison.

    Attributes:
        before: the other commit, as git names it.
        models: of `weights.SHAPES`.
        jobs: names of the jobs; empty: all, see `jobs`.
        turns: how often each does each job.
        cores: that each may use.
        dtype: of weights and activations.
        share: of the lengths of the fork-join workload.
        output: folder of `commits.json`, logs and weights.
    """

    before: str
    models: tuple[str, ...] = ("tiny", "smollm2")
    jobs: tuple[str, ...] = ()
    turns: int = 5
    cores: int = 2
    dtype: str = "bfloat16"
    share: float = 1.0
    output: str = "results/commits"


def jobs(model: str, share: float) -> dict[str, Workload]:
    """The timed jobs, by name."""
    vocabulary = weights.SHAPES[model].vocabulary
    problems, prefix = (64, 128) if model == "tiny" else (16, 512)
    fork = ForkJoin(problems, problems // 2, vocabulary, share=share)
    threads = {f"{count} threads": Threads(1, count, prefix, 128, vocabulary) for count in (8, 16, 32)}
    return {"fork-join": fork, "fork-join, stitched": dataclasses.replace(fork, join="stitch"), **threads}


def chosen(config: CommitsConfig, model: str) -> dict[str, Workload]:
    """The jobs that the settings name.

    Raises:
        ValueError: a name that is none of them.
    """
    every = jobs(model, config.share)
    if unknown := [name for name in config.jobs if name not in every]:
        raise ValueError(f"jobs names {unknown[0]!r}; allowed are {', '.join(every)}")
    return {name: work for name, work in every.items() if name in (config.jobs or every)}


def compare(config: CommitsConfig, model: str, checkout: Path) -> dict[str, dict]:
    """Ratios of one model, by job."""
    output = Path(config.output)
    folder = output / "weights" / model
    weights.write(folder, weights.SHAPES[model], seed=0)
    options = Options(config.cores, config.dtype, 0.0, "Q4_1", weights.CONTEXT // 2, sequences=256)
    sides = [
        Remote(ENGINE, sys.executable, config.cores, output / f"{model}_{name}.log", root)
        for name, root in (("before", checkout), ("now", ROOT))
    ]
    for side in sides:
        side.load(folder, options)
    found = {}
    for name, work in chosen(config, model).items():
        for side in sides:  # compiles
            side.run(work)
        ratios, best = [], [math.inf, math.inf]
        for turn in range(config.turns):
            seconds = {}
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                time.sleep(REST)
                seconds[place] = sides[place].run(work).seconds
            ratios.append(seconds[0] / seconds[1])
            best = [min(least, seconds[place]) for place, least in enumerate(best)]
        found[name] = report.spread(ratios) | {"best": best[0] / best[1]}
        print(f"{model}: {name}: {found[name]}", flush=True)
    for side in sides:
        side.close()
    return found


def main(argv: list[str]) -> int:
    config = settings.parse(argv, CommitsConfig(before="HEAD"))
    Path(config.output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(checkout), config.before], check=True)
        try:
            found = {model: compare(config, model, checkout) for model in config.models}
        finally:
            subprocess.run([*git, "remove", "--force", str(checkout)], check=True)
    path = Path(config.output) / "commits.json"
    path.write_text(json.dumps({"before": config.before, "cores": os.cpu_count(), "speed": found}, indent=2) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
