"""Measure the decoding loop: tokens a second, and what threads cost against a loop without them.

    python -m experiments.benchmark_decode --repeats 7
    python -m experiments.benchmark_decode --dtype bfloat16 --problems 8 --lanes 4

Engine and bare loops (`apr_jax.decode.bare`) take turns in one process on the same model, prompts, rows and lengths. The
engine runs `Samples`, whose lanes share their prompt; the bare loop does so too ("bare, shared pool"; the cost of threads
is measured against this one), and once more with a cache of its own for every row. A last run forks and joins: a trained
model on Countdown problems. Writes `summary.json`.
"""

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jaxlib
import numpy as np
from rich.console import Console
from rich.table import Table

from apr_jax import settings
from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.decode.bare import BareLoop, Layout
from apr_jax.model import io, transformer
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.protocols import Samples, SpawnJoin
from apr_jax.tasks.countdown import SHIPPED, compact
from apr_jax.tasks.countdown import problems as countdown
from apr_jax.tokenizer import Tokenizer

WARM = 4  # steps before the clock starts: the prompts are fed and the lanes have begun
ENGINE, SHARED, ROWS = "engine", "bare, shared pool", "bare, cache a row"


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        model: preset of the random model.
        checkpoint, tokenizer: files of the trained model of the run that forks.
        dtype: of parameters and activations.
        problems: P, problems in flight.
        lanes: W, threads of a problem; P W rows compute in each step.
        prompt: tokens of a prompt.
        tokens: tokens that each thread generates.
        repeats: turns that engine and bare loops take.
        block: slots that attention reads at a time.
        row_block: the same for the caches of single rows.
        fork_problems: problems of the run that forks.
        fork_tokens: tokens that a thread of it may generate.
        fork_block: slots that attention reads at a time in it.
        output: folder of `summary.json`.
        seed: of weights, prompts and draws.
    """

    model: str = "tiny"
    checkpoint: str = str(SHIPPED / "apr.safetensors")
    tokenizer: str = str(SHIPPED / "compact.model")
    dtype: str = "float32"
    problems: int = 32
    lanes: int = 8
    prompt: int = 16
    tokens: int = 192
    repeats: int = 5
    block: int = 512
    row_block: int = 64
    fork_problems: int = 64
    fork_tokens: int = 320
    fork_block: int = 512
    output: str = "results/benchmark_decode"
    seed: int = 0

    def __post_init__(self):
        if self.model not in PRESETS:
            raise ValueError(f"--model {self.model}: allowed are {', '.join(PRESETS)}")
        for name, least in (("tokens", WARM + 1), ("prompt", 2), ("repeats", 1), ("problems", 1), ("lanes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: at least {least} is needed")

    @property
    def steps(self) -> int:
        """Steps of one timed slice."""
        return self.tokens - WARM


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one slice: on the wall, and of all cores together."""

    wall: float
    cpu: float


