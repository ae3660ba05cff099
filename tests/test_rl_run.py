"""Reinforcement learning as a user starts it: it learns, says what it did, is killed, and goes on as if nothing had been."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from apr_jax import settings
from apr_jax.model import io
from apr_jax.rl import run
from apr_jax.tasks.countdown import SHIPPED

SMALL = """
    import dataclasses

    from apr_jax.rl.groups import GroupConfig
    from configs import rl_countdown


    def config():
        large = rl_countdown.config()
        sizes = dataclasses.replace(large.rollout.sizes, problems=8, lanes=4, rows=32)
        return dataclasses.replace(
            large,
            rollout=dataclasses.replace(large.rollout, sizes=sizes),
            groups=GroupConfig(length=640, threads=32, rows=24),
            held_out=None, prompts=2, samples=4, micro_rows=8, steps=3, checkpoint_every=1, keep_every=2, tensorboard=False,
        )
"""
pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("rl") / "small.py"
    path.write_text(textwrap.dedent(SMALL))
    return path


def start(small, folder):
    command = [sys.executable, "-m", "experiments.train_rl", "--config", str(small), "--workdir", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_killed_ends_as_one_that_was_not(small, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start(small, whole)
    told = first.communicate(timeout=540)[0]
    assert first.returncode == 0, told
    second = start(small, killed)
    while second.poll() is None and not (killed / "checkpoints/1").is_dir():
        time.sleep(0.05)
    os.kill(second.pid, signal.SIGKILL)
    second.communicate()
    assert not (killed / "model.safetensors").exists(), "it had ended before it was killed"
    third = start(small, killed)
    told = third.communicate(timeout=540)[0]
    assert third.returncode == 0 and "resumed at step" in told, told
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    same = ("reward", "accuracy", "loss", "gradient_norm", "gate/largest")
    pick = lambda folder: {line["step"]: [line.get(name) for name in same] for line in read(folder) if "reward" in line}
    assert pick(whole) == pick(killed) and len(pick(whole)) == 3
    before, after = io.load(SHIPPED / "apr.safetensors").params, io.load(whole / "model.safetensors").params
    assert not np.array_equal(before["embed"], after["embed"])
    assert all(line["gate/largest"] < 1e-4 for line in read(whole) if "gate/largest" in line)
    assert list((whole / "rollouts").glob("step_000002.jsonl"))


def test_what_cannot_be_learnt_from_is_refused(small, tmp_path):
    config = dataclasses.replace(settings.load(small), workdir=str(tmp_path / "greedy"))
    greedy = dataclasses.replace(config.rollout, sampling=dataclasses.replace(config.rollout.sampling, temperature=0.0))
    with pytest.raises(ValueError, match="temperature"):
        run.run(dataclasses.replace(config, rollout=greedy))
    with pytest.raises(ValueError, match="micro_rows is 7; it must divide groups.rows = 24"):
        dataclasses.replace(config, micro_rows=7)
    with pytest.raises(ValueError, match="rewards is empty"):
        dataclasses.replace(config, rewards=())
