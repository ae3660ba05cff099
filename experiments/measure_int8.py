"""Measure what int8 weights and int8 keys and values lose on a real model, and what they take and cost.

    python -m experiments.fetch_smollm2
    pip install -r requirements-gym.txt
    python -m experiments.measure_int8

The text is questions of reasoning-gym's gsm_symbolic, each continued greedily by the model in float32. After every token of it
the distribution of the next one is set beside that of float32: mean Kullback-Leibler divergence, how often the best token is the
same, perplexity of the text. Keys and values go through the pool as they do when decoding. Then engines decode side by side,
a slice of steps each in turn, and their speed is set beside that of the plain bfloat16 engine. Writes `summary.json`.
"""

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.table import Table

from apr_jax import settings
from apr_jax.decode import Engine, Problem, Sizes, memory, pool
from apr_jax.model import transformer
from apr_jax.model.transformer import Model
from apr_jax.pretrained import load_pretrained
from apr_jax.pretrained.tokenizer import load
from apr_jax.protocols import Samples
from apr_jax.tasks.language.gym import TAGS, ReasoningGym
from apr_jax.tools import greedy

REFERENCE, NARROW = "float32", "bfloat16"


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a model is stored and computed with."""

    dtype: str
    int8_weights: bool = False
    int8_pool: bool = False

    def __str__(self) -> str:
        parts = [name for name, on in (("weights", self.int8_weights), ("K and V", self.int8_pool)) if on]
        return f"{self.dtype}, int8 {' and '.join(parts)}" if parts else self.dtype


INT8 = ((True, False), (False, True), (True, True))
VARIANTS = tuple(Variant(dtype, *int8) for dtype in (REFERENCE, NARROW) for int8 in ((False, False), *INT8))
SPEED = tuple(variant for variant in VARIANTS if variant.dtype == NARROW)


@dataclasses.dataclass(frozen=True)
class MeasureInt8:
    """Settings of the measurement.

    Attributes:
        path: a Hugging Face folder or a GGUF file.
        questions: how many are asked.
        new: tokens that each is continued by.
        problems, lanes: rows of a decode step, where speed is measured.
        prompt: tokens of a prompt there, drawn at random.
        steps: decode steps of one slice.
        turns: slices of every engine, 0: speed is not measured.
        seed: of questions, prompts and draws.
        output: folder of `summary.json`.
    """

    path: Path = Path("work/smollm2.gguf")
    questions: int = 20
    new: int = 128
    problems: int = 2
    lanes: int = 8
    prompt: int = 128
    steps: int = 16
    turns: int = 7
    seed: int = 0
    output: Path = Path("results/measure_int8")

    def __post_init__(self):
        for name, least in (("questions", 1), ("new", 1), ("prompt", 2), ("steps", 1), ("turns", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: at least {least} is needed")

    @property
    def sizes(self) -> Sizes:
        """Of the engines whose speed is measured: no thread ends before the last slice."""
        tokens = 64 + self.steps * (self.turns + 1)
        slots = -(-(self.prompt + self.lanes * (tokens + 16)) // 256) * 256
        return Sizes(
            problems=self.problems, lanes=self.lanes, rows=self.problems * self.lanes, threads=self.lanes + 1, slots=slots,
            log=slots, prompt=self.prompt, queue=self.problems, outbox=self.problems, feed_chunk=64, attention_block=256,
        )  # fmt: skip


def models(path: Path) -> Mapping[tuple[str, bool], Model]:
    """By dtype and whether weights are int8, which they are made from the float32 ones."""
    wide, narrow = (load_pretrained(path, dtype=dtype) for dtype in (REFERENCE, NARROW))
    int8 = transformer.quantise(wide)
    config = dataclasses.replace(int8.config, dtype=NARROW, param_dtype=NARROW)
    return {
        (REFERENCE, False): wide,
        (NARROW, False): narrow,
        (REFERENCE, True): int8,
        (NARROW, True): Model(transformer.graph_of(config), int8.params),
    }


@functools.partial(jax.jit, static_argnames="int8_pool")
def log_probabilities(model: Model, tokens: Int[Array, "S"], int8_pool: bool) -> Float[Array, "S V"]:
    """Of the token after each, the keys and values of a row written to a pool and read from there."""
    config, count = model.config, tokens.shape[0]
    sizes = Sizes(problems=1, lanes=1, rows=1, slots=count, page_size=1, attention_block=count, int8_pool=int8_pool)
    view = pool.View(jnp.tri(count, dtype=bool)[None], jnp.int32(1))
    row, slot = jnp.zeros((1, count), jnp.int32), jnp.arange(count)[None]

    def attend(q, k, v, stored):
        stored = tuple(pool.put(old, new, row, slot) for old, new in zip(stored, (k, v), strict=True))
        return pool.blockwise_attention(q, *stored, view, sizes.block), stored

    blank = pool.empty(sizes, config.kv_heads, config.head_dim, jnp.dtype(config.dtype))
    x, _ = transformer.hidden(model.graph, model.params, tokens[None], slot, attend, ((blank, blank),) * config.layers)
    return jax.nn.log_softmax(transformer.logits(model.graph, model.params, x)[0])


@jax.jit
def compare(
    reference: Float[Array, "S V"], other: Float[Array, "S V"], tokens: Int[Array, "S"], length: Int[Array, ""]
) -> Float[Array, "4"]:
    """Sums over a text of `length` tokens: divergence, same best token, log-probability of the text, places."""
    divergence = jnp.sum(jnp.exp(reference) * (reference - other), axis=-1)
    same = jnp.argmax(reference, axis=-1) == jnp.argmax(other, axis=-1)
    text = jnp.take_along_axis(other, jnp.roll(tokens, -1)[:, None], axis=-1)[:, 0]
    counted = jnp.arange(tokens.shape[0]) < length - 1
    return jnp.sum(jnp.where(counted, jnp.stack([divergence, same, text, jnp.ones_like(text)]), 0), axis=1)


def accuracy(
    known: Mapping[tuple[str, bool], Model], texts: Sequence[Sequence[int]], say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """By variant: mean divergence from float32 in nats, share of places with the same best token, perplexity."""
    longest = -(-max(map(len, texts)) // 64) * 64
    sums = {variant: np.zeros(4) for variant in VARIANTS}
    for number, text in enumerate(texts):
        tokens = jnp.asarray(np.pad(text, (0, longest - len(text))), jnp.int32)
        reference = log_probabilities(known[REFERENCE, False], tokens, False)
        for variant in VARIANTS:
            other = log_probabilities(known[variant.dtype, variant.int8_weights], tokens, variant.int8_pool)
            sums[variant] += np.asarray(compare(reference, other, tokens, jnp.int32(len(text))), np.float64)
        say(f"text {number + 1} of {len(texts)}: {len(text)} tokens")
    return {
        str(variant): {"divergence": s[0] / s[3], "same_best": s[1] / s[3], "perplexity": float(np.exp(-s[2] / s[3]))}
        for variant, s in sums.items()
    }


def speed(
    known: Mapping[tuple[str, bool], Model], config: MeasureInt8, say: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """By variant: speed over the plain one, of slices taken in turn; median, least and most."""
    rng, sizes = np.random.default_rng(config.seed), config.sizes
    engines, states = {}, {}
    for variant in SPEED:
        model = known[variant.dtype, variant.int8_weights]
        prompts = rng.integers(0, model.config.vocabulary, (sizes.problems, config.prompt), np.int32)
        most = dict(temperature=1.0, max_tokens=sizes.slots)
        engine = Engine(
            model,
            Samples(sizes.lanes, model.config.vocabulary),
            dataclasses.replace(sizes, int8_pool=variant.int8_pool),
        )
        problems = [Problem(i, prompt, **most) for i, prompt in enumerate(prompts)]
        state = engine.run(engine.load(engine.create(config.seed), problems), config.steps)
        engines[variant], states[variant] = engine, jax.block_until_ready(state)
        say(f"compiled: {variant}")
    seconds: dict[Variant, list[float]] = {variant: [] for variant in SPEED}
    for turn in range(config.turns):
        for variant in SPEED[:: 1 if turn % 2 == 0 else -1]:
            start = time.perf_counter()
            states[variant] = jax.block_until_ready(engines[variant].run(states[variant], config.steps))
            seconds[variant].append(time.perf_counter() - start)
        say(f"turn {turn + 1} of {config.turns}")
    ratios = {v: np.array(seconds[SPEED[0]]) / np.array(seconds[v]) for v in SPEED}
    return {
        str(v): {"median": float(np.median(r)), "least": float(r.min()), "most": float(r.max())}
        for v, r in ratios.items()
    }


def taken(known: Mapping[tuple[str, bool], Model], sizes: Sizes) -> dict[str, dict[str, int]]:
    """By variant: bytes of parameters and pool."""
    estimates = {
        v: memory.estimate(
            known[v.dtype, v.int8_weights].config, dataclasses.replace(sizes, int8_pool=v.int8_pool)
        ).parts
        for v in VARIANTS
    }
    return {str(v): {name: parts[name] for name in ("parameters", "pool")} for v, parts in estimates.items()}


def report(console: Console, summary: dict) -> None:
    table = Table(title=f"{summary['places']:,} places of {summary['texts']} texts")
    headings = ("stored as", "parameters", "pool", "KL to float32", "same best", "perplexity", "speed", "least .. most")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "stored as" else "right")
    for name, lost in summary["accuracy"].items():
        held, ratio = summary["memory"][name], summary["speed"].get(name)
        table.add_row(
            name,
            memory.readable(held["parameters"]),
            memory.readable(held["pool"]),
            f"{lost['divergence']:.2e}",
            f"{lost['same_best']:.2%}",
            f"{lost['perplexity']:.3f}",
            f"{ratio['median']:.2f}" if ratio else "",
            f"{ratio['least']:.2f} .. {ratio['most']:.2f}" if ratio else "",
        )
    console.print(table)


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, MeasureInt8())
    console = Console(width=None if sys.stdout.isatty() else 140)
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    try:
        known, codec = models(config.path), load(config.path)
        task = ReasoningGym(ask=TAGS, count=config.questions)
        prompts = [task.prompt(question, codec) for question in task.questions(config.seed)]
        texts = greedy.decode(known[REFERENCE, False], prompts, config.new)
        say(f"the first continuation: {codec.decode(texts[0][len(prompts[0]) :])!r}")
    except (ImportError, FileNotFoundError, ValueError) as error:
        settings.fail(str(error))
    summary = {
        "config": settings.to_dict(config),
        "versions": {"jax": jax.__version__},
        "texts": len(texts),
        "places": sum(map(len, texts)) - len(texts),
        "memory": taken(known, config.sizes),
        "accuracy": accuracy(known, texts, say),
        "speed": speed(known, config, say) if config.turns else {},
    }
    report(console, summary)
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"written: {config.output / 'summary.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