def timed(run: Callable[[], object]) -> tuple[object, Timing]:
    """Run something that returns arrays, and wait for them."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(run())
    return result, Timing(time.perf_counter() - wall, time.process_time() - cpu)


def model_config(config: BenchmarkConfig) -> ModelConfig:
    return dataclasses.replace(PRESETS[config.model], dtype=config.dtype, param_dtype=config.dtype)


def engine_sizes(config: BenchmarkConfig) -> Sizes:
    run = 16
    entries = config.prompt + run + config.lanes * (-(-config.tokens // run) + 1) * run
    up = lambda multiple: -(-entries // multiple) * multiple  # noqa: E731
    return Sizes(
        problems=config.problems,
        lanes=config.lanes,
        rows=config.problems * config.lanes,
        feed_tiles=config.problems,
        feed_chunk=config.prompt,
        feed_threshold=1,
        threads=config.lanes + 1,
        slots=up(config.block),
        run=run,
        log=up(run),
        log_run=run,
        queue=config.problems,
        outbox=config.problems,
        prompt=config.prompt,
        attention_block=config.block,
    )


def measure_loops(config: BenchmarkConfig, say: Callable[[str], None]) -> dict:
    """Let engine and bare loops take turns; the engine also decodes all problems from prompt to transcript."""
    model = transformer.init(model_config(config), jax.random.key(config.seed))
    vocabulary = model.config.vocabulary
    prompts = np.random.default_rng(config.seed).integers(0, vocabulary, (config.problems, config.prompt), np.int32)
    # No token has the id of the vocabulary's size: no thread ever ends by itself.
    engine = Engine(model, Samples(config.lanes, end=vocabulary), engine_sizes(config))
    problems = [Problem(i, prompt, temperature=1.0, max_tokens=config.tokens) for i, prompt in enumerate(prompts)]
    layouts = {
        SHARED: Layout(config.problems, config.lanes, config.prompt, config.tokens, config.block),
        ROWS: Layout(config.problems * config.lanes, 1, config.prompt, config.tokens, config.row_block),
    }
    bare = {name: BareLoop(model, layout, temperature=1.0) for name, layout in layouts.items()}

    def run_engine() -> Timing:
        state = engine.run(engine.load(engine.create(config.seed), problems), WARM)
        before = jax.tree.map(int, jax.tree.map(np.sum, state.counters))
        state, timing = timed(lambda: engine.run(state, config.steps))
        after = jax.tree.map(int, jax.tree.map(np.sum, state.counters))
        sampled = after.sampled - before.sampled
        if (
            sampled != config.steps * config.problems * config.lanes
            or after.decode_steps - before.decode_steps != config.steps
        ):
            raise RuntimeError(
                f"the timed slice sampled {sampled} tokens in {after.decode_steps} decode steps: not full"
            )
        return timing

    def run_bare(name: str) -> Timing:
        rows = np.repeat(prompts, config.lanes, axis=0) if name == ROWS else prompts
        state = jax.block_until_ready(bare[name].run(bare[name].start(rows, config.seed), WARM))
        return timed(lambda: bare[name].run(state, config.steps))[1]

    def run_whole() -> tuple[float, int]:
        start = time.perf_counter()
        transcripts = list(engine.decode(problems, config.seed))
        return time.perf_counter() - start, sum(int(t.log.sampled.sum()) for t in transcripts)

    loops = {ENGINE: run_engine, **{name: lambda name=name: run_bare(name) for name in bare}}
    for name, run in loops.items():
        say(f"compiling: {name}")
        run()
    timings: dict[str, list[Timing]] = {name: [] for name in loops}
    for turn in range(config.repeats):
        # Backwards in every second turn: a machine that slows down favours nobody.
        for name in list(loops)[:: 1 if turn % 2 == 0 else -1]:
            timings[name].append(loops[name]())
        say(f"turn {turn + 1} of {config.repeats}: " + ", ".join(f"{n} {t[-1].wall:.2f} s" for n, t in timings.items()))
    seconds, tokens = run_whole()
    traces = {ENGINE: engine.traces, **{name: loop.traces for name, loop in bare.items()}}
    return summarise(config, timings) | {
        "traces": traces,
        "whole": {"tokens_per_s": tokens / seconds, "tokens": tokens},
    }


def summarise(config: BenchmarkConfig, timings: dict[str, list[Timing]]) -> dict:
    """Medians over turns; a ratio is taken within each turn first."""
    rows = config.problems * config.lanes

    def spread(values) -> dict[str, float]:
        return {"median": float(np.median(values)), "least": float(np.min(values)), "most": float(np.max(values))}

    loops, costs = {}, {}
    for name, turns in timings.items():
        wall, cpu = (np.array([getattr(t, kind) for t in turns]) for kind in ("wall", "cpu"))
        loops[name] = {
            "ms_per_step": spread(wall / config.steps * 1e3),
            "cpu_ms_per_step": spread(cpu / config.steps * 1e3),
            "tokens_per_s": spread(rows * config.steps / wall),
        }
    for name in (SHARED, ROWS):
        pairs = list(zip(timings[ENGINE], timings[name], strict=True))
        costs[name] = {
            kind: spread([getattr(a, kind) / getattr(b, kind) - 1 for a, b in pairs]) for kind in ("wall", "cpu")
        }
    return {"loops": loops, "engine_over": costs}


def measure_forks(config: BenchmarkConfig, say: Callable[[str], None]) -> dict:
    """Countdown prompts through spawn and join, from prompt to transcript, compiled before the clock starts."""
    words = Tokenizer.from_file(config.tokenizer)
    model = io.load(config.checkpoint)
    names = ("spawn", "wait", "result", "join", "end", "go")
    protocol = SpawnJoin(**{name: words.id(f"<{name}>") for name in names})
    sizes = Sizes(
        problems=config.problems, lanes=config.lanes, rows=-(-config.problems * config.lanes // 2), feed_tiles=8,
        threads=24, slots=2560, log=3072, queue=config.fork_problems, outbox=config.fork_problems,
        attention_block=config.fork_block,
    )  # fmt: skip
    setting = countdown.PRESETS["four"]
    prompts = [
        words.encode(compact.prompt(countdown.generate(setting, config.seed, "val", i)))
        for i in range(config.fork_problems)
    ]
    problems = [
        Problem(i, np.array(prompt, np.int32), max_tokens=config.fork_tokens) for i, prompt in enumerate(prompts)
    ]
    engine = Engine(model, protocol, sizes)
    say("compiling: fork and join")
    jax.block_until_ready(engine.run(engine.create(config.seed), 0))
    progress, transcripts = [], []
    start = time.perf_counter()
    transcripts.extend(engine.decode(problems, config.seed, watch=progress.append))
    seconds, last = time.perf_counter() - start, progress[-1]
    stops: dict[str, int] = {}
    for transcript in transcripts:
        stops[transcript.stop.name] = stops.get(transcript.stop.name, 0) + 1
    return {
        "model": config.checkpoint,
        "tokens_per_s": last.sampled / seconds,
        "sampled": last.sampled,
        "fed": last.fed,
        "decode_steps": last.decode_steps,
        "feed_steps": last.feed_steps,
        "ms_per_step": seconds / (last.decode_steps + last.feed_steps) * 1e3,
        "occupancy": last.occupancy,
        "rows": sizes.rows,
        "threads_per_problem": float(np.mean([len(t.threads) for t in transcripts])),
        "stops": stops,
        "traces": engine.traces,
    }


def report(console: Console, summary: dict) -> None:
    """Print what was measured."""
    table = Table(title="Decoding, one step at a time")
    for heading in ("loop", "ms a step", "least .. most", "CPU ms a step", "tokens/s", "engine costs", "least .. most"):
        table.add_column(heading, justify="left" if heading == "loop" else "right")
    for name, loop in summary["loops"].items():
        step, cost = loop["ms_per_step"], summary["engine_over"].get(name)
        table.add_row(
            name,
            f"{step['median']:.2f}",
            f"{step['least']:.2f} .. {step['most']:.2f}",
            f"{loop['cpu_ms_per_step']['median']:.2f}",
            f"{loop['tokens_per_s']['median']:,.0f}",
            f"{cost['wall']['median']:+.1%} (CPU {cost['cpu']['median']:+.1%})" if cost else "",
            f"{cost['wall']['least']:+.1%} .. {cost['wall']['most']:+.1%}" if cost else "",
        )
    console.print(table)
    fork = summary["fork"]
    console.print(f"from prompt to transcript: {summary['whole']['tokens_per_s']:,.0f} tokens/s")
    console.print(
        f"fork and join: {fork['tokens_per_s']:,.0f} tokens/s, {fork['threads_per_problem']:.1f} threads a "
        f"problem, {fork['occupancy']:.0%} of {fork['rows']} rows busy, {fork['ms_per_step']:.2f} ms a step, {fork['stops']}"
    )


def main(argv: Sequence[str]) -> int:
    console = Console(width=None if sys.stdout.isatty() else 140)
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    try:
        config = settings.parse(argv, BenchmarkConfig())
        summary = {
            "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
            "config": settings.to_dict(config),
            **measure_loops(config, say),
            "fork": measure_forks(config, say),
        }
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    report(console, summary)
    path = Path(config.output) / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
