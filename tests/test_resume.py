"""An evaluation that Ctrl-C ended, and the same command again: what was finished is kept and the rest is decoded."""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import language_folder
from apr_jax import record
from apr_jax.evaluate import outcomes
from experiments import evaluate

QUESTIONS = 5
SECOND = str(3 * QUESTIONS + 1)  # all prompts are made for both rollouts before any is decoded, then for each
# A task that interrupts its own process as the second method begins.
CONFIG = """
import dataclasses, os, signal
from apr_jax.decode import Sizes
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Likeliest, Majority
from apr_jax.methods import Samples, Sampling, Sequential
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.evaluate.config import EvaluateConfig

FOLDER, CALLS = {folder!r}, []
SIZES = dict(problems=1, prompt=64, slots=512, log=512, queue=8, outbox=4, feed_tiles=2, feed_chunk=16, attention_block=256)
ONE = RolloutConfig(
    Sequential(end=""), FOLDER + "/model", Sampling(max_tokens=8), sizes=Sizes(lanes=1, rows=1, threads=1, **SIZES)
)
MANY = RolloutConfig(
    Samples(3, end="<|im_end|>"), FOLDER + "/model", Sampling(temperature=1.0, max_tokens=96),
    sizes=Sizes(lanes=3, rows=3, threads=4, **SIZES),
)

@dataclasses.dataclass(frozen=True)
class Stopping(Mathematics):
    stop_at: int = dataclasses.field(default=0, metadata={{"free": True}})

    def prompt(self, question, words):
        CALLS.append(question)
        if len(CALLS) == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().prompt(question, words)

def config():
    return EvaluateConfig(
        methods={{
            "sequential": MethodConfig(ONE),
            "self_consistency": MethodConfig(MANY, Majority()),
            "best_of_n": MethodConfig(MANY, Likeliest()),
        }},
        task=Stopping(problems_file=FOLDER + "/questions.jsonl"),
        tokenizer=FOLDER + "/words",
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, compiled_once):
    """A random model, questions, an evaluation that was never ended, and one that was, as a user starts and ends it."""
    folder = tmp_path_factory.mktemp("resume")
    language_folder.write(folder, CONFIG, questions(7))
    assert run(folder, "whole")[0] == 0
    command = [sys.executable, "-m", "experiments.evaluate", *arguments(folder, "ended", "--stop-at", SECOND)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert ended.returncode == 130, ended.stderr
    assert re.search(r"interrupted: [1-4] of 5 questions are finished; --resume True", ended.stderr)
    return folder


def questions(factor):
    return [{"question": f"What is {i} * {factor}?", "answer": factor * i} for i in range(QUESTIONS)]


def arguments(folder, output, *options):
    return ["--config", str(folder / "config.py"), "--output", str(folder / output), *options]


def run(folder, output, *options):
    """The program in this process: its exit code, and what it says of errors."""
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests in the background of a script ignore Ctrl-C
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            return evaluate.main(arguments(folder, output, *options)), errors.getvalue()
        finally:
            signal.signal(signal.SIGINT, before)


def test_what_is_finished_is_written_and_the_rest_is_decoded(folder):
    summary = outcomes.read_summary(folder / "ended" / "summary.json")
    assert list(summary["methods"]) == ["sequential"]
    kept = {t.problem: t for t, _ in record.read(folder / "ended" / "rollouts" / "self_consistency.jsonl")}
    assert 0 < len(kept) < QUESTIONS

    code, errors = run(folder, "ended", "--resume", "True")
    assert code == 0, errors
    found = {name: outcomes.read_summary(folder / name / "summary.json")["methods"] for name in ("ended", "whole")}
    for method in ("sequential", "self_consistency"):
        pairs = [record.read(folder / name / f"transcripts_{method}.jsonl") for name in ("ended", "whole")]
        for (resumed, line), (whole, right) in zip(*pairs, strict=True):
            np.testing.assert_array_equal(resumed.log.token, whole.log.token)
            assert line == right
        for fact in ("accuracy", "generated_tokens", "critical_path", "stop_reasons"):
            assert found["ended"][method][fact] == found["whole"][method][fact]
    note = json.loads((folder / "ended" / "rollouts" / "self_consistency.json").read_text())
    assert note["progress"]["problems"] == note["progress"]["finished"] == QUESTIONS

    # Another rule for the same samples: nothing is decoded, so no time is added.
    code, errors = run(folder, "ended", "--resume", "True", "--only", "best_of_n")
    assert code == 0, errors
    last = outcomes.read_summary(folder / "ended" / "summary.json")["methods"]["best_of_n"]
    assert last["wall_s"] == found["ended"]["self_consistency"]["wall_s"]


@pytest.mark.parametrize("change", ["an option", "the questions"])
def test_what_belongs_to_another_evaluation_is_refused(folder, change, capsys):
    options, message = ["--resume", "True"], r"resume: question 1 is not the one that .*sequential\.jsonl has"
    if change == "an option":
        options += ["--methods.sequential.rollout.sampling.max-tokens", "9"]
        message = (
            r"resume: .*sequential\.json was made with another configuration \(rollout\.sampling\.max_tokens: .*8.*9"
        )
    before = (folder / "whole" / "settings.json").read_text()
    language_folder.write_questions(folder, questions(7 if change == "an option" else 8))
    try:
        with pytest.raises(SystemExit) as stopped:
            evaluate.main(arguments(folder, "whole", *options))
    finally:
        language_folder.write_questions(folder, questions(7))
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert (folder / "whole" / "settings.json").read_text() == before


def test_without_resume_nothing_old_is_kept(folder):
    """What an earlier run left is not taken for what this one decodes, even if this one is ended."""
    code, errors = run(folder, "ended", "--stop-at", SECOND)
    assert code == 130, errors
    assert 0 < len(list(record.read(folder / "ended" / "rollouts" / "self_consistency.jsonl"))) < QUESTIONS
