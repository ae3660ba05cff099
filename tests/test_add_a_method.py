"""docs/add_a_method.md as a reader follows it: the three files in a folder of one's own, the configuration run, the test passed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ("shortest.py", "shortest_demo.py", "test_shortest.py")


def test_a_method_is_three_files(tmp_path):
    text = (ROOT / "docs/add_a_method.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == len(FILES)
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, block in zip(FILES, blocks, strict=True):
        assert text.index(f"`{name}`") < text.index(block), "each file is named before it is shown"
        (folder / name).write_text(block)
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("    PYTHONPATH=.:FOLDER")]
    short = ["--problems-per-setting", "4", "--output", str(tmp_path / "results")]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"}
    for command, more in zip(commands, (short, ["-q"]), strict=True):
        arguments = [part.replace("FOLDER", str(folder)) for part in command[1:]]
        done = subprocess.run(
            [sys.executable, *arguments, *more], capture_output=True, text=True, timeout=900, env=environment, cwd=ROOT
        )
        assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "results/summary.json").read_text())["methods"]
    assert summary["shortest"]["accuracy"] > 0
    assert summary["shortest"]["generated_tokens"] < summary["self_consistency"]["generated_tokens"]
