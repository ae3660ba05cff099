"""Runs that are killed where it hurts, and go on, end as those that were left alone. `make kill` draws the points."""

import collections
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from apr_jax import record
from kill_anywhere import Point, Run, differences

pytestmark = pytest.mark.usefixtures("compiled_once")
POINTS = {
    "sft": (
        Point("os.rename run/checkpoints/4.", 1),  # while a checkpoint is being written
        Point("open run/exported.json", 2),  # the parameters are exported, which is not noted yet
    ),
    "rl": (
        Point(part="rollout", seconds=0.005),  # in the first step: the evaluation before it is made again
        Point("os.mkdir run/checkpoints/4.", 1),  # the numbers of step 4 are written, its checkpoint is not
    ),
}


def compiled_once_each(told: str) -> None:
    """No program was compiled twice for the same shapes, as for arrays that only lie elsewhere; for other shapes the loop fails."""
    # jax 0.7 says it twice, once with the time, and a space before the word.
    one = r"(?:^|:)Compiling (jit\((?!broadcast_in_dim).*? with global shapes and types .*?)\. Argument mapping"
    found = collections.Counter(re.findall(one, told, re.MULTILINE))
    assert len(found) > 10 and not [program for program, count in found.items() if count > 1]


@pytest.mark.parametrize("loop", POINTS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(loop, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_LOG_COMPILES", "1")
    whole, killed = (Run(loop, tmp_path / name) for name in ("whole", "killed"))
    code, told, seen = whole.start()
    assert code == 0, told
    compiled_once_each(told)
    for point in POINTS[loop]:
        code, told, died = killed.start(point)
        assert code == -signal.SIGKILL, told
        assert point.text in died["last"] and point.part in died["last"]
    code, told, _ = killed.start()
    assert code == 0 and "resumed at step" in told, told
    compiled_once_each(told)
    expected = whole.result()
    assert differences(killed.result(), expected) == []
    assert {"export", "metrics.jsonl:3"} < expected.keys() and len(seen["operations"]) > 60
    if loop == "rl":
        assert {f"step_{number:06d}.jsonl" for number in (1, 2, 3, 4)} < expected.keys()
        what_was_drawn_again(whole.folder / "run")
        learnt_again(killed)
        assert "<h1>Samples of step 4" in (killed.folder / "run/pages/step_000004.html").read_text()


def learnt_again(run: Run) -> None:
    """A kept step and the state before it give the loss and the gradient that were written, bit for bit."""
    command = [sys.executable, "-m", "experiments.replay_rl"]
    replay = lambda *given: subprocess.run(
        [*command, *given, "--config", run.folder / "config.py"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    done = replay("3")
    assert done.returncode == 0 and re.findall("^[a-z_]+", done.stdout, re.M) == ["loss", "gradient_norm"], done
    done = replay("4")
    assert done.returncode == 2 and "has checkpoints after 2, 4" in done.stderr


def what_was_drawn_again(folder: Path) -> None:
    """Of the two prompts of a step those stay whose two samples differ in the parity of their first tokens; others follow them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in lines if "draws" in line):
        kept = [found for found, _ in record.read(folder / f"rollouts/step_{line['step']:06d}.jsonl")]
        even = collections.defaultdict(set)
        for found in kept:
            even[found.problem].add(int(found.generated(0)[0]) % 2)
        assert all(parities == {0, 1} for parities in even.values())
        assert line["silent_groups"] == 0 and line["groups"] == len(even) <= 2
        assert line["draws"] == 3 or len(even) == 2
        assert 2 * line["draws"] >= line["prompts"] >= 2 + line["draws"] - 1
    assert max(line["draws"] for line in lines if "draws" in line) > 1


def test_numbers_that_are_not_finite_stop_a_run_and_its_samples_are_saved(tmp_path):
    run = Run("rl", tmp_path / "wild", "wild")
    code, told, _ = run.start()
    assert code == 1 and "Traceback" not in told
    said = told.splitlines()[-1]
    assert (
        said.startswith("error: ") and "in another --workdir with a lower --optimizer.learning-rate (now 1e+30)" in said
    )
    saved = [found for found, _ in record.read(run.folder / "run/diverged.jsonl")]
    assert len(saved) == 4 and all(len(found.log) for found in saved)
    assert not (run.folder / "run/model.safetensors").exists()


def test_a_difference_is_seen():
    one = {"metrics.jsonl:1": {"loss": float("nan")}, "export": b"a", "state.step": np.zeros(2)}
    assert differences(dict(one), one) == []
    assert differences(one | {"export": b"b"}, one) == ["export"]
    assert differences(one | {"state.step": -np.zeros(2)}, one) == ["state.step"]
    assert differences({}, one) == sorted(one)
