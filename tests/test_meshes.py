"""The decoding loop on meshes: what it gives is what the oracle gives, and nothing crosses `data`."""

import collections
import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import mesh_program
import oracle
import reference_model
from apr_jax import sharding
from apr_jax.decode import Engine, Transcript
from apr_jax.tools import hlo

PROGRAM = Path(__file__).parent / "mesh_program.py"
EIGHT = [(8, 1), (2, 4), (1, 8)]
HEADS = (8, 4)  # on model = 4 a kv head a device, on model = 8 a query head a device and all kv heads on each
SMOLLM2 = (9, 3)  # heads that no even mesh divides
LAYERS = 2


def start(folder: Path, options: dict, number: int = 0) -> tuple[subprocess.Popen, Path]:
    output = folder / f"{number}.pickle"
    command = [sys.executable, str(PROGRAM), str(output), json.dumps(options)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True), output


def finish(process: subprocess.Popen, output: Path) -> dict:
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors[-4000:]
    return pickle.loads(output.read_bytes())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Per mesh what one process of eight devices made."""
    return finish(*start(tmp_path_factory.mktemp("eight"), {"devices": 8, "meshes": EIGHT, "heads": HEADS}))


@pytest.fixture(scope="module")
def expected():
    return {heads: in_order(by_oracle(heads)) for heads in (HEADS, SMOLLM2)}


def by_oracle(heads: tuple[int, int]) -> list[Transcript]:
    model = mesh_program.model(*heads)
    forward = reference_model.transformer(model.params, model.config)
    problems, protocol = mesh_program.problems(), mesh_program.PROTOCOL
    return [oracle.run(forward, problem, protocol, mesh_program.SEED) for problem in problems]


def in_order(transcripts: list[Transcript]) -> list[Transcript]:
    assert len({t.problem for t in transcripts}) == len(transcripts) == mesh_program.COUNT
    return sorted(transcripts, key=lambda t: t.problem)


@pytest.mark.parametrize("shape", EIGHT)
def test_a_mesh_gives_what_the_oracle_gives(runs, expected, shape):
    for transcript, right in zip(in_order(runs[shape]["transcripts"]), expected[HEADS], strict=True):
        oracle.compare(transcript, right)
    assert runs[shape]["traces"] == 1


@pytest.mark.parametrize("shape", EIGHT)
def test_shards_take_steps_of_their_own(runs, shape):
    progress = runs[shape]["progress"]
    steps = progress.shard_steps
    assert progress.finished == mesh_program.COUNT and len(steps) == shape[0]
    assert sum(steps) == progress.feed_steps + progress.decode_steps
    assert progress.imbalance == pytest.approx(max(steps) / (sum(steps) / len(steps)))
    assert len(set(steps)) > 1 or shape[0] == 1


@pytest.mark.parametrize("shape", EIGHT)
def test_the_pool_is_cut_over_model_where_that_cuts_no_head(runs, shape):
    sizes, (_, kv_heads) = mesh_program.SIZES, HEADS
    cut = shape[1] if kv_heads % shape[1] == 0 else 1
    assert runs[shape]["pool"] == (1, sizes.problems, sizes.slots, kv_heads * 8 // cut)


@pytest.mark.parametrize("shape", EIGHT)
def test_no_collective_crosses_data(runs, shape):
    found = runs[shape]["collectives"]
    assert not [c for c in found if hlo.crosses(c, shape[1])]
    # XLA:CPU lets all devices wait for a permute, whatever its pairs: shards at different steps would never meet.
    assert not [c for c in found if c.kind == "collective-permute"]
    assert bool(found) == (shape[1] > 1)


@pytest.mark.parametrize("shape", [(2, 4), (1, 8)])
@pytest.mark.parametrize("step", ["feed", "decode"])
def test_a_step_holds_the_collectives_of_the_model_alone(runs, shape, step):
    """Two sums a layer (after attention and after the FFN), one for the embedding; rows are brought together to be drawn."""
    found = [c for c in runs[shape]["collectives"] if step in c.path.split("/")]
    in_sampling = [c for c in found if "sample" in c.path.split("/")]
    assert collections.Counter(c.kind for c in in_sampling) == {"all-to-all": 1, "all-gather": 3}
    assert collections.Counter(c.kind for c in found if c not in in_sampling) == {"all-reduce": 2 * LAYERS + 1}


@pytest.mark.parametrize("shape", EIGHT)
def test_nothing_is_exchanged_between_steps(runs, shape):
    found = runs[shape]["collectives"]
    assert not [c for c in found if not {"feed", "decode"} & set(c.path.split("/"))]


def test_two_processes_of_two_devices(tmp_path, expected):
    """Under jax.distributed, with gloo; each process gets the transcripts of its own shard. Heads are replicated."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    options = {"devices": 2, "meshes": [(2, 2)], "heads": SMOLLM2, "processes": 2, "port": port}
    started = [start(tmp_path, options | {"process": number}, number) for number in range(2)]
    found = [finish(*process)[2, 2] for process in started]
    assert all(part["transcripts"] for part in found)
    together = in_order([transcript for part in found for transcript in part["transcripts"]])
    for transcript, right in zip(together, expected[SMOLLM2], strict=True):
        oracle.compare(transcript, right)
    assert found[0]["progress"].shard_steps == found[1]["progress"].shard_steps
    assert not [c for part in found for c in part["collectives"] if hlo.crosses(c, 2)]


def test_a_mesh_of_explicit_axes_is_refused():
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with pytest.raises(ValueError, match="both Auto"):
        Engine(mesh_program.model(*HEADS), mesh_program.PROTOCOL, mesh_program.SIZES, mesh)


@pytest.mark.skipif(jax.device_count() < 3, reason="needs 3 devices (jax_num_cpu_devices)")
def test_a_mesh_that_does_not_divide_the_model_is_refused():
    with pytest.raises(
        ValueError, match=r"'vocabulary' of size 16 cannot be cut over model=3; .* model one of \[1, 2\]"
    ):
        Engine(mesh_program.model(*HEADS), mesh_program.PROTOCOL, mesh_program.SIZES, sharding.make_mesh(1, 3))
