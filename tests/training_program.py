"""Training steps of `test_training_meshes.py` on meshes, in a process with as many devices as they need.

python tests/training_program.py OUTPUT '{"devices": 8, "steps": [["full", 8, 1]], "learn": [[4, 2]]}'
... '{..., "process": 0, "processes": 2, "port": 12345}'
"""

import dataclasses
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from apr_jax.model import io, transformer  # noqa: E402
from apr_jax.model.config import ModelConfig  # noqa: E402
from apr_jax.rl import update  # noqa: E402
from apr_jax.rl.batches import Batch  # noqa: E402
from apr_jax.rl.config import RlConfig  # noqa: E402
from apr_jax.rl.estimators import Labels  # noqa: E402
from apr_jax.rl.groups import GroupConfig  # noqa: E402
from apr_jax.tools import hlo  # noqa: E402
from apr_jax.train import step as steps  # noqa: E402
from apr_jax.train.checkpoints import Checkpoints  # noqa: E402
from apr_jax.train.config import SftConfig  # noqa: E402
from apr_jax.train.layout import Layout, MeshConfig  # noqa: E402
from apr_jax.train.lora import Lora  # noqa: E402
from apr_jax.train.optimizer import OptimizerConfig  # noqa: E402
from apr_jax.train.packing import Rows  # noqa: E402
from configs import rl_countdown  # noqa: E402

MODEL = ModelConfig(
    vocabulary=64, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128, qk_norm=True, tied=False
)
ROWS, LENGTH = 16, 24
CLASSES = np.arange(64) % 2
SMALL = dict(data=None, model=MODEL, rows_per_batch=ROWS, steps=4, chunk=16)
# The first moment is then the gradient itself.
PLAIN = OptimizerConfig(beta1=0.0, warm_up=0, clip=1e9)
CONFIGS = {
    "full": SftConfig(**SMALL, optimizer=PLAIN),
    "micro": SftConfig(**SMALL, optimizer=PLAIN, micro_rows=8, remat="nothing_saveable"),
    "lora": SftConfig(**SMALL, optimizer=PLAIN, start="given", lora=Lora(rank=4, tokens=(3, 5))),
    "bfloat16": SftConfig(**SMALL | {"model": dataclasses.replace(MODEL, dtype="bfloat16")}),
}


def rows() -> Rows:
    """Rows of three threads, of which the last sees the first; every row has other labels, the last one none."""
    rng = np.random.default_rng(5)
    shape = ROWS, LENGTH
    token = rng.integers(0, 64, shape).astype(np.int32)
    owner = np.broadcast_to(np.repeat(np.arange(3, dtype=np.int32), LENGTH // 3), shape)
    clock = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), shape)
    label = np.where(rng.random(shape) < np.linspace(0.9, 0, ROWS)[:, None], np.roll(token, -1, 1), -1).astype(np.int32)
    sees = np.broadcast_to(np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1]], bool), (ROWS, 3, 3))
    weight = (label >= 0) * rng.uniform(0.5, 2, shape).astype(np.float32)
    return Rows(token, clock, clock, owner, np.zeros_like(token), label, weight.astype(np.float32), sees)


def gathered(layout: Layout, tree: Any) -> Any:
    """Arrays of a mesh as NumPy arrays, on every process."""
    keys = lambda leaf: jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return jax.tree.map(np.asarray, layout.jit(lambda tree: jax.tree.map(keys, tree), layout.everywhere)(tree))


