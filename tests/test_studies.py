"""Studies: the commands that they run, choices made before tests, verdicts on claims, and pages."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from apr_jax import settings
from apr_jax.sweep import findings, page, points, runs
from apr_jax.sweep.study import CHOICE, Arm, Claim, Measure, Stage, Study, carry_out

SWEEPS, STUDIES = (sorted(Path("configs", name).glob("[a-z]*.py")) for name in ("sweeps", "studies"))
RATES = ({"optimizer.learning_rate": 1e-4}, {"optimizer.learning_rate": 3e-4})


def study(output: Path | str = "results/x", **more) -> Study:
    arms = (
        Arm("parent", "apr"),
        Arm("RL", "apr", (Stage("first.py"), Stage("second.py", options={"start": "{before}/m"})), RATES, {"c": "{trained}/m"}),
    )  # fmt: skip
    given = dict(
        question="?", arms=arms, claims=(Claim("RL", "parent"),), evaluation="demo.py", options={}, hours=1.0, small={},
        seeds=2, output=str(output),
    )  # fmt: skip
    return Study(**given | more)


# ---- what ships


@pytest.mark.parametrize("path", SWEEPS, ids=str)
def test_options_of_sweeps_are_those_of_their_programs(path):
    for run in settings.load(path).runs():
        if run.point.get("seed", 0) == 0:
            config = settings.parse(run.command[3:], "configs/demo.py")
            assert config.output == str(run.folder) and config.resume


@pytest.mark.parametrize("path", STUDIES, ids=str)
def test_options_of_studies_are_those_of_their_programs(path):
    """Those of a smoke run are those of a whole one, and more."""
    given = dataclasses.replace(settings.load(path), smoke=True, seeds=1)
    choice = {arm.name: {"chosen": points.name(arm.tries[0])} for arm in given.arms}
    found = [run for number in range(given.stages()) for run in given.training(number)] + given.tests(choice)
    runs.check_names(found)
    for run in found:
        assert str(run.folder).startswith(f"results/studies/{path.stem}_smoke/")
        config = settings.parse(run.command[3:], "configs/demo.py")
        assert str(run.folder) in (getattr(config, "workdir", ""), getattr(config, "output", ""))


# ---- choosing, and testing once


def test_runs_of_a_study(tmp_path):
    given = study(tmp_path)
    first, second = given.training(0), given.training(1)
    assert [run.point["seed"] for run in first] == [0, 1] and len(second) == 4
    start = second[0].command[second[0].command.index("--start") + 1]
    assert start == f"{first[0].folder}/m" and second[0].command[-4:] == (
        "--seed", "0", "--optimizer.learning-rate", "0.0001",
    )  # fmt: skip


def test_choice_comes_before_the_test_and_stays(tmp_path):
    given, driven = study(tmp_path), []

    def drive(found, root):
        driven.append((root.name, (tmp_path / CHOICE).exists()))
        for run in found:
            if root.name == "train" and "optimizer.learning_rate" in run.point:
                run.folder.mkdir(parents=True)
                # 0.5 and 0.7 with the low rate, 0.6 and 0.65 with the high one: the means are 0.6 and 0.625
                low = run.point["optimizer.learning_rate"] == 1e-4
                value = (0.5, 0.7)[run.point["seed"]] if low else (0.6, 0.65)[run.point["seed"]]
                lines = [{"step": 1, "held_out/accuracy": 0.9}, {"step": 2, "held_out/accuracy": value}]
                (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return True

    assert carry_out(given, drive)
    assert driven == [("train", False), ("train", False), ("test", True)]
    chosen = json.loads((tmp_path / CHOICE).read_text())["RL"]
    assert chosen["chosen"] == "optimizer.learning_rate=0.0003"
    assert chosen["scores"] == pytest.approx({"optimizer.learning_rate=0.0001": 0.6, chosen["chosen"]: 0.625})
    tests = given.tests({"RL": chosen})
    assert [run.name for run in tests] == ["arm=parent", "arm=RL,seed=0", "arm=RL,seed=1"]
    assert tests[2].command[-1] == f"{given.trained(given.arms[1], RATES[1], 1)}/m"
    # Other numbers, other choice: the test problems have been seen by then.
    for seed in (0, 1):
        path = given.trained(given.arms[1], RATES[0], seed) / "metrics.jsonl"
        path.write_text('{"step": 2, "held_out/accuracy": 1.0}\n')
    with pytest.raises(ValueError, match="begin anew in another --output"):
        given.choose()


def test_what_a_study_refuses():
    with pytest.raises(ValueError, match="than is 'nobody'"):
        study(claims=(Claim("RL", "nobody"),))
    with pytest.raises(ValueError, match="equality needs a margin"):
        study(claims=(Claim("RL", "parent", wants="equal"),))
    with pytest.raises(ValueError, match="a name of its own"):
        study(arms=(Arm("a", "apr"), Arm("a", "apr")))


# ---- verdicts


def made(mean: float, seeds: int, problems: int = 400) -> np.ndarray:
    """Zeros and ones with this mean, the same share on every seed, on other problems."""
    row = np.arange(problems) < mean * problems
    return np.array([np.roll(row, 37 * seed) for seed in range(seeds)], float)


def test_verdicts():
    claims = (
        Claim("better", "base", target=0.05), Claim("better", "base", wants="less"), Claim("better", "base", target=0.5),
        Claim("alike", "base"), Claim("alike", "base", wants="equal", margin=0.15),
        Claim("alike", "base", wants="equal", margin=0.01), Claim("better", "base", wants="equal", margin=0.01),
    )  # fmt: skip
    arms = tuple(Arm(name, "apr") for name in ("better", "alike", "base"))
    given = study(arms=arms, claims=claims, measures={"accuracy": Measure()})
    found = {
        name: {"accuracy": made(mean, seeds)} for name, mean, seeds in (("better", 0.8, 3), ("alike", 0.5, 3), ("base", 0.5, 1))
    }  # fmt: skip
    judged = findings.judge(given, found)
    assert [one.verdict for one in judged] == [
        "reproduced", "contradicted", "smaller than the target", "not resolved", "reproduced", "not resolved", "contradicted",
    ]  # fmt: skip
    assert judged[0].difference.mean == pytest.approx(0.3)
    assert judged[0].p > judged[0].difference.p  # corrected for seven claims
    means = findings.arms(found)
    text = page.markdown(given, 400, means, judged, ["x.png"])
    assert "| better | 3 | 0.8 [" in text and "| not resolved |" in text and "![x.png](x.png)" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows[:5]} == {4} and {line.count("|") for line in rows[5:]} == {7}
    written = json.loads(json.dumps(page.summary(given, means, judged)))
    assert written["claims"][0]["verdict"] == "reproduced" and written["seeds"] == {"better": 3, "alike": 3, "base": 1}


def test_studies_are_listed(capsys):
    from experiments import reproduce

    assert reproduce.main([]) == 0
    assert re.findall(r"^(\w+)", capsys.readouterr().out, re.M) == [path.stem for path in STUDIES]
    with pytest.raises(SystemExit):
        reproduce.main(["nothing"])
    assert "there is no study nothing; there are" in capsys.readouterr().err
