"""Measure what room for more threads costs: the same sixteen samples of each problem with thread tables of several sizes.

    python -m benchmarks.table
    python -m benchmarks.table --threads 32 1024 --turns 5

Samples run to their budget, so that all steps but a few are decode steps without events. The tables are measured in turns, one
after the other in each turn; a figure is the median of the turns, with the least and the most.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import rich.console
from rich.table import Table

from apr_jax import settings
from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.evaluate.machine import processor
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Samples

MODEL = ModelConfig(vocabulary=512, width=128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=384)
PROMPT, SAMPLES, PROBLEMS = 32, 16, 4


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Settings of the measurement.

    Attributes:
        threads: sizes of the table, M; at least 17, the root and its samples.
        tokens: that each sample generates.
        turns: measurements of each.
        output: folder of `table.json`.
    """

    threads: tuple[int, ...] = (32, 128, 1024)
    tokens: int = 256
    turns: int = 5
    output: str = "results/table"

    def __post_init__(self):
        if min(self.threads) <= SAMPLES:
            raise ValueError(f"--threads {min(self.threads)}: at least {SAMPLES + 1} are needed")


def engine(threads: int, tokens: int) -> Engine:
    """The engine whose table has so many threads."""
    slots = -(-(PROMPT + (SAMPLES + 1) * (tokens + 16)) // 512) * 512
    sizes = Sizes(
        problems=PROBLEMS, lanes=SAMPLES, rows=PROBLEMS * SAMPLES, threads=threads, slots=slots, page_size=16, log=slots,
        queue=PROBLEMS, outbox=PROBLEMS, prompt=PROMPT,
    )  # fmt: skip
    return Engine(transformer.init(MODEL, jax.random.key(0)), Samples(SAMPLES, end=-1), sizes)


def step_ms(engine: Engine, tokens: int) -> float:
    """Milliseconds of a step while all problems are decoded."""
    prompt = np.arange(PROMPT, dtype=np.int32)
    problems = [Problem(i, prompt, temperature=1.0, max_tokens=tokens) for i in range(PROBLEMS)]
    begin, steps = time.perf_counter(), []
    for _ in engine.decode(
        problems, slice_steps=10 * tokens, watch=lambda progress: steps.append(progress.shard_steps)
    ):
        pass
    return 1000 * (time.perf_counter() - begin) / sum(steps[-1])


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, TableConfig())
    engines = {threads: engine(threads, config.tokens) for threads in config.threads}
    for each in engines.values():
        step_ms(each, config.tokens)  # compiles
    found: dict[int, list[float]] = {threads: [] for threads in engines}
    for _ in range(config.turns):
        for threads, each in engines.items():
            found[threads].append(step_ms(each, config.tokens))
    first = statistics.median(found[config.threads[0]])
    table = Table("threads (M)", "ms a step", "least", "most", f"of M = {config.threads[0]}", title=processor())
    for threads, times in found.items():
        middle = statistics.median(times)
        table.add_row(f"{threads:,}", *(f"{value:.2f}" for value in (middle, min(times), max(times), middle / first)))
    rich.console.Console().print(table)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.json").write_text(json.dumps({"processor": processor(), "ms": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
