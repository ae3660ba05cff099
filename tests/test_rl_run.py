"""Reinforcement learning as a user starts it: it learns, and says what it did."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import small_runs
from apr_jax import record, settings
from apr_jax.model import io
from apr_jax.rl import run
from apr_jax.rl.estimators import NAMED
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
            held_out=dataclasses.replace(large.held_out, problems_per_setting=4),
            prompts=2, samples=4, micro_rows=8, steps=3, checkpoint_every=1, keep_every=2, tensorboard=False,
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
    return subprocess.run(command, capture_output=True, text=True)


def read(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_from_what_it_drew(small, tmp_path):
    done = start(small, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    before, after = io.load(SHIPPED / "apr.safetensors").params, io.load(tmp_path / "run/model.safetensors").params
    assert not np.array_equal(before["embed"], after["embed"])
    lines = read(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 3]
    assert [line["held_out/accuracy"] > 0.4 for line in lines if "held_out/accuracy" in line] == [True, True]
    assert all(line["gate/largest"] < 1e-4 for line in lines if "gate/largest" in line)
    assert list((tmp_path / "run/rollouts").glob("step_000002.jsonl"))
    for name in ("reward/correctness", "longest", "fork_entropy", "other_entropy", "kl", "mismatch", "host_share"):
        assert all(name in line for line in lines if line.get("skipped_updates") == 0)
    with pytest.raises(ValueError, match="holds a run with another configuration .*steps: was 3, is now 4"):
        run.run(dataclasses.replace(settings.load(small), steps=4, workdir=str(tmp_path / "run")))
    assert read(tmp_path / "run") == lines


def test_samples_of_a_question_are_one_problem(tmp_path):
    """The prompt is fed once for all of them, training gives their log-probabilities, and rewards see each as if it were alone."""
    each, sizes = (
        small_runs.rl(tmp_path / "each"),
        dataclasses.replace(small_runs.SIZES, threads=64, slots=512, log=512),
    )
    each = dataclasses.replace(each, estimator=NAMED["p_grpo"], samples=4, steps=1, evaluate_every=0)
    rollout = dataclasses.replace(each.rollout, sizes=sizes)
    answers = dataclasses.replace(each.groups, each="answer")
    together = dataclasses.replace(
        each, rollout=rollout, groups=answers, grouped=True, workdir=str(tmp_path / "together"), keep_every=1
    )
    assert run.run(together).traces == {"rollout": 1, "evaluation": 1, "score": 1, "gradient": 1, "apply": 1}
    (line,) = read(tmp_path / "together")
    assert (line["prompts"], line["samples"]) == (2, 8) and line["gate/largest"] < 1e-4
    kept = [transcript for transcript, _ in record.read(tmp_path / "together/rollouts/step_000001.jsonl")]
    assert [len({t.path[:1] for t in transcript.threads}) for transcript in kept] == [5, 5]
    fed = [int((transcript.log.thread == 0).sum()) for transcript in kept]
    assert all(0 < count < 16 for count in fed), "the prompt once, without its last token"
    with pytest.raises(ValueError, match="groups.each is 'transcript' and grouped is True"):
        dataclasses.replace(each, grouped=True)


def test_task_and_size_are_options(small):
    given = "--task.settings four three --task.problems-per-setting 8 --held-out.settings three --evaluate-every 5"
    config = settings.parse([*given.split(), "--held-out.problems-per-setting", "7"], small)
    assert (config.task.settings, config.task.problems_per_setting) == (("four", "three"), 8)
    assert (config.held_out.settings, config.held_out.problems_per_setting, config.held_out.split) == (
        ("three",),
        7,
        "val",
    )
    assert config.evaluate_every == 5 and config.task.split == "train"


def test_what_cannot_be_learnt_from_is_refused(small, tmp_path):
    config = dataclasses.replace(settings.load(small), workdir=str(tmp_path / "greedy"))
    greedy = dataclasses.replace(config.rollout, sampling=dataclasses.replace(config.rollout.sampling, temperature=0.0))
    with pytest.raises(ValueError, match="temperature"):
        run.run(dataclasses.replace(config, rollout=greedy))
    with pytest.raises(ValueError, match="micro_rows is 7; it must divide groups.rows = 24"):
        dataclasses.replace(config, micro_rows=7)
    with pytest.raises(ValueError, match="rewards is empty"):
        dataclasses.replace(config, rewards=())
