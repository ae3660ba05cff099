"""The programs a user starts, with the checkpoints that ship, as a user starts them."""

import json
import platform
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import processor
from apr_jax import record
from apr_jax.evaluate import metrics, outcomes
from apr_jax.evaluate.machine import Machine
from apr_jax.tasks.countdown import compact, verify
from apr_jax.tasks.countdown import problems as countdown
from experiments import evaluate, solve

LINES = [
    '{"nums": [3, 7, 12], "target": 33}',
    '{"nums": [22, 26, 31, 53], "target": 27}',
    "",
    '{"nums": [1, 2, 3], "target": 10}',
]


def start(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=540)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """An evaluation of APR on a file of problems, in a process of its own."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "problems.jsonl").write_text("\n".join(LINES))
    arguments = ("--problems-file", str(folder / "problems.jsonl"), "--only", "apr", "--output", str(folder / "out"))
    arguments += ("--methods.apr.rollout.sampling.max-tokens", "500", "--makespan", "1", "2", "--shown", "1")
    done = start("experiments.evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


def test_evaluate_leaves_what_it_says(results):
    folder, printed = results
    read = outcomes.read_summary(folder / "summary.json")
    assert read["problems"] == 3 and list(read["methods"]) == ["apr"]
    entry = read["methods"]["apr"]
    assert entry["traces"] == 1
    assert sum(entry["stop_reasons"].values()) == 3
    assert f"{entry['accuracy']:.1%}".rstrip("%")[:2] in printed
    config = json.loads((folder / "settings.json").read_text())
    assert config["methods"]["apr"]["rollout"]["sampling"]["max_tokens"] == 500
    assert "max_tokens" in printed
    for name in ("accuracy_critical_path.png", "accuracy_peak_context.png", "report.md"):
        assert (folder / name).stat().st_size > 0


def test_what_ran_is_told(results):
    """In the summary, beside the rollout, at the foot of the table, in the report and on the page."""
    folder, printed = results
    (found,) = outcomes.read_summary(folder / "summary.json")["methods"]["apr"]["machines"]
    ran = Machine.of_entry(found)
    assert (ran.python, ran.jax, ran.device) == (platform.python_version(), jax.__version__, "cpu")
    assert ran.processor == processor.name() and ran.attention in (*processor.paths(), "XLA") and ran.products == "XLA"
    assert json.loads((folder / "rollouts/apr.json").read_text())["machines"] == [found]
    assert str(ran) in (folder / "report.md").read_text() and str(ran) in (folder / "timeline.html").read_text()
    assert str(ran) in " ".join(printed.split())


def test_the_page_has_a_problem_that_forked_and_opens_on_it(results):
    """Of the questions, `--shown 1` is the first, on which the model does not fork."""
    page = (results[0] / "timeline.html").read_text()
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page)[1])
    assert [(run["number"], run["forked"]) for run in data["runs"]] == [(0, False), (1, True)]
    assert data["open"] == 1


def test_transcripts_hold_the_numbers_of_the_summary(results):
    """Counts recomputed from the files alone, the critical path from fork and join rather than from the recorded depths."""
    folder, _ = results
    pairs = list(record.read(folder / "transcripts_apr.jsonl"))
    entry = outcomes.read_summary(folder / "summary.json")["methods"]["apr"]
    logs = [t for t, _ in pairs]
    assert np.mean([metrics.recomputed_critical_path(t) for t in logs]) == pytest.approx(entry["critical_path"])
    assert np.mean([t.log.sampled.sum() for t in logs]) == pytest.approx(entry["generated_tokens"])
    spans = np.mean([metrics.makespans(t, (1, 2)) for t in logs], axis=0)
    assert [entry["makespan_1"], entry["makespan_2"]] == pytest.approx(spans) and spans[0] == entry["generated_tokens"]
    right = 0
    for _, line in pairs:
        operations = compact.parse_answer(line["threads"][0]["text"])
        problem = countdown.Problem(tuple(line["nums"]), line["target"])
        solved = operations is not None and verify.check_solution(problem, operations)
        assert solved == line["correct"]
        right += solved
    assert right / 3 == pytest.approx(entry["accuracy"])


def test_solve_shows_threads_and_checks():
    done = start("experiments.solve", "3", "7", "12", "--target", "33")
    assert "root" in done.stdout, done.stderr
    assert ("checked" in done.stdout) == (done.returncode == 0)
    assert "critical path" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["22", "26", "31", "53", "--target", "270"], "target: 270 is out of range, allowed are 10..100"),
        (["22", "26", "31", "530", "--target", "27"], "nums: 530 is out of range, allowed are 1..99"),
        (["22", "26", "--target", "27"], "2 numbers [22, 26]; 3 or 4 are needed"),
        (["22", "26", "31", "53"], "--target"),
        (["22", "26", "31", "53", "--target", "27", "--method", "beam"], "allowed are sequential"),
        (["--problems-file", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_solve_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        solve.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_bad_line_is_named_and_nothing_is_evaluated(tmp_path, capsys):
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join([*LINES, '{"nums": [1, 2, "3"], "target": 10}']))
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--problems-file", str(file), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert "problems.jsonl:5: nums" in capsys.readouterr().err
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_misspelt_option_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--problems-per-seting", "3"])
    assert stopped.value.code == 2
    assert "problems-per-setting" in capsys.readouterr().err
