"""Decodes the cases of `test_meshes.py` on meshes, in a process with as many devices as they need.

python tests/mesh_program.py OUTPUT '{"devices": 8, "meshes": [[8, 1]], "heads": [8, 4]}'
... '{..., "process": 0, "processes": 2, "port": 12345}'
"""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import forking  # noqa: E402
from apr_jax import sharding  # noqa: E402
from apr_jax.decode import Engine, Problem, Sizes  # noqa: E402
from apr_jax.model import transformer  # noqa: E402
from apr_jax.model.config import ModelConfig  # noqa: E402
from apr_jax.protocols import SpawnJoin  # noqa: E402
from apr_jax.tools import hlo  # noqa: E402

SEED, COUNT = 3, 24
WORDS = forking.Words()
PROTOCOL = SpawnJoin(**{name: getattr(WORDS, name) for name in ("spawn", "wait", "result", "join", "end", "go")})
SIZES = Sizes(
    problems=2, lanes=3, rows=4, feed_tiles=2, feed_chunk=4, feed_threshold=2, page_size=4, log_page_size=4, queue=4, outbox=3,
    threads=40, slots=1024, log=1024, prompt=6,
)  # fmt: skip


def model(heads: int, kv_heads: int) -> transformer.Model:
    config = ModelConfig(
        vocabulary=16, width=32, layers=2, heads=heads, kv_heads=kv_heads, head_dim=8, ffn=48, qk_norm=True, tied=False,
        dtype="float64", param_dtype="float64",
    )  # fmt: skip
    return forking.biased_model(config, 0, WORDS.bias(), 1.5)


def problems() -> list[Problem]:
    """More than the queues of two shards hold, so that they are filled twice; of very different lengths."""
    rng = np.random.default_rng(7)
    return [Problem(**dataclasses.asdict(forking.random_case(rng, number))) for number in range(COUNT)]


def decoded(heads: tuple[int, int], shape: tuple[int, int]) -> dict:
    """What one mesh makes of the problems, and what the compiled program holds."""
    mesh = sharding.make_mesh(*shape)
    engine = Engine(model(*heads), PROTOCOL, SIZES, mesh)
    program, seen = engine.compile(), []
    transcripts = list(engine.decode(problems(), SEED, slice_steps=40, watch=seen.append))
    pool = engine.create(SEED).pool[0][0]
    return {
        "transcripts": transcripts,
        "progress": seen[-1],
        "traces": engine.traces,
        "collectives": hlo.collectives(program.as_text()),
        "memory": (program.memory_analysis().alias_size_in_bytes, program.memory_analysis().temp_size_in_bytes),
        "pool": pool.sharding.shard_shape(pool.shape),
    }


def main(output: str, options: dict) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", options["devices"])
    if "process" in options:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        address = f"localhost:{options['port']}"
        jax.distributed.initialize(address, num_processes=options["processes"], process_id=options["process"])
    found = {tuple(shape): decoded(tuple(options["heads"]), tuple(shape)) for shape in options["meshes"]}
    Path(output).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
