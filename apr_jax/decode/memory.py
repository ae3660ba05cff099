"""The memory of a program, known before anything is allocated, and sizes that fit.

Parameters and state are counted exactly, from their shapes on the mesh. The workspace of a step is estimated from its largest
arrays; `Engine.compile().memory_analysis()` measures it, `experiments/compile_ahead.py` for devices that are not there. Letters
are those of `Sizes`.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from apr_jax import sharding
from apr_jax.decode import state as states
from apr_jax.decode.book import Nobodys
from apr_jax.decode.needs import Needs
from apr_jax.decode.sizes import Sizes
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig

# Sizes that can grow, and the texts of their steps.
STEPS = {
    "problems": "one more problem in flight (P)",
    "slots": "more slots of every problem (N), one attention block",
    "threads": "one more thread of every problem (M)",
    "log": "more log entries of every problem (T), one page",
    "outbox": "one more place in the outbox (O)",
    "queue": "one more place in the queue (Q)",
    "rows": "one more row of a decode step (A)",
    "feed_chunk": "one more token of a feed tile (C)",
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes that one device holds.

    Attributes:
        parts: bytes by part: parameters, pool, books, logs, outbox, queue, workspace.
        how: the arithmetic of the large parts, as text.
    """

    parts: dict[str, int]
    how: dict[str, str]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        lines = [f"{name:<11} {readable(size):>10}   {self.how.get(name, '')}" for name, size in self.parts.items()]
        return "\n".join(line.rstrip() for line in (*lines, f"{'total':<11} {readable(self.total):>10}"))


def estimate(config: ModelConfig, sizes: Sizes, mesh: sharding.Mesh | None = None) -> Estimate:
    """The bytes that each device of the mesh holds; by default for a single device.

    Raises:
        ValueError: the mesh does not fit the model; the message names the parameter and the mesh sizes that would fit.
    """
    return _estimator(config, mesh)(sizes)


def costs(config: ModelConfig, sizes: Sizes, mesh: sharding.Mesh | None = None) -> str:
    """The estimate as a text table, and the bytes that growing each size adds on every device."""
    at = _estimator(config, mesh)
    now = at(sizes)
    lines = [str(now), "", "growing a size adds"]
    for name, text in STEPS.items():
        grown = _grown(sizes, name)
        added = at(grown).total - now.total
        lines.append(f"{'+' + readable(added):>11}   {text}: {getattr(sizes, name)} -> {getattr(grown, name)}")
    return "\n".join(lines)


def require(config: ModelConfig, sizes: Sizes, memory: int, mesh: sharding.Mesh | None = None) -> Estimate:
    """The estimate, if it fits.

    Args:
        memory: bytes of a device.

    Raises:
        ValueError: the sizes do not fit; the message has the arithmetic and sizes that fit.
    """
    at = _estimator(config, mesh)
    found = at(sizes)
    if found.total <= memory:
        return found
    most = {name: _largest(at, sizes, memory, name) for name in ("problems", "slots", "outbox")}
    fixes = [f"sizes.{name} = {value} instead of {getattr(sizes, name)}" for name, value in most.items() if value]
    cure = f"what fits: {', or '.join(fixes)}" if fixes else "no smaller pool or outbox is enough: use more devices"
    raise ValueError(
        f"these sizes need {readable(found.total)} on each device, which has {readable(memory)}:\n{found}\n{cure}"
    )


def largest(config: ModelConfig, sizes: Sizes, memory: int, name: str, mesh: sharding.Mesh | None = None) -> int:
    """The largest value of the size `name` (`problems`, `slots` or `outbox`) whose estimate fits in `memory` bytes; 0 if none."""
    return _largest(_estimator(config, mesh), sizes, memory, name)


def choose_sizes(
    config: ModelConfig,
    memory: int,
    *,
    prompt: int,
    tokens: int,
    threads: int,
    lanes: int,
    problems: int = 64,
    mesh: sharding.Mesh | None = None,
    page_size: int = 16,
    int8_pool: bool = False,
) -> Sizes:
    """Sizes that have room for every problem within the given bounds, with as many problems in flight as fit.

    Print `costs(config, sizes, mesh)` to see the cost of the sizes.

    Args:
        memory: bytes that a device may use.
        prompt: tokens of the longest prompt.
        tokens: largest number of tokens that a thread is fed or samples.
        threads: threads of a problem over its life.
        lanes: threads of a problem that compute at once; at least `needs.together` of the protocol.
        problems: upper bound of problems in flight per shard.
        page_size: slots of a page; 8 to 16 suits CPU, 128 suits TPU.
        int8_pool: keys and values in int8, see `Sizes`: about twice as many problems or slots.

    Raises:
        ValueError: not even one problem fits; the message has the arithmetic.
    """
    up = lambda count, step: math.ceil(count / step) * step
    block = 32 * page_size if page_size < 128 else 512
    # A thread wastes less than a page of slots and less than a page of the log. Its last token is logged, but not fed.
    slots, log = (
        up(prompt + threads * (tokens + page_size), block),
        up(prompt + threads * (tokens + 1 + page_size), page_size),
    )
    one = Sizes(
        problems=1, lanes=lanes, rows=lanes, threads=threads, slots=slots, page_size=page_size, log=log,
        log_page_size=page_size, prompt=prompt,
        queue=4 * problems, outbox=2, attention_block=block, int8_pool=int8_pool,
    )  # fmt: skip
    require(config, one, memory, mesh)
    at = _estimator(config, mesh)
    grow = lambda count: dataclasses.replace(one, problems=count, rows=count * lanes, outbox=2 * count)
    return grow(_last(lambda count: count <= problems and at(grow(count)).total <= memory))


