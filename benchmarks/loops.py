"""Measure the decoding loop: tokens a second, and what threads cost against a loop without them.

    python -m benchmarks.loops --repeats 7
    python -m benchmarks.loops --dtype bfloat16 --problems 8 --lanes 4

Engine and bare loops (`benchmarks.bare`) take turns in one process on the same model, prompts, rows and lengths. The
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
from apr_jax.decode.state import State
from apr_jax.model import io, transformer
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.protocols import Samples, SpawnJoin
from apr_jax.tasks.countdown import SHIPPED, compact
from apr_jax.tasks.countdown import problems as countdown
from apr_jax.tokenizer import Tokenizer
from benchmarks.bare import BareLoop, Layout

WARM = 4  # steps before the clock starts: the prompts are fed and the lanes have begun
ENGINE, SHARED, ROWS = "engine", "bare, shared pool", "bare, cache a row"


@dataclasses.dataclass(frozen=True)
class LoopsConfig:
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
        page_size: slots of a page of the engine's pool, and entries of one of its log.
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
    block: int = 256
    row_block: int = 64
    page_size: int = 8
    fork_problems: int = 64
    fork_tokens: int = 320
    fork_block: int = 256
    output: str = "results/loops"
    seed: int = 0

    def __post_init__(self):
        if self.model not in PRESETS:
            raise ValueError(f"--model {self.model}: allowed are {', '.join(PRESETS)}")
        for name, least in (("tokens", WARM + 1), ("prompt", 2), ("repeats", 1), ("problems", 1), ("lanes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: at least {least} is needed")

    @property
    def pieces(self) -> int:
        """Slices that a loop's turn is cut into; after each the next loop has its slice: a machine's mood favours nobody."""
        return max((self.tokens - WARM) // 16, 1)

    @property
    def steps(self) -> int:
        """Steps of one timed slice."""
        return (self.tokens - WARM) // self.pieces


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


def model_config(config: LoopsConfig) -> ModelConfig:
    return dataclasses.replace(PRESETS[config.model], dtype=config.dtype, param_dtype=config.dtype)


def engine_sizes(config: LoopsConfig) -> Sizes:
    page_size = config.page_size
    entries = config.prompt + page_size + config.lanes * (-(-config.tokens // page_size) + 1) * page_size
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
        page_size=page_size,
        log=up(page_size),
        log_page_size=page_size,
        queue=config.problems,
        outbox=config.problems,
        prompt=config.prompt,
        attention_block=config.block,
    )


def measure_loops(config: LoopsConfig, say: Callable[[str], None]) -> dict:
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

    def start_engine():
        return engine.run(engine.load(engine.create(config.seed), problems), WARM)

    def start_bare(name: str):
        rows = np.repeat(prompts, config.lanes, axis=0) if name == ROWS else prompts
        return bare[name].run(bare[name].start(rows, config.seed), WARM)

    starts = {ENGINE: start_engine, **{name: lambda name=name: start_bare(name) for name in bare}}
    loops = {ENGINE: engine, **bare}

    def take_turns(turn: int) -> dict[str, list[Timing]]:
        """Decode from the prompts to the last token, all loops side by side: one slice of each in turn."""
        states = {name: jax.block_until_ready(start()) for name, start in starts.items()}
        before = counted(states[ENGINE])
        timings: dict[str, list[Timing]] = {name: [] for name in loops}
        for piece in range(config.pieces):
            for name in list(loops)[:: 1 if (turn + piece) % 2 == 0 else -1]:
                run = lambda name=name: loops[name].run(states[name], config.steps)  # noqa: E731
                states[name], timing = timed(run)
                timings[name].append(timing)
        steps, sampled = (after - b for after, b in zip(counted(states[ENGINE]), before, strict=True))
        if (steps, sampled) != (config.pieces * config.steps, steps * config.problems * config.lanes):
            raise RuntimeError(
                f"the timed slices took {steps} decode steps and sampled {sampled} tokens: rows were idle"
            )
        return timings

    def run_whole() -> tuple[float, int]:
        start = time.perf_counter()
        transcripts = list(engine.decode(problems, config.seed))
        return time.perf_counter() - start, sum(int(t.log.sampled.sum()) for t in transcripts)

    say("compiling: engine and bare loops")
    take_turns(0)
    turns = []
    for turn in range(config.repeats):
        turns.append(take_turns(turn))
        seconds = {name: sum(t.wall for t in timings) for name, timings in turns[-1].items()}
        say(f"turn {turn + 1} of {config.repeats}: " + ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items()))
    seconds, tokens = run_whole()
    traces = {ENGINE: engine.traces, **{name: loop.traces for name, loop in bare.items()}}
    return summarise(config, turns) | {
        "traces": traces,
        "whole": {"tokens_per_s": tokens / seconds, "tokens": tokens},
    }


def counted(state: State) -> tuple[int, int]:
    """Decode steps taken and tokens sampled so far."""
    return int(np.sum(state.counters.decode_steps)), int(np.sum(state.counters.sampled))


def summarise(config: LoopsConfig, turns: list[dict[str, list[Timing]]]) -> dict:
    """Medians over turns of the sums of their slices; a ratio is taken within each turn first."""
    rows, steps = config.problems * config.lanes, config.pieces * config.steps

    def sums(name: str, kind: str) -> np.ndarray:
        return np.array([sum(getattr(timing, kind) for timing in turn[name]) for turn in turns])

    def spread(values: np.ndarray) -> dict[str, float]:
        return {"median": float(np.median(values)), "least": float(np.min(values)), "most": float(np.max(values))}

    loops = {
        name: {
            "ms_per_step": spread(sums(name, "wall") / steps * 1e3),
            "cpu_ms_per_step": spread(sums(name, "cpu") / steps * 1e3),
            "tokens_per_s": spread(rows * steps / sums(name, "wall")),
            "ms_per_step_of_slices": [[t.wall / config.steps * 1e3 for t in turn[name]] for turn in turns],
        }
        for name in turns[0]
    }
    costs = {
        name: {kind: spread(sums(ENGINE, kind) / sums(name, kind) - 1) for kind in ("wall", "cpu")}
        for name in (SHARED, ROWS)
    }
    return {"loops": loops, "engine_over": costs}


def measure_forks(config: LoopsConfig, say: Callable[[str], None]) -> dict:
    """Countdown prompts through spawn and join, from prompt to transcript, compiled before the clock starts."""
    words = Tokenizer.from_file(config.tokenizer)
    model = io.load(config.checkpoint)
    names = ("spawn", "wait", "result", "join", "end", "go")
    protocol = SpawnJoin(**{name: words.id(f"<{name}>") for name in names})
    sizes = Sizes(
        problems=config.problems, lanes=config.lanes, rows=-(-config.problems * config.lanes // 2), feed_tiles=8,
        feed_threshold=16, threads=24, slots=2560, page_size=config.page_size, log=3072, queue=config.fork_problems,
        outbox=config.fork_problems, attention_block=config.fork_block,
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
        config = settings.parse(argv, LoopsConfig())
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
