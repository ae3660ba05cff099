"""What the README shows runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks)], capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    assert "() END <s>27:22,26,31,53<go>" in done.stdout


def test_files_it_names_exist():
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:apr_jax|configs|experiments|tests|docs)/[\w/.]+)`", README):
        assert (root / name).exists(), name
    for name in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (root / name).exists(), name