def device_memory(device: Any) -> int | None:
    """Bytes that a device may use: its own limit, or for a CPU device its share of the machine's memory; None if unknown."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if device.platform != "cpu":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def readable(size: int) -> str:
    """Bytes with a unit of 1000s, as hardware is sold: 16.0 GB."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _estimator(config: ModelConfig, mesh: sharding.Mesh | None) -> Callable[[Sizes], Estimate]:
    """`estimate` for many sizes of one model on one mesh; counts the parameters once."""
    mesh = mesh or jax.sharding.AbstractMesh((1, 1), ("data", "model"))
    shapes = transformer.abstract_params(config)
    places = sharding.shardings(shapes, transformer.logical_axes(config), mesh)
    held = jax.tree.map(
        lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, places
    )
    parameters, model = sum(jax.tree.leaves(held)), mesh.shape["model"]
    heads = config.kv_heads // (model if sharding.pool_cut(config.kv_heads, model) else 1)
    width = heads * config.head_dim
    dtype = jnp.dtype(config.dtype)
    stored = "1 byte and their scales" if config.int8_weights else f"{jnp.dtype(config.param_dtype).itemsize} bytes"

    def at(sizes: Sizes) -> Estimate:
        plain = Nobodys(needs=Needs())  # books of a protocol that needs nothing further
        create = lambda key: states.create(sizes, config.layers, heads, config.head_dim, dtype, key, plain)
        state = jax.eval_shape(create, jax.ShapeDtypeStruct((2,), jnp.uint32))
        slots = f"{sizes.problems} problems x {sizes.slots} slots"
        numbers = f"{width} numbers x {dtype.itemsize} bytes"
        scales = f"({width} bytes + {heads} scales x {max(dtype.itemsize, 4)} bytes)"
        parts = {
            "parameters": parameters,
            "pool": _bytes(state.pool),
            "books": _bytes((state.books, state.slots)),
            "logs": _bytes(state.log),
            "outbox": _bytes(state.outbox),
            "queue": _bytes(state.queue),
            "workspace": _workspace(config, sizes, model, width),
        }
        how = {
            "parameters": f"{config.parameters:,} numbers x {stored}, model={model}",
            "pool": f"2 x {config.layers} layers x {slots} x {scales if sizes.int8_pool else numbers}",
            "outbox": f"{sizes.outbox} logs of {sizes.log} entries, and their books",
            "workspace": "the largest arrays of one step, about",
        }
        return Estimate(parts, how)

    return at


def _largest(at: Callable[[Sizes], Estimate], sizes: Sizes, memory: int, name: str) -> int:
    step = sizes.block if name == "slots" else 1

    def fits(count: int) -> bool:
        rows = min(sizes.rows, count * sizes.lanes) if name == "problems" else sizes.rows
        return at(dataclasses.replace(sizes, rows=rows, **{name: count * step})).total <= memory

    return _last(fits) * step


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _workspace(config: ModelConfig, sizes: Sizes, model: int, width: int) -> int:
    """Bytes of the largest arrays of one step: masks, scores and weights of a block, gathered blocks, FFN, logits."""
    item = jnp.dtype(config.dtype).itemsize
    heads = config.heads // model if config.heads % model == 0 else config.heads

    def rows(count: int, mask_rows: int, keys: int) -> int:
        mask = 5 * mask_rows * sizes.slots  # visibility in 32-bit words, and the boolean mask
        scores = 2 * 4 * mask_rows * heads * sizes.block
        blocks = 2 * keys * sizes.block * width * item
        hidden = count * (3 * config.ffn // model + 4 * config.width) * item
        return mask + max(scores + blocks, hidden)

    decode = rows(sizes.rows, sizes.problems * sizes.lanes, sizes.problems)
    feed = rows(sizes.feed_tiles * sizes.feed_chunk, sizes.feed_tiles * sizes.feed_chunk, sizes.feed_tiles)
    logits = 4 * 4 * max(sizes.rows, sizes.feed_tiles) * config.vocabulary // model
    return max(decode, feed) + logits


def _grown(sizes: Sizes, name: str) -> Sizes:
    step = {"slots": sizes.block, "log": sizes.log_page_size}.get(name, 1)
    lanes = {"lanes": sizes.lanes + 1} if name == "rows" and sizes.rows == sizes.problems * sizes.lanes else {}
    return dataclasses.replace(sizes, **{name: getattr(sizes, name) + step}, **lanes)


def _last(fits: Callable[[int], bool]) -> int:
    """The largest count from 1 on for which `fits` holds, 0 if none; `fits` must be monotone."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
