"""Compile the decoding program for a TPU that is not there, and report its memory, collectives and roofline.

    python -m experiments.compile_tpu --topology v5e:2x4 --model qwen3_8b
    python -m experiments.compile_tpu --topology v5e:4x4 --model qwen3_8b --data 2
    python -m experiments.compile_tpu --topology v6e:4x4 --model apr_228m --data 4 --sizes.problems 32

Needs libtpu (`pip install -r requirements-tpu.txt`, Linux on x86-64), which holds the TPU compiler; no TPU. Prints how the model
lies on the mesh, the memory of each chip as estimated and as compiled, the largest P and N that fit, the collectives of a step,
whether the pool is copied or laid out anew, and the step time that reading weights and pool from HBM allows. The chips'
figures are those of their data sheets; nothing here is timed.

Exit codes: 0 compiled and fits, 1 does not fit, 2 something in the configuration is wrong or libtpu is missing.
"""

import collections
import dataclasses
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies

from apr_jax import settings, sharding
from apr_jax.decode import Sizes, memory
from apr_jax.decode.placement import AXES, Placement
from apr_jax.decode.program import Program
from apr_jax.model import transformer
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.protocols import SpawnJoin
from apr_jax.tools import hlo

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of a chip's data sheet: HBM bytes, HBM bytes a second, bf16 operations a second."""

    hbm: int
    bandwidth: float
    flops: float


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """Settings of the compilation.

    Attributes:
        topology: chips, as libtpu names them: generation, colon, how many along each axis.
        model: the model; a preset, of which single fields may be changed (`--model.layers 4`).
        dtype: of parameters and activations, whatever the preset says.
        data: shards of problems; each is spread over chips / data, the axis `model`.
        sizes: of each shard. Runs of 128 slots suit TPU.
        fill: slots in use that the step time is given for, 0: all N.
        options: options of the compiler, `name=value`, as many as wanted. A gather that runs out of scoped vmem (as that of the
            228 M model's small embedding does on v6e) wants `xla_tpu_scoped_vmem_limit_kib=65536`.
        output: a file for the numbers as JSON, none if empty.
        text: a file for the compiled program, none if empty.
    """

    topology: str = "v5e:2x4"
    model: ModelConfig = PRESETS["qwen3_8b"]
    dtype: str = "bfloat16"
    data: int = 1
    sizes: Sizes = Sizes(
        problems=8, lanes=8, rows=64, feed_tiles=4, feed_chunk=128, feed_threshold=8, threads=32, slots=8192, page_size=128,
        log=8192, log_page_size=128, queue=64, prompt=512, outbox=8, attention_block=512,
    )  # fmt: skip
    fill: int = 0
    options: tuple[str, ...] = ()
    output: str = ""
    text: str = ""


def chip(kind: str) -> Chip:
    """Raises ValueError for a kind of device that is not in the table."""
    chips = {
        "TPU v4": Chip(32 * GIB, 1.228e12, 275e12),
        "TPU v5 lite": Chip(16 * GIB, 0.819e12, 197e12),
        "TPU v5": Chip(95 * GIB, 2.765e12, 459e12),
        "TPU v6 lite": Chip(32 * GIB, 1.640e12, 918e12),
        "TPU7x": Chip(192 * GIB, 7.370e12, 2307e12),
    }
    if kind not in chips:
        raise ValueError(f"no figures for the device {kind!r}; there are some for {', '.join(chips)}")
    return chips[kind]


def describe(topology: str) -> topologies.TopologyDescription:
    """The chips of a topology.

    Raises:
        ValueError: libtpu is missing or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "libtpu is not installed: it holds the TPU compiler. pip install -r requirements-tpu.txt "
            "(PyPI has it for Linux on x86-64 alone); no TPU is needed"
        )
    # No TPU is looked for, neither here nor at the cloud's metadata server, and other processes may load libtpu too.
    jax.config.update("jax_platforms", "cpu")
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_STDERR_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"topology {topology!r}: {reason}; names look like v5e:2x4, v5p:2x2x1, v6e:4x4") from error


def lay_out(config: CompileConfig, topology: topologies.TopologyDescription) -> Placement:
    """The program on the mesh [data, chips / data]; raises ValueError if it does not fit."""
    chips = len(topology.devices)
    if config.data < 1 or chips % config.data:
        raise ValueError(f"data = {config.data}: must divide the {chips} chips of {config.topology}")
    model = dataclasses.replace(config.model, dtype=config.dtype, param_dtype=config.dtype)
    shape = (config.data, chips // config.data)
    try:  # an axis of the mesh may be half an axis of the chips: 2 x 8 of 4 x 4
        devices = mesh_utils.create_device_mesh(shape, list(topology.devices), allow_split_physical_axes=True)
    except NotImplementedError as error:
        raise ValueError(
            f"data = {config.data}: {config.topology} has no mesh of {shape[0]} x {shape[1]}: {error}"
        ) from error
    mesh = jax.sharding.Mesh(devices, AXES)
    protocol = SpawnJoin(spawn=0, wait=1, result=2, join=3, end=4, go=5)
    return Placement(Program(transformer.graph_of(model), protocol, config.sizes), mesh, jnp.dtype(model.dtype))


def analyse(placement: Placement, options: Sequence[str], file: str) -> dict[str, Any]:
    """Compile, write the text, and read the result: bytes a chip, collectives, what happens to the pool."""
    started = time.monotonic()
    program = placement.compile(dict(option.split("=", 1) for option in options))
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


def roofline(config: ModelConfig, sizes: Sizes, mesh: sharding.Mesh, chip: Chip, fill: int) -> dict[str, float]:
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
    model, sizes, limit = placement.program.graph.config, config.sizes, chip(kind).hbm
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


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, CompileConfig(), presets={"model": PRESETS})
    try:
        if wrong := [option for option in config.options if "=" not in option]:
            raise ValueError(f"options = {wrong}: name=value is needed")
        topology = describe(config.topology)
        placement = lay_out(config, topology)
        kind = topology.devices[0].device_kind
        hardware = chip(kind)
        model, mesh = placement.program.graph.config, placement.mesh
        print(
            f"{config.topology}: {len(topology.devices)} x {kind}, mesh data={mesh.shape['data']} x model={mesh.shape['model']}"
        )
        layout = sharding.explain(transformer.logical_axes(model), transformer.abstract_params(model), mesh)
        print(
            f"{model.parameters:,} parameters in {model.param_dtype}: {'; '.join(f'{k} {v}' for k, v in layout.items())}"
        )
        print(
            f"\nestimate for each chip, of {memory.readable(hardware.hbm)} HBM\n{memory.costs(model, config.sizes, mesh)}"
        )
        memory.require(model, config.sizes, hardware.hbm, mesh)
    except ValueError as error:
        settings.fail(str(error))
    try:
        found = analyse(placement, config.options, config.text)
    except jax.errors.JaxRuntimeError as error:
        print(f"error: the TPU compiler refuses the program:\n{error}", file=sys.stderr)
        return 1
    found["roofline"] = roofline(model, config.sizes, mesh, hardware, config.fill or config.sizes.slots)
    report(config, placement, kind, found)
    if config.output:
        Path(config.output).write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["arguments"] + found["temp"] <= hardware.hbm else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
