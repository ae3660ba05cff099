"""Compile decoding, training or scoring for TPUs and GPUs that are not there; report memory, collectives and roofline.

    python -m experiments.compile_ahead --topology v5e:2x4 --model qwen3_8b
    python -m experiments.compile_ahead --topology v6e:4x4 --model apr_228m --data 4 --sizes.problems 32
    python -m experiments.compile_ahead --config configs/compile_ahead.py:qwen3_8b_on_v5e_256
    python -m experiments.compile_ahead --program score --topology v5e:2x4 --data 8 --model qwen3_600m

Needs a compiler and no device: for TPUs libtpu (`pip install -r requirements-tpu.txt`, Linux on x86-64), for GPUs the CUDA plugin
(`pip install "jax[cuda12]"`). Everything comes from shapes. Of decoding it prints how the model lies on the mesh, the memory of a
chip as estimated and as compiled, the largest P and N that fit, the collectives of a step, whether the pool is copied or laid out
anew, and the step time that reading weights and pool from HBM allows; of a step of training or scoring the memory of a device
and the collectives. The devices' figures are those of their data sheets; nothing here is timed.

Exit codes: 0 compiled and fits, 1 does not fit, 2 something in the configuration is wrong or a compiler is missing.
"""

import collections
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from apr_jax import settings, sharding
from apr_jax.decode import Sizes, memory
from apr_jax.decode.placement import Placement
from apr_jax.decode.program import Program
from apr_jax.model import transformer
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.protocols import SpawnJoin
from apr_jax.tools import ahead, hardware, hlo
from apr_jax.tools.ahead import CompileConfig


def lay_out(config: CompileConfig, topology: topologies.TopologyDescription) -> Placement:
    """The program on the mesh [data, chips / data]; raises ValueError if it does not fit."""
    model = dataclasses.replace(config.model, dtype=config.dtype, param_dtype=config.dtype)
    mesh = hardware.mesh_of(topology, config.topology, config.data)
    protocol = SpawnJoin(spawn=0, wait=1, result=2, join=3, end=4, go=5)
    return Placement(Program(transformer.graph_of(model), protocol, config.sizes), mesh, jnp.dtype(model.dtype))


def analyse(placement: Placement, options: dict[str, str], file: str) -> dict[str, Any]:
    """Compile, write the text, and read the result: bytes a chip, collectives, what happens to the pool."""
    started = time.monotonic()
    program = placement.compile(options)
    seconds, text, held = time.monotonic() - started, program.as_text(), program.memory_analysis()
    if file:
        Path(file).write_text(text)
    state = placement.abstract_state()
    size = lambda leaf: leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
    pool = jax.tree.leaves(state.pool)[0]
    moved = hlo.operations(hlo.inside_loops(text), pool_shape(pool))
    whole = [line for lines in hlo.computations(text).values() for line in lines]
    copies = lambda lines: sum(name in ("copy", "copy-start", "transpose") for name, _ in lines)
    found = hlo.collectives(text)
    return {
        "compile_seconds": seconds,
        "arguments": held.argument_size_in_bytes,
        "alias": held.alias_size_in_bytes,
        "temp": held.temp_size_in_bytes,
        "state": sum(map(size, jax.tree.leaves(state))),
        "pool": sum(map(size, jax.tree.leaves(state.pool))),
        "pool_copies_in_loops": copies(moved),
        "pool_copies": copies(hlo.operations(whole, pool_shape(pool))),
        "collectives_over_data": sum(hlo.crosses(c, placement.mesh.shape["model"]) for c in found),
        "collectives": by_place(found),
    }


def pool_shape(pool: jax.ShapeDtypeStruct) -> str:
    """How the compiled text writes one layer's keys on one chip, without the axis of shards."""
    names = {"bfloat16": "bf16", "float32": "f32", "float64": "f64", "int8": "s8"}
    sizes = pool.sharding.shard_shape(pool.shape)[1:]
    return f"{names[str(pool.dtype)]}[{','.join(map(str, sizes))}]"


def by_place(found: list[hlo.Collective]) -> dict[str, dict[str, int]]:
    """Counts of collectives by where they stand and by kind and shape."""
    counts: dict[str, collections.Counter] = {}
    for collective in found:
        parts = collective.path.split("/")
        step = next((name for name in ("feed", "decode") if name in parts), "between steps")
        inner = parts[parts.index(step) :] if step in parts else parts
        if "cond" in inner:
            step += ", only where a row truncates" if "sample" in inner else ", only in some steps"
        elif "while" in inner and step in parts:
            step += ", in every round of an inner loop"
        counts.setdefault(step, collections.Counter())[f"{collective.kind} {collective.shape}"] += 1
    return {step: dict(counter.most_common()) for step, counter in sorted(counts.items())}


def roofline(
    config: ModelConfig, sizes: Sizes, mesh: sharding.Mesh, chip: hardware.Chip, fill: int
) -> dict[str, float]:
    """The least time of a decode step: weights and `fill` slots of every problem are read once, products are at their peak."""
    estimate = memory.estimate(config, sizes, mesh).parts
    itemsize = 1 if config.int8_weights else jnp.dtype(config.param_dtype).itemsize
    table = itemsize * config.vocabulary * config.width // mesh.shape["model"]
    weights = estimate["parameters"] - (
        0 if config.tied else table
    )  # of an embedding of its own only some rows are read
    pool = estimate["pool"] * fill // sizes.slots
    products = 2 * config.parameters_without_tables * sizes.rows / mesh.shape["model"] / chip.flops
    seconds = max((weights + pool) / chip.bandwidth, products)
    return {
        "weight_bytes": weights,
        "pool_bytes": pool,
        "step_seconds": seconds,
        "tokens_per_second": sizes.rows * mesh.shape["data"] / seconds,
    }


