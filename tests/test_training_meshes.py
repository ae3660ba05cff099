"""Training on meshes: losses, gradients and updates of one device, in parts; states move between meshes bit for bit."""

import dataclasses
import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apr_jax.train.layout import MeshConfig

PROGRAM = Path(__file__).parent / "training_program.py"
FULL = [(8, 1), (4, 2), (2, 4)]
OTHERS = [("micro", 4, 2), ("lora", 2, 4), ("bfloat16", 4, 2)]
CLOSE = dict(rtol=1e-5, atol=1e-6)


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
    """What one process of eight devices made, by case and mesh."""
    folder = tmp_path_factory.mktemp("training")
    alone = [(name, 1, 1) for name in ("full", "lora")]
    options = {
        "devices": 8,
        "steps": [*alone, *(("full", *shape) for shape in FULL), *OTHERS],
        "learn": [(1, 1), (4, 2)],
    }
    return finish(*start(folder, options | {"folder": str(folder / "checkpoints")}))


def compare(found: dict, wanted: dict, what: str) -> None:
    assert found[what].keys() == wanted[what].keys()
    for name, value in wanted[what].items():
        np.testing.assert_allclose(found[what][name], value, **CLOSE, err_msg=name)


@pytest.mark.parametrize(
    ("case", "alone"),
    [*((("full", *shape), "full") for shape in FULL), (("micro", 4, 2), "full"), (("lora", 2, 4), "lora")],
)
def test_a_mesh_gives_the_losses_and_gradients_of_one_device(runs, case, alone):
    found, wanted = runs[case], runs[alone, 1, 1]
    for name, value in wanted["before"].items():
        np.testing.assert_array_equal(found["before"][name], value)  # born sharded, from the same draws
    compare(found, wanted, "gradient")
    assert all(np.abs(value).max() > 1e-5 for name, value in wanted["gradient"].items() if not name.endswith(".a"))
    for field in dataclasses.fields(wanted["output"]["sums"]):
        sums = (getattr(run["output"]["sums"], field.name) for run in (found, wanted))
        np.testing.assert_allclose(*sums, **CLOSE, err_msg=field.name)
    np.testing.assert_allclose(found["output"]["gradient_norm"], wanted["output"]["gradient_norm"], rtol=1e-5)


def test_reinforcement_learning_on_a_mesh_gives_the_update_of_one_device(runs):
    found, wanted = runs["learn", 4, 2], runs["learn", 1, 1]
    np.testing.assert_allclose(found["scores"].logprob, wanted["scores"].logprob, **CLOSE)
    np.testing.assert_array_equal(found["scores"].forks, wanted["scores"].forks)
    compare(found, wanted, "gradient")
    np.testing.assert_allclose([found["loss"], found["norm"]], [wanted["loss"], wanted["norm"]], rtol=1e-5)
    assert wanted["norm"] > 1e-4
    assert found["parts"]["embed"] == (32, 16) and found["parts"]["layers.0.ffn.down"] == (64, 16)


@pytest.mark.parametrize("shape", FULL)
def test_each_device_keeps_its_part_of_parameters_and_moments(runs, shape):
    data, model = shape
    kv = model if 2 % model == 0 else 1  # two heads of keys and values are not cut into four
    assert runs["full", *shape]["parts"] == {
        "embed": (64 // model, 64 // data),
        "head": (64 // data, 64 // model),
        "norm.scale": (64 // data,),
    } | {
        f"layers.{i}.{name}": part
        for i in range(2)
        for name, part in {
            "attention.q": (64 // data, 4 // model, 16),
            "attention.k": (64 // data, 2 // kv, 16),
            "attention.v": (64 // data, 2 // kv, 16),
            "attention.out": (4 // model, 16, 64 // data),
            "attention.q_norm.scale": (16,),
            "attention.k_norm.scale": (16,),
            "attention_norm.scale": (64 // data,),
            "ffn_norm.scale": (64 // data,),
            "ffn.gate": (64 // data, 128 // model),
            "ffn.up": (64 // data, 128 // model),
            "ffn.down": (128 // model, 64 // data),
        }.items()
    }


@pytest.mark.parametrize("shape", FULL)
def test_the_compiler_counts_fewer_bytes_a_device(runs, shape):
    """An eighth of state and rows where nothing is replicated; temporary arrays at most as the part of the rows and one layer."""
    alone, found = runs["full", 1, 1]["bytes"], runs["full", *shape]["bytes"]
    assert found["state"] < alone["state"] * (0.13 if shape[0] == 8 else 0.3)
    assert found["temporary"] < alone["temporary"] * 0.6


def test_one_device_pays_nothing(runs):
    """Without a mesh the program has no shardings, and no collective."""
    assert not runs["full", 1, 1]["annotated"] and not runs["full", 1, 1]["collectives"]
    assert runs["full", 8, 1]["annotated"] and runs["full", 8, 1]["collectives"]


def test_master_weights_stay_wide_where_products_are_narrow(runs):
    found, wanted = runs["bfloat16", 4, 2], runs["full", 1, 1]
    assert {str(value.dtype) for value in (*found["after"].values(), *found["gradient"].values())} == {"float32"}
    norms = found["output"]["gradient_norm"], wanted["output"]["gradient_norm"]
    assert 0 < abs(norms[0] / norms[1] - 1) < 0.05


@pytest.mark.parametrize("case", ["restored", "alone"])
def test_a_state_goes_on_on_another_mesh_bit_for_bit(runs, case):
    found = runs[case]
    for a, b in zip(found["restored"], found["saved"], strict=True):
        np.testing.assert_array_equal(a, b)
    assert found["places"][0] == found["places"][1]


def test_two_processes_of_two_devices(tmp_path, runs):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    options = {"devices": 2, "steps": [("full", 2, 2)], "processes": 2, "port": port}
    started = [start(tmp_path, options | {"process": number}, number) for number in range(2)]
    for found in [finish(*process)["full", 2, 2] for process in started]:
        compare(found, runs["full", 1, 1], "gradient")
        assert found["parts"]["embed"] == (32, 32)


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="mesh.data is 0; it must be at least 1"):
        MeshConfig(data=0)
    with pytest.raises(ValueError, match="micro_rows is 6; it must be a multiple of mesh.data = 4"):
        MeshConfig(4).check_rows("micro_rows", 6)
