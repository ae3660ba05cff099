"""Measure how many rows of the decode steps are busy while uneven forks come and go, against batches that wait for their last.

    python -m benchmarks.occupancy
    python -m benchmarks.occupancy --in-flight 8 16 --rows 64 --lanes 8

The problems are those of the benchmark (`benchmarks.peers`): they think alone, fork into 2 to 8 threads of uneven
lengths, join and go on. They run three ways on the same rows:

    queue           the next problem enters as soon as one has ended
    same batch      as many problems enter together, the next ones when all have ended; the same program, measured
    a row a thread  each problem has rows for all threads that it may fork into; the next ones enter when all have ended:
                    what a fixed batch of padded rows reaches, computed from the same lengths

Occupancy is busy rows over rows of the decode steps, from the first to the last token of all problems.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import rich.console
import rich.progress
from rich.table import Table

from apr_jax import settings
from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from benchmarks.peers.workloads import CHILDREN, ForkJoin, Script
from benchmarks.scripted import Scripted

MODEL = ModelConfig(vocabulary=256, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16)


@dataclasses.dataclass(frozen=True)
class OccupancyConfig:
    """Settings of the measurement.

    Attributes:
        problems: how many come.
        share: of the benchmark's lengths; 0.25 is 16 tokens alone, 8 to 40 a thread, 12 after the join.
        rows: A, rows of a decode step.
        lanes: W, rows that one problem may have in a step.
        in_flight: P, problems in flight; one measurement each.
        page_size: slots of a page.
        seed: of prompts and lengths.
        output: folder of `summary.json`.
    """

    problems: int = 500
    share: float = 0.25
    rows: int = 32
    lanes: int = 8
    in_flight: tuple[int, ...] = (8, 12, 16, 24)
    page_size: int = 8
    seed: int = 0
    output: str = "results/occupancy"

    def __post_init__(self):
        if self.rows < CHILDREN[1]:
            raise ValueError(f"--rows {self.rows}: at least {CHILDREN[1]}, the most threads of a problem, are needed")


def up(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def sizes(config: OccupancyConfig, in_flight: int, scripts: Sequence[Script], protocol: Scripted) -> Sizes:
    """Sizes that hold every problem."""
    longest = max(len(script.prompt) for script in scripts)
    # What is written once, and what the join feeds again; a page more for each thread.
    tokens = max(len(s.prompt) + s.tokens + sum(s.lengths) for s in scripts) + protocol.needs.threads * (
        config.page_size + 3
    )
    return Sizes(
        problems=in_flight,
        lanes=config.lanes,
        rows=min(config.rows, in_flight * config.lanes),
        feed_tiles=4,
        feed_chunk=32,
        feed_threshold=4,
        threads=protocol.needs.threads,
        slots=up(tokens, 128),
        page_size=config.page_size,
        log=up(tokens, 128),
        log_page_size=config.page_size,
        queue=config.problems,
        outbox=64,
        prompt=longest,
        attention_block=128,
    )


def measure(engine: Engine, problems: Sequence[Problem], together: int) -> tuple[float, int, int]:
    """Decode problems, so many given at a time: occupancy, decode steps and feed steps."""
    busy = decode_steps = feed_steps = 0
    for first in range(0, len(problems), together):
        seen = []
        list(engine.decode(problems[first : first + together], slice_steps=100_000, watch=seen.append))
        last = seen[-1]
        busy += last.occupancy * last.decode_steps
        decode_steps, feed_steps = decode_steps + last.decode_steps, feed_steps + last.feed_steps
    return busy / decode_steps, decode_steps, feed_steps


def padded(scripts: Sequence[Script], rows: int) -> float:
    """Occupancy of fixed batches in which every problem has rows for the most threads of a fork."""
    together = rows // CHILDREN[1]
    batches = [scripts[first : first + together] for first in range(0, len(scripts), together)]
    steps = sum(max(s.alone + max(s.lengths) + s.after for s in batch) for batch in batches)
    return sum(script.tokens for script in scripts) / (steps * together * CHILDREN[1])


def run(config: OccupancyConfig) -> list[dict]:
    """One entry for every number of problems in flight."""
    scripts = ForkJoin(
        config.problems, config.rows, vocabulary=MODEL.vocabulary, share=config.share, seed=config.seed
    ).scripts
    protocol = Scripted(most=CHILDREN[1])
    problems = [protocol.problem(i, s.prompt, s.alone, s.lengths, s.after) for i, s in enumerate(scripts)]
    model = transformer.init(MODEL, jax.random.key(config.seed))
    found = []
    for in_flight in rich.progress.track(config.in_flight, console=rich.console.Console(stderr=True)):
        engine = Engine(model, protocol, sizes(config, in_flight, scripts, protocol))
        queue, decode_steps, feed_steps = measure(engine, problems, len(problems))
        batch, batch_steps, _ = measure(engine, problems, in_flight)
        found.append(
            {
                "in_flight": in_flight,
                "rows": engine.sizes.rows,
                "lanes": config.lanes,
                "queue": queue,
                "decode_steps": decode_steps,
                "feed_steps": feed_steps,
                "same_batch": batch,
                "same_batch_decode_steps": batch_steps,
                "row_a_thread": padded(scripts, engine.sizes.rows),
                "traces": engine.traces,
            }
        )
    return found


def main(argv: Sequence[str]) -> int:
    try:
        config = settings.parse(argv, OccupancyConfig())
        found = run(config)
    except ValueError as error:
        settings.fail(str(error))
    table = Table(
        title=f"Busy rows of {config.problems} uneven forks, {config.rows} rows, {config.lanes} a problem at most"
    )
    for heading in ("in flight", "queue", "decode steps", "same batch", "decode steps", "a row a thread"):
        table.add_column(heading, justify="right")
    for entry in found:
        steps = f"{entry['decode_steps']:,}", f"{entry['same_batch_decode_steps']:,}"
        shares = [f"{entry[name]:.1%}" for name in ("queue", "same_batch", "row_a_thread")]
        table.add_row(str(entry["in_flight"]), shares[0], steps[0], shares[1], steps[1], shares[2])
    rich.console.Console().print(table)
    path = Path(config.output) / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"config": settings.to_dict(config), "found": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
