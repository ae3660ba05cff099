"""Comparisons: what is chosen, what is found, and the program from the command line to its files."""

import dataclasses
import json
import math

import numpy as np
import pytest

from apr_jax import settings
from apr_jax.evaluate import comparison, report
from apr_jax.evaluate.comparison import CompareConfig
from apr_jax.evaluate.outcomes import Outcome
from apr_jax.evaluate.show import comparison as shown
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tokenizer import Tokenizer
from experiments import compare

FILE = "configs/compare_countdown.py"


@pytest.fixture(scope="module")
def config():
    return settings.load(FILE)


@pytest.fixture(scope="module")
def codec():
    return Tokenizer.from_file(SHIPPED / "compact.model")


def outcome(correct: bool, generated: int, threads: int = 1) -> Outcome:
    same = dict(problem=0, answer="1", critical_path=generated, fed=1, forked=False, acceleration=0.0, parallel=0.0)
    return Outcome(correct=correct, generated=generated, threads=threads, peak_context=1, stop="end", **same)


def test_families_budgets_and_a_model_are_chosen(config, codec):
    few = dataclasses.replace(config, families=("beam_search", "apr"), budgets=(4,), model="mine.safetensors")
    evaluation, left_out = comparison.chosen(few, codec)
    assert list(evaluation.methods) == ["apr", "beam_search@4"] and not left_out
    assert {method.rollout.checkpoint for method in evaluation.methods.values()} == {"mine.safetensors"}
    assert evaluation.task == config.task and type(evaluation) is not CompareConfig


def test_a_method_that_does_not_fit_is_left_out_by_name(config, codec):
    odd = config.methods["sequential"]
    rollout = dataclasses.replace(odd.rollout, method=dataclasses.replace(odd.rollout.method, end="<over>"))
    methods = {"odd": dataclasses.replace(odd, rollout=rollout), "sequential": odd}
    evaluation, left_out = comparison.chosen(dataclasses.replace(config, methods=methods), codec)
    assert list(evaluation.methods) == ["sequential"] and "<over>" in left_out["odd"]
    with pytest.raises(ValueError, match="no method is left to compare: odd: .*<over>"):
        comparison.chosen(dataclasses.replace(config, methods={"odd": methods["odd"]}), codec)


def test_what_is_unknown_is_refused(config):
    for change, message in (
        (dict(families=("beams",)), "families: 'beams' is not one of .*beam_search"),
        (dict(budgets=(3,)), "budgets: 3 is not one of 1, 2, 4, 8"),
        (dict(methods={"a@b": None}), "a@b has the budget 'b'"),
        (dict(share=1.0), "share is 1.0"),
        (dict(draws=0), "draws is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **change)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    """Of 200 samples of 50 coins, about 95 % have an interval that holds the coin's own chance."""
    coins = np.random.default_rng(0).random((200, 50)) < 0.3
    held = [low <= 0.3 <= high for low, high in (comparison.interval(sample, 1000, 0.95) for sample in coins)]
    assert 0.9 <= np.mean(held) <= 0.99
    assert comparison.interval([1, 1, 1], 10, 0.5) == (1.0, 1.0)


def test_the_front_has_those_that_nobody_beats():
    points = {"a": (10, 0.5), "b": (20, 0.5), "c": (20, 0.7), "d": (30, 0.6), "e": (5, 0.1), "f": (10, 0.4)}
    entries = {name: {"cost": cost, "accuracy": accuracy} for name, (cost, accuracy) in points.items()}
    beaten = lambda one: any(
        other["cost"] <= one["cost"] and other["accuracy"] >= one["accuracy"] and other != one
        for other in entries.values()
    )
    assert comparison.front(entries, "cost") == ["e", "a", "c"]
    assert set(comparison.front(entries, "cost")) == {name for name, one in entries.items() if not beaten(one)}


def test_tokens_that_follow_difficulty_are_told():
    found = {"a": [outcome(i < 4, 10 * i, i) for i in range(6)], "b": [outcome(i < 2, 7) for i in range(6)]}
    hard = comparison.difficulty(found)
    assert hard.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    follows, flat = (comparison.adaptivity(each, hard) for each in found.values())
    assert follows.threads == (0.5, 2.5, 4.5) and follows.generated == (5, 25, 45) and follows.rank > 0.9
    assert flat.generated == (7, 7, 7) and math.isnan(flat.rank)


def test_compare_writes_what_it_says_and_goes_on(tmp_path, capsys):
    folder = tmp_path / "out"
    arguments = ["--families", "sequential", "best_of_n", "self_consistency", "--budgets", "2"]
    arguments += ["--problems-per-setting", "2", "--draws", "50", "--output", str(folder)]
    assert compare.main(arguments) == 0
    before = (folder / "comparison.md").read_text()
    content = json.loads((folder / "comparison.json").read_text())["methods"]
    assert list(content) == ["sequential", "self_consistency@2", "best_of_n@2"]
    for name, entry in content.items():
        low, high = entry["accuracy_interval"]
        assert low <= entry["accuracy"] <= high and report.title(name) in before
        assert entry["compile_s"] > 0 and entry["makespan_1"] == entry["generated_tokens"]
    assert content["sequential"]["difference"] == 0 and report.title("self_consistency@2") == "self-consistency @2"
    for pattern in shown.FILES:
        assert list(folder.glob(pattern)), pattern
    capsys.readouterr()
    decoded = (folder / "rollouts/sequential.jsonl").stat().st_mtime_ns
    assert compare.main(arguments) == 0 and (folder / "comparison.md").read_text() == before
    assert (folder / "rollouts/sequential.jsonl").stat().st_mtime_ns == decoded, "it was decoded again"
    with pytest.raises(SystemExit):
        compare.main([*arguments, "--seed", "1"])
    assert "resume" in capsys.readouterr().err
