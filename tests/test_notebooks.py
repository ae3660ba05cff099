"""The notebooks: short, stored without outputs, and executed as they stand; their first cell against what Colab has."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONSTRAINTS = ROOT / "tests/colab-constraints.txt"
SECONDS = 180  # of processor time, so that it is less on two cores, and the same beside other work
SMOLLM2 = ROOT / "work/smollm2.gguf"
# What a notebook shows, cell by cell, as far as it does not depend on how threads happen to be drawn.
SHOWN = {
    "quickstart": ["jax", "thread 0", "<iframe srcdoc=", "APR (spawn and join)"],
    "your_own_model": ["jax", "Smollm2", "sequential answers", "self_consistency answers", "shared_message answers"],
    "a_method_in_one_cell": ["jax", "patience", "<iframe srcdoc="],
    "one_problem_twelve_ways": ["jax", "early vote @4", "<iframe srcdoc="],
    "imitation_to_reinforcement": [
        "jax",
        "finished; parameters are in work/sft_three",
        "finished; parameters are in work/rl_three",
    ],
}
# Numbers for which the tests have no time, and those with which they execute the notebook.
SMALLER = {"imitation_to_reinforcement": ("UPDATES, STEPS = 300, 24", "UPDATES, STEPS = 10, 2")}

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def clone(folder: Path) -> Path:
    """What a notebook finds in a clone, in a folder where it may write; returns the folder in which it is opened."""
    (folder / "notebooks").mkdir()
    for name in ("apr_jax", "configs", "experiments"):
        (folder / name).symlink_to(ROOT / name)
    return folder / "notebooks"


def test_there_are_five():
    assert [path.stem for path in NOTEBOOKS] == sorted(SHOWN)


@by_name
def test_a_notebook_is_short_and_holds_no_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    lines = [line for source in code(notebook) for line in source.splitlines() if line.strip()]
    assert len(lines) < 60
    for cell in notebook.cells:
        assert cell.metadata == {} and not cell.get("outputs") and cell.get("execution_count") is None
    assert set(notebook.metadata) == {"kernelspec"}


@by_name
def test_a_notebook_begins_with_its_badge_and_the_installation(path):
    notebook = read(path)
    badge, install = (cell.source for cell in notebook.cells[:2])
    assert badge.startswith("[![Open in Colab](") and f"/blob/main/notebooks/{path.name})" in badge.splitlines()[0]
    assert install == code(read(NOTEBOOKS[0]))[0], "the first cell of all notebooks is the same"


@by_name
def test_a_notebook_runs_as_it_stands(path, tmp_path):
    if path.stem == "your_own_model":
        if not SMOLLM2.is_file():
            pytest.skip("there is no work/smollm2.gguf: python -m experiments.fetch_smollm2")
        (tmp_path / "work").symlink_to(SMOLLM2.parent)
    notebook = smaller(read(path), *SMALLER.get(path.stem, ()))
    place = {"metadata": {"path": str(clone(tmp_path))}}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    nbclient.NotebookClient(notebook, timeout=1500, resources=place).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
    shown = [
        text for cell in notebook.cells if cell.cell_type == "code" if (text := "\n".join(map(text_of, cell.outputs)))
    ]
    assert len(shown) == len(SHOWN[path.stem])
    for text, part in zip(shown, SHOWN[path.stem], strict=True):
        assert part in text and "Traceback" not in text and "Warning" not in text


def smaller(notebook: nbformat.NotebookNode, *numbers: str) -> nbformat.NotebookNode:
    """The notebook with a line of it replaced."""
    if numbers:
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and numbers[0] in cell.source)
        cell.source = cell.source.replace(*numbers)
    return notebook


def text_of(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return output.text
    return output.data.get("text/html", "") + re.sub(r"\x1b\[[\d;]*m", "", output.data["text/plain"])


# ---- the first cell


def first_cell(devices: Path) -> str:
    """It looks for devices in this folder instead of /dev, and installs this repository."""
    source = code(read(NOTEBOOKS[0]))[0]
    assert '"/dev/' in source and "git+URL-of-this-repository" in source
    return source.replace('"/dev/', f'"{devices}/').replace(
        "git+URL-of-this-repository", str(devices.parent / "package")
    )


@pytest.mark.parametrize(("device", "extra"), [("nvidia0", "cuda12"), ("accel0", "tpu"), ("vfio/0", "tpu")])
def test_an_accelerator_that_is_not_used_is_an_error(device, extra, tmp_path):
    opened, devices = clone(tmp_path), tmp_path / "dev"
    (devices / device).parent.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    # Whatever this machine has: jax sees the CPU alone, as where the driver does not fit.
    blind = environment | {"CUDA_VISIBLE_DEVICES": "", "TPU_SKIP_MDS_QUERY": "1"}
    run = lambda environment: subprocess.run(
        [sys.executable, "-c", first_cell(devices)], cwd=opened, env=environment, capture_output=True, text=True
    )
    assert run(blind).returncode == 0, "no device, no error"
    (devices / device).touch()
    refused = run(blind)
    assert refused.returncode == 1 and f"a device for jax[{extra}], but jax" in refused.stderr
    assert run(blind | {"JAX_PLATFORMS": "cpu"}).returncode == 0, "meant to be left alone"


def python(version: str) -> str:
    """An interpreter of this version; skips the test if there is none."""
    others = map(str, sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python3")))
    for command in (f"python{version}", *others):
        try:
            found = subprocess.run([command, "-c", "import sys; print(sys.version)"], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if found.stdout.startswith(version):
            return command
    pytest.skip(f"there is no Python {version}")


@pytest.mark.parametrize(("version", "device"), [("3.12", None), ("3.13", "accel0")])
def test_colab_keeps_its_jax(version, device, tmp_path, request):
    """Only what Colab lacks is installed, and flax; pip is asked what it would do, in an environment with Colab's jax."""
    if not request.config.getoption("--complete"):
        pytest.skip("it asks the package index: make complete")
    subprocess.run([python(version), "-m", "venv", tmp_path / "venv"], check=True)
    pip = tmp_path / "venv/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check"
    subprocess.run([*pip, "install", "--no-deps", "jax==0.7.2", "flax==0.11.2"], check=True)
    # The cell itself must keep jax: it is not among the constraints.
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith(("#", "jax"))]
    (tmp_path / "constraints.txt").write_text("\n".join(lines))
    (tmp_path / "dev").mkdir()
    if device:
        (tmp_path / "dev" / device).touch()
    (tmp_path / "package/apr_jax").mkdir(parents=True)
    for name in ("pyproject.toml", "requirements.txt", "README.md", "apr_jax/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / "package" / name)
    cell = first_cell(tmp_path / "dev")
    assert '"install", ' in cell
    cell = cell.replace('"install", ', f'"install", "--dry-run", "--report", "{tmp_path}/report.json", ')
    done = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", cell],
        cwd=tmp_path,
        env=os.environ | {"PIP_CONSTRAINT": str(tmp_path / "constraints.txt")},
        capture_output=True,
        text=True,
    )
    assert "import jax" in done.stderr, done.stderr  # pip was content; then jax is missed, for nothing was installed
    report = json.loads((tmp_path / "report.json").read_text())
    found = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in report["install"]}
    assert "apr_jax" in found and "jax" not in found
    assert (found["jaxlib"], found["flax"]) == ("0.7.2", "0.12.0")
    assert ("libtpu" in found) == bool(device)
    assert not {"pytest", "ruff", "ipykernel"} & set(found), "Colab has its own kernel"
