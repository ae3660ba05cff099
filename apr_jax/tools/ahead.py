"""Programs of decoding, training and scoring for devices that are not there: what is compiled, and training from shapes alone.

Axes: B rows of a batch, S entries of a row, U threads of a row.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax.decode import Sizes
from apr_jax.model import transformer
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.rl import update
from apr_jax.rl.estimators import NAMED, Labels
from apr_jax.tools import hlo
from apr_jax.train import lora, step
from apr_jax.train.config import SftConfig
from apr_jax.train.layout import Layout, Remat
from apr_jax.train.lora import Lora
from apr_jax.train.packing import Rows

CONTROL = (0, 1, 4)  # any ids: the program is the same


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """The batch of a step of training or scoring.

    Attributes:
        count: B, rows of a batch; of reinforcement learning, rows of a micro-batch.
        micro: rows of a micro-batch of supervised training, 0: all.
        length: S, entries of a row.
        threads: U, threads of a row.
        chunk: queries per block of attention, and entries per block of logits.
        remat: what each layer keeps for the backward pass, see `apr_jax.train.layout.Remat`.
        rank: of adapters.
    """

    count: int = 8
    micro: int = 0
    length: int = 16384
    threads: int = 64
    chunk: int = 512
    remat: Remat = "nothing_saveable"
    rank: int = 16


@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """Settings of the compilation.

    Attributes:
        program: "decode"; a supervised step of all parameters ("full") or of adapters ("lora"); of reinforcement learning, the
            log-probabilities of a micro-batch ("score") or its gradient ("gradient").
        topology: chips, as libtpu names them: generation, colon, how many along each axis; or `h100:8`, GPUs of one machine.
        model: the model; a preset, of which single fields may be changed (`--model.layers 4`).
        dtype: of activations and, but for trained parameters, which are float32, of parameters, whatever the preset says.
        data: shards of problems or of rows; each is spread over devices / data, the axis `model`.
        sizes: of each shard in decoding. Runs of 128 slots suit TPU.
        rows: the batch of a step of training or scoring.
        fill: slots in use that the step time is given for, 0: all N.
        options: options of the compiler, `name=value`, as many as wanted. A gather that runs out of scoped vmem (as that of the
            228 M model's small embedding does on v6e) wants `xla_tpu_scoped_vmem_limit_kib=65536`.
        output: a file for the numbers as JSON, none if empty.
        text: a file for the compiled program, none if empty.
    """

    program: Literal["decode", "full", "lora", "score", "gradient"] = "decode"
    topology: str = "v5e:2x4"
    model: ModelConfig = PRESETS["qwen3_8b"]
    dtype: str = "bfloat16"
    data: int = 1
    sizes: Sizes = Sizes(
        problems=8, lanes=8, rows=64, feed_tiles=4, feed_chunk=128, feed_threshold=8, threads=32, slots=8192, page_size=128,
        log=8192, log_page_size=128, queue=64, prompt=512, outbox=8, attention_block=512,
    )  # fmt: skip
    rows: RowsConfig = RowsConfig()
    fill: int = 0
    options: tuple[str, ...] = ()
    output: str = ""
    text: str = ""


def lower(config: CompileConfig, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The program of a step of training or scoring on a mesh, from shapes alone.

    Raises:
        ValueError: the batch or the model cannot be cut over the mesh.
    """
    if config.rows.count % mesh.shape["data"]:
        raise ValueError(f"rows.count is {config.rows.count}; it must be a multiple of data = {mesh.shape['data']}")
    model = dataclasses.replace(config.model, dtype=config.dtype, param_dtype="float32")
    dealt = jax.NamedSharding(mesh, jax.P("data"))
    rows = jax.tree.map(lambda leaf: leaf.update(sharding=dealt), _rows(config.rows))
    if config.program in ("full", "lora"):
        return _supervised(config, model, mesh, rows)
    return _reinforced(config, model, mesh, rows)


def _supervised(config: CompileConfig, model: ModelConfig, mesh: jax.sharding.Mesh, rows: Rows) -> jax.stages.Lowered:
    given, adapted = config.rows, config.program == "lora"
    if adapted:
        model = dataclasses.replace(model, param_dtype=config.dtype)
    run = SftConfig(
        data=None, model=model, rows_per_batch=given.count, micro_rows=given.micro, chunk=given.chunk, remat=given.remat,
        start="shapes" if adapted else "", lora=Lora(given.rank) if adapted else None,
    )  # fmt: skip
    layout = Layout(mesh, lora.axes(run.lora, model) if adapted else transformer.logical_axes(model))
    base = _placed(layout, model) if adapted else None
    classes = np.zeros(model.vocabulary, np.int32)
    return step.step_program(run, layout, classes, 1).lower(step.abstract_state(run, layout), rows, base)


def _reinforced(config: CompileConfig, model: ModelConfig, mesh: jax.sharding.Mesh, rows: Rows) -> jax.stages.Lowered:
    graph, layout, given = transformer.graph_of(model), Layout(mesh, transformer.logical_axes(model)), config.rows
    params = _placed(layout, model)
    if config.program == "score":
        function = update.scorer(graph, CONTROL, given.chunk)
        return layout.jit(function, layout.everywhere).lower(params, rows, rows.weight)
    function = update.gradient(graph, CONTROL, NAMED["p_grpo"], given.chunk, given.remat)
    number, count = rows.weight, rows.token
    labels = Labels(number, number, number, number, count, count)
    denominator = jax.ShapeDtypeStruct((), jnp.float32)
    places = layout.params(params), layout.everywhere
    return layout.jit(function, places).lower(params, rows, labels, number, None, denominator, None)


def _placed(layout: Layout, model: ModelConfig) -> transformer.Params:
    """Shapes and shardings of the model's parameters, cut as for training."""
    shapes = transformer.abstract_params(model)
    places = layout.params(shapes, transformer.logical_axes(model))
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, places)


def _rows(config: RowsConfig) -> Rows:
    shape = config.count, config.length
    number, weight = jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)
    sees = jax.ShapeDtypeStruct((config.count, config.threads, config.threads), jnp.bool_)
    return Rows(number, number, number, number, number, number, weight, sees)


def held(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a device by the compiler's figures: arguments, output, aliased (output in the place of arguments), temporary, and
    `total`, all of them with what is aliased counted once."""
    found = compiled.memory_analysis()
    sizes = {
        "arguments": found.argument_size_in_bytes,
        "output": found.output_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
    }
    total = sizes["arguments"] + sizes["output"] - sizes["aliased"] + sizes["temporary"]
    return {**sizes, "total": total}


def exchanged(text: str) -> dict[str, dict[str, int]]:
    """By kind of collective, in the compiled text: how many there are, how many of them in loops, and the bytes of their results
    on a device, each counted once however often its loop turns."""
    found: dict[str, dict[str, int]] = {}
    for each in hlo.collectives(text):
        entry = found.setdefault(each.kind, {"count": 0, "in_loops": 0, "bytes": 0})
        entry["count"] += 1
        entry["in_loops"] += "while/body" in each.path
        entry["bytes"] += hlo.nbytes(each.shape)
    return dict(sorted(found.items()))
