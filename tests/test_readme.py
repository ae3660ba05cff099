"""README and docs: short, true to the files, and what they show runs as it stands."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
PACKAGES = ("apr_jax", "experiments", "configs", "tests")


# What people set while they look for a fault of their own.
FLAGS = ("", "JAX_DEBUG_NANS=1", "JAX_DEFAULT_PRNG_IMPL=rbg", "JAX_NUMPY_RANK_PROMOTION=raise",
         "JAX_NUMPY_DTYPE_PROMOTION=strict", "JAX_ENABLE_X64=1")  # fmt: skip


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("flag", FLAGS)
def test_python_blocks_run(flag):
    """The README's; those of docs/add_a_method.md are files, which `test_add_a_method` runs as such."""
    assert [page.name for page in PAGES if python_blocks(page)] == ["README.md", "add_a_method.md"]
    (program,) = python_blocks(README)
    environment = os.environ | dict([flag.split("=")] if flag else [])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "() END <s>27:22,26,31,53<go>" in lines[0] and "26+1=27<end>" in lines[-1], "the same under every flag"


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_it_names_exist(page):
    text = page.read_text()
    for name in re.findall(r"`((?:apr_jax|benchmarks|configs|experiments|tests|docs)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([\w/.]+)\)", text):
        assert (page.parent / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_and_configurations_it_names_exist(page):
    text = page.read_text()
    for name in re.findall(r"python -m ((?:experiments|benchmarks|configs)[\w.]*)", text):
        assert importlib.util.find_spec(name), name
    for name in re.findall(r"(?:configs|tests)/\w+\.py|\.ci/\w+|requirements[\w-]*\.txt", text):
        assert (ROOT / name).exists(), name
    targets = re.findall(r"^(\w+)[ \w]*:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in re.findall(r"(?:^ {4}|`)make (\w+)", text, re.MULTILINE):
        assert name in targets, name


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/index.md").read_text()
    for page in PAGES[1:]:
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_documents_that_the_code_cites_can_be_opened():
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            text = file.read_text()
            assert file == Path(__file__) or "systems notes" not in text, file
            for name in re.findall(r"`?(docs/\w+\.(?:md|png))", text):
                assert (ROOT / name).exists(), f"{file}: {name}"
