"""The decoding program under the TPU's compiler, without a TPU."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from apr_jax.model.config import PRESETS
from experiments import compile_tpu

LAYERS = 2
# A large pool and short logs: TPUs pad the logs' last axis, of a few numbers, to 128 while the loop runs.
SIZES = ["--sizes.slots", "32768", "--sizes.log", "1024"]
WORKSPACE_BYTES = 40e6  # scores, logits and FFN of one step, and the padded logs
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed: pip install -r requirements-tpu.txt (Linux on x86-64)",
)


@needs_libtpu
@pytest.mark.parametrize("int8", [False, True])
def test_a_reduced_depth_compiles_in_place_for_v5e(int8, tmp_path):
    """In a process of its own: this one is set to 64 bits."""
    output = tmp_path / "found.json"
    arguments = ["--topology", "v5e:2x4", "--model", "qwen3_8b", "--model.layers", str(LAYERS), *SIZES]
    arguments += ["--model.int8-weights", str(int8), "--sizes.int8-pool", str(int8)]
    command = [sys.executable, "-m", "experiments.compile_tpu", *arguments, "--output", str(output)]
    # Without the tests' own flags: the TPU compiler knows some of them only, and ends the process.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(output.read_text())
    assert found["alias"] >= found["state"] > found["pool"] > (1.3e8 if int8 else 2.5e8)
    assert found["pool"] < (1.4e8 if int8 else 2.8e8)
    # Tables and layers over 8 chips; int8 ones are nowhere held wide.
    assert found["arguments"] - found["state"] < (2.1e8 if int8 else 4.1e8)
    assert found["pool_copies"] == found["pool_copies_in_loops"] == 0
    assert found["temp"] < 0.05 * found["pool"] + WORKSPACE_BYTES
    assert found["collectives_over_data"] == 0
    assert set(found["collectives"]) == {"feed", "decode"}
    for counts in found["collectives"].values():
        kinds = [name.split()[0] for name, count in counts.items() for _ in range(count)]
        assert kinds.count("all-to-all") == 1 and "collective-permute" not in kinds
        assert (
            2 * LAYERS + 1 <= kinds.count("all-reduce") <= 2 * LAYERS + 4
        )  # small gathers of what was drawn become sums
    for text in ("v5e:2x4: 8 x TPU v5 lite", "kv_heads 8 over model=8", "largest P", "largest N", "tokens/s"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:3x7"], "names look like v5e:2x4"),
        (["--data", "3"], "data = 3: must divide the 8 chips of v5e:2x4"),
        (["--model", "gpt"], "allowed are tiny, small, apr_228m"),
        (["--sizes.problems", "256"], "what fits: sizes.problems = "),
        (["--options", "xla_dump"], "name=value is needed"),
        (["--model.ffn", "12289"], "axis 'ffn' of size 12289 cannot be cut over model=8"),
    ],
)
@needs_libtpu
def test_what_cannot_be_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        compile_tpu.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("topology", "data"), [("v5e:4x4", 2), ("v5e:4x4", 1), ("v6e:4x4", 8), ("v5p:2x2x1", 2)])
@needs_libtpu
def test_meshes_may_cut_an_axis_of_the_chips(topology, data):
    config = compile_tpu.CompileConfig(topology=topology, data=data, model=PRESETS["tiny"])
    chips = compile_tpu.describe(topology)
    mesh = compile_tpu.lay_out(config, chips).mesh
    assert dict(mesh.shape) == {"data": data, "model": len(chips.devices) // data}
    assert len(set(mesh.devices.flat)) == len(chips.devices)


def test_libtpu_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [])  # nothing can be found
    monkeypatch.delitem(sys.modules, "libtpu", raising=False)
    with pytest.raises(ValueError, match=r"libtpu is not installed.*requirements-tpu.txt"):
        compile_tpu.describe("v5e:2x4")


def test_chips_without_figures_are_refused():
    assert compile_tpu.chip("TPU v5 lite").hbm == 16 * 2**30
    with pytest.raises(ValueError, match="no figures for the device 'TPU v1'"):
        compile_tpu.chip("TPU v1")