def trained(name: str, mesh: MeshConfig) -> dict:
    """A step of supervised training, and what the compiled step holds."""
    config = dataclasses.replace(CONFIGS[name], mesh=mesh)
    layout = steps.layout_of(config)
    state, base = steps.born(config, layout), None
    if config.lora:
        base = layout.put(transformer.init(MODEL, jax.random.key(7)).params, transformer.logical_axes(MODEL))
    before, batch = gathered(layout, state), layout.rows(rows())
    step = steps.step_program(config, layout, CLASSES, 2, np.linspace(0.5, 1.5, 64).astype(np.float32))
    lowered = step.lower(state, batch, base)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    state, output = compiled(state, batch, base)
    moment = state.optimizer[1][0].mu
    return {
        "before": io.flatten(before.params),
        "after": io.flatten(gathered(layout, state.params)),
        "gradient": io.flatten(gathered(layout, moment)),
        "output": gathered(layout, output),
        "parts": {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in io.flatten(moment).items()},
        "bytes": {"state": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes},
        "collectives": hlo.collectives(compiled.as_text()),
        # Of numbers: jax marks typed random keys itself.
        "annotated": any("sharding" in line and "xf32>" in line for line in lowered.as_text().splitlines()),
    }


def restored(folder: str, mesh: MeshConfig, other: MeshConfig) -> dict:
    """A state saved on one mesh and restored on another."""
    config = {each: dataclasses.replace(CONFIGS["full"], mesh=each) for each in (mesh, other)}
    layout = {each: steps.layout_of(config[each]) for each in config}
    state = steps.born(config[mesh], layout[mesh])
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait_until_finished()
        found = checkpoints.restore(steps.abstract_state(config[other], layout[other])).state
    wanted = steps.born(config[other], layout[other])
    places = lambda state: [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(state)]
    return {
        "saved": jax.tree.leaves(gathered(layout[mesh], state)),
        "restored": jax.tree.leaves(gathered(layout[other], found)),
        "places": (places(found), places(wanted)),
    }


def rl_config(mesh: MeshConfig) -> RlConfig:
    groups = GroupConfig(length=LENGTH, threads=3, rows=ROWS)
    return dataclasses.replace(
        rl_countdown.config(), groups=groups, micro_rows=8, optimizer=PLAIN, chunk=16, remat="dots_saveable", mesh=mesh
    )


def learned(mesh: MeshConfig) -> dict:
    """An update of reinforcement learning on two micro-batches."""
    config = rl_config(mesh)
    params = transformer.init(MODEL, jax.random.key(3)).params
    learner = update.Learner(config, transformer.graph_of(MODEL), (1, 2))
    state = update.born(config, learner.layout, params)
    given = rows()
    labelled = given.label >= 0
    advantage = np.where(labelled, np.linspace(-1, 1, ROWS, dtype=np.float32)[:, None], 0).astype(np.float32)
    ones, number = np.ones_like(given.weight), np.where(labelled, np.arange(ROWS)[:, None], -1).astype(np.int32)
    labels = Labels(given.weight, advantage, -4 * labelled.astype(np.float32), ones, np.zeros_like(given.token), number)
    batch = Batch(given, labels, 100.0, ROWS, None, None, ())
    old = learner.score(state.params, batch)
    state, sums, loss, norm = learner.update(state, batch, old)
    moment = state.optimizer[1][0].mu
    return {
        "scores": old,
        "loss": loss,
        "norm": norm,
        "sums": jax.tree.leaves(sums),
        "gradient": io.flatten(gathered(learner.layout, moment)),
        "parts": {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in io.flatten(moment).items()},
    }


def main(output: str, options: dict) -> None:
    jax.config.update("jax_num_cpu_devices", options["devices"])
    if "process" in options:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        address = f"localhost:{options['port']}"
        jax.distributed.initialize(address, num_processes=options["processes"], process_id=options["process"])
    found = {(name, *shape): trained(name, MeshConfig(*shape)) for name, *shape in options["steps"]}
    for shape in options.get("learn", []):
        found["learn", *shape] = learned(MeshConfig(*shape))
    if "folder" in options:
        found["restored"] = restored(options["folder"], MeshConfig(4, 2), MeshConfig(2, 4))
        found["alone"] = restored(options["folder"] + "_alone", MeshConfig(2, 4), MeshConfig())
    Path(output).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
