"""Engines of the same workload measured in turns: sixteen samples of each problem that run to their budget.

All steps but a few are decode steps without events. In each turn the engines are measured one after the other; a figure is the
median of the turns, with the least and the most. What is compared shares a run, so that a slow minute of the machine is shared too.
"""

import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import rich.console
from rich.table import Table

from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.decode.protocol import Protocol
from apr_jax.evaluate.machine import processor
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig

MODEL = ModelConfig(vocabulary=512, width=128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=384)
PROMPT, SAMPLES, PROBLEMS = 32, 16, 4


def engine(protocol: Protocol, threads: int, tokens: int, model: ModelConfig = MODEL) -> Engine:
    """An engine for samples of so many tokens each, with room for so many threads a problem."""
    slots = -(-(PROMPT + (SAMPLES + 1) * (tokens + 16)) // 512) * 512
    sizes = Sizes(
        problems=PROBLEMS, lanes=SAMPLES, rows=PROBLEMS * SAMPLES, threads=threads, slots=slots, page_size=16, log=slots,
        queue=PROBLEMS, outbox=PROBLEMS, prompt=PROMPT,
    )  # fmt: skip
    return Engine(transformer.init(model, jax.random.key(0)), protocol, sizes)


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


def measure(engines: Mapping[str, Engine], tokens: int, turns: int) -> dict[str, list[float]]:
    """Milliseconds a step of each engine, one figure a turn."""
    for each in engines.values():
        step_ms(each, tokens)  # compiles
    found: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(turns):
        for name, each in engines.items():
            found[name].append(step_ms(each, tokens))
    return found


def report(what: str, found: Mapping[str, list[float]], file: Path) -> None:
    """Print a table, and write the figures of all turns to a file. Ratios are medians over turns of a turn's own ratio."""
    first = next(iter(found))
    table = Table(what, "ms a step", "least", "most", f"of {first}", title=processor())
    for name, times in found.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times, found[first], strict=True))
        table.add_row(
            name, *(f"{value:.2f}" for value in (statistics.median(times), min(times), max(times))), f"{ratio:.3f}"
        )
    rich.console.Console().print(table)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"processor": processor(), "ms": found}, indent=1) + "\n")