def report(config: CompileConfig, placement: Placement, kind: str, found: dict[str, Any]) -> None:
    """Print all that was found."""
    model, sizes, limit = placement.program.graph.config, config.sizes, hardware.chip(kind).hbm
    text = memory.readable
    print(f"\ncompiled in {found['compile_seconds']:.0f} s; each chip holds")
    print(
        f"  arguments {text(found['arguments'])}, of them donated {text(found['alias'])} (state: {text(found['state'])})"
    )
    taken = found["arguments"] + found["temp"]
    print(f"  temp      {text(found['temp'])}; together {text(taken)} of {text(limit)}")
    print(f"  the pool, {text(found['pool'])}, is copied {found['pool_copies_in_loops']} times inside of loops, "
          f"{found['pool_copies']} times in all (once in and once out if the compiler lays it out anew)")  # fmt: skip
    # The compiled temp takes the place of the estimate of the workspace.
    spare = limit - found["temp"] + memory.estimate(model, sizes, placement.mesh).parts["workspace"]
    for name, letter in (("problems", "P"), ("slots", "N")):
        most = memory.largest(model, sizes, spare, name, placement.mesh)
        print(f"  largest {letter} beside the other sizes: {most:,} (compiled with {getattr(sizes, name):,})")
    print(f"collectives, of them {found['collectives_over_data']} over data:")
    for step, counts in found["collectives"].items():
        print(f"  {step}: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    bound = found["roofline"]
    print(
        f"roofline of a decode step at a fill of {config.fill or sizes.slots:,} slots: {text(bound['weight_bytes'])} of weights "
        f"+ {text(bound['pool_bytes'])} of pool = {1e3 * bound['step_seconds']:.2f} ms; "
        f"{bound['tokens_per_second']:,.0f} tokens/s over all chips"
    )


def decode(config: CompileConfig, topology: topologies.TopologyDescription) -> dict[str, Any]:
    """Compile decoding and print what was found; raises ValueError if it cannot be laid out or cannot fit."""
    kind = topology.devices[0].device_kind
    placement, hbm = lay_out(config, topology), hardware.chip(kind).hbm
    model, mesh = placement.program.graph.config, placement.mesh
    layout = sharding.explain(transformer.logical_axes(model), transformer.abstract_params(model), mesh)
    print(f"{model.parameters:,} parameters in {model.param_dtype}: {'; '.join(f'{k} {v}' for k, v in layout.items())}")
    print(f"\nestimate for each chip, of {memory.readable(hbm)} HBM\n{memory.costs(model, config.sizes, mesh)}")
    memory.require(model, config.sizes, hbm, mesh)
    found = analyse(placement, hardware.options(config.topology) | chosen(config.options), config.text)
    found["roofline"] = roofline(model, config.sizes, mesh, hardware.chip(kind), config.fill or config.sizes.slots)
    report(config, placement, kind, found)
    return found | {"total": found["arguments"] + found["temp"]}


def train(config: CompileConfig, topology: topologies.TopologyDescription) -> dict[str, Any]:
    """Compile a step of training or scoring and print what was found; raises ValueError if it cannot be laid out."""
    limit = hardware.chip(topology.devices[0].device_kind).hbm
    lowered = ahead.lower(config, hardware.mesh_of(topology, config.topology, config.data))
    started = time.monotonic()
    program = lowered.compile(hardware.options(config.topology) | chosen(config.options))
    seconds, text = time.monotonic() - started, program.as_text()
    if config.text:
        Path(config.text).write_text(text)
    found = ahead.held(program)
    print(f"\ncompiled in {seconds:.0f} s; each device holds")
    for name in ("arguments", "output", "aliased", "temporary"):
        print(f"  {name:<10} {memory.readable(found[name]):>10}")
    verdict = "fits" if found["total"] <= limit else "does not fit"
    print(f"  together   {memory.readable(found['total']):>10} of {memory.readable(limit)}: {verdict}")
    exchanged = ahead.exchanged(text)
    print("collectives in the program, and the bytes of their results on a device (a loop's are counted once)")
    for name, entry in exchanged.items():
        inside = f", {entry['in_loops']} in loops" if entry["in_loops"] else ""
        print(f"  {entry['count']:>5} {name}{inside}: {memory.readable(entry['bytes'])}")
    return {**found, "collectives": exchanged, "compile_seconds": seconds}


def chosen(options: Sequence[str]) -> dict[str, str]:
    """Options of the compiler by name; raises ValueError for one without a value."""
    if wrong := [option for option in options if "=" not in option]:
        raise ValueError(f"options = {wrong}: name=value is needed")
    return dict(option.split("=", 1) for option in options)


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, CompileConfig(), presets={"model": PRESETS})
    try:
        chosen(config.options)
        topology = hardware.describe(config.topology)
        kind, count = topology.devices[0].device_kind, len(topology.devices)
        print(f"{config.topology}: {count} x {kind}, mesh data={config.data} x model={count // max(config.data, 1)}")
        limit = hardware.chip(kind).hbm
        found = (decode if config.program == "decode" else train)(config, topology)
    except ValueError as error:
        settings.fail(str(error))
    except jax.errors.JaxRuntimeError as error:
        print(
            f"error: the compiler refuses the program, which does not fit or has no form there:\n{error}",
            file=sys.stderr,
        )
        return 1
    if config.output:
        Path(config.output).write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["total"] <= limit else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
