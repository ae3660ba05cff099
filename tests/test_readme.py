"""What the README shows runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


# What people set while they look for a fault of their own.
FLAGS = ("", "JAX_DEBUG_NANS=1", "JAX_DEFAULT_PRNG_IMPL=rbg", "JAX_NUMPY_RANK_PROMOTION=raise",
         "JAX_NUMPY_DTYPE_PROMOTION=strict", "JAX_ENABLE_X64=1")  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS)
def test_python_blocks_run(flag):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    environment = os.environ | dict([flag.split("=")] if flag else [])
    command = [sys.executable, "-c", "\n".join(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "() END <s>27:22,26,31,53<go>" in lines[0] and "26+1=27<end>" in lines[-1], "the same under every flag"


def test_files_it_names_exist():
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:apr_jax|benchmarks|configs|experiments|tests|docs)/[\w/.]+)`", README):
        assert (root / name).exists(), name
    for name in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (root / name).exists(), name
