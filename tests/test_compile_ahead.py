"""Decoding, training and scoring under the compilers of TPUs and GPUs, without either."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apr_jax.model.config import PRESETS
from apr_jax.tools import hardware, hlo
from apr_jax.tools.ahead import CompileConfig
from experiments import compile_ahead

LAYERS = 2
# A large pool and short logs: TPUs pad the logs' last axis, of a few numbers, to 128 while the loop runs.
SIZES = ["--sizes.slots", "32768", "--sizes.log", "1024"]
WORKSPACE_BYTES = 40e6  # scores, logits and FFN of one step, and the padded logs
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed: pip install -r requirements-tpu.txt (Linux on x86-64)",
)


needs_cuda = pytest.mark.skipif(
    not hardware.has_cuda_plugin(), reason='the CUDA plugin is not installed: pip install "jax[cuda12]"'
)
TINY = ["--model", "tiny", "--model.layers", "1", "--data", "8", "--rows.length", "64", "--rows.threads", "4"]


def compiled(output: Path, arguments: list[str]) -> tuple[dict, str]:
    """What the program finds and tells, in a process of its own: this one is set to 64 bits."""
    command = [sys.executable, "-m", "experiments.compile_ahead", *arguments, "--output", str(output)]
    # Without the tests' own flags: the TPU compiler knows some of them only, and ends the process.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(output.read_text()), done.stdout


def check_step(program: str, found: dict, told: str) -> None:
    """The bytes of one of eight devices, against a count of numbers by hand."""
    numbers = dataclasses.replace(PRESETS["tiny"], layers=1).parameters
    row = 64 * 7 * 4 + 4 * 4  # seven arrays of 64 entries in 32 bits, and who sees whom
    part = (
        {"full": 3 * 4, "gradient": 4, "score": 4}[program] * numbers / 8
    )  # with both moments where there is an optimiser
    # Small arrays are padded or on every device.
    assert part + row <= found["arguments"] + 1000 < 1.3 * (part + row) + 20_000
    if program == "full":
        assert found["aliased"] >= 0.95 * part  # the state is donated
    else:
        assert found["aliased"] == 0
    sums = found["arguments"] + found["output"] + found["temporary"] - found["aliased"]
    assert found["total"] == sums
    kinds = found["collectives"]
    assert kinds["all-gather"]["count"] > 0 and kinds["all-gather"]["bytes"] >= 4 * 100
    assert ("reduce-scatter" in kinds or "all-reduce" in kinds) or program == "score"  # gradients are summed
    assert ": fits" in told and "collectives in the program" in told


@needs_libtpu
@pytest.mark.parametrize("program", ["full", "gradient", "score"])
def test_a_step_compiles_for_v5e(program, tmp_path):
    check_step(program, *compiled(tmp_path / "found.json", ["--program", program, "--topology", "v5e:2x4", *TINY]))


@needs_libtpu
def test_adapters_leave_the_base_alone(tmp_path):
    found, _ = compiled(tmp_path / "found.json", ["--program", "lora", "--topology", "v5e:2x4", *TINY])
    base = 2 * dataclasses.replace(PRESETS["tiny"], layers=1).parameters / 8
    # Only adapters and their moments are donated; the base and a row are not, and the base is in bfloat16.
    assert found["aliased"] > 0
    assert base < found["arguments"] - found["aliased"] < 1.5 * base


@needs_cuda
def test_a_step_compiles_for_h100(tmp_path):
    check_step("full", *compiled(tmp_path / "found.json", ["--program", "full", "--topology", "h100:8", *TINY]))


def test_the_bytes_of_a_shape_are_counted():
    sizes = {"bf16[8,128]": 2048, "f32[3]": 12, "pred[5]": 5, "s4[6]": 3, "f32[]": 4, "f8e4m3fn[7]": 7}
    assert {shape: hlo.nbytes(shape) for shape in sizes} == sizes


@needs_libtpu
@pytest.mark.parametrize("int8", [False, True])
def test_a_reduced_depth_compiles_in_place_for_v5e(int8, tmp_path):
    output = tmp_path / "found.json"
    arguments = ["--topology", "v5e:2x4", "--model", "qwen3_8b", "--model.layers", str(LAYERS), *SIZES]
    arguments += ["--model.int8-weights", str(int8), "--sizes.int8-pool", str(int8)]
    found, told = compiled(output, arguments)
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
        assert text in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:3x7"], "names look like v5e:2x4"),
        (["--data", "3"], "data = 3: must divide the 8 chips of v5e:2x4"),
        (["--model", "gpt"], "allowed are tiny, small, apr_228m"),
        (["--sizes.problems", "256"], "what fits: sizes.problems = "),
        (
            ["--program", "full", "--data", "8", "--rows.count", "12"],
            "rows.count is 12; it must be a multiple of data = 8",
        ),
        (["--options", "xla_dump"], "name=value is needed"),
        (["--model.ffn", "12289"], "axis 'ffn' of size 12289 cannot be cut over model=8"),
    ],
)
@needs_libtpu
def test_what_cannot_be_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        compile_ahead.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("topology", "data"), [("v5e:4x4", 2), ("v5e:4x4", 1), ("v6e:4x4", 8), ("v5p:2x2x1", 2)])
@needs_libtpu
def test_meshes_may_cut_an_axis_of_the_chips(topology, data):
    config = CompileConfig(topology=topology, data=data, model=PRESETS["tiny"])
    chips = hardware.describe(topology)
    mesh = compile_ahead.lay_out(config, chips).mesh
    assert dict(mesh.shape) == {"data": data, "model": len(chips.devices) // data}
    assert len(set(mesh.devices.flat)) == len(chips.devices)


def test_libtpu_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [])  # nothing can be found
    monkeypatch.delitem(sys.modules, "libtpu", raising=False)
    with pytest.raises(ValueError, match=r"libtpu is not installed.*requirements-tpu.txt"):
        hardware.describe("v5e:2x4")


@pytest.mark.skipif(hardware.has_cuda_plugin(), reason="the CUDA plugin is installed")
def test_a_plugin_that_is_missing_is_named():
    with pytest.raises(ValueError, match="the CUDA plugin is not installed"):
        hardware.describe("h100:8")


def test_chips_without_figures_are_refused():
    assert hardware.chip("TPU v5 lite").hbm == 16 * 2**30
    with pytest.raises(ValueError, match="no figures for the device 'TPU v1'"):
        hardware.chip("TPU v1")
