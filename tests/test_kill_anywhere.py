"""Runs that are killed where it hurts, and go on, end as those that were left alone. `make kill` draws the points."""

import signal

import numpy as np
import pytest

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


@pytest.mark.parametrize("loop", POINTS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(loop, tmp_path):
    whole, killed = (Run(loop, tmp_path / name) for name in ("whole", "killed"))
    seen = whole.to_the_end()
    for point in POINTS[loop]:
        code, told, died = killed.start(point)
        assert code == -signal.SIGKILL, told
        assert point.text in died["last"] and point.part in died["last"]
    killed.to_the_end()
    expected = whole.result()
    assert differences(killed.result(), expected) == []
    assert {"export", "metrics.jsonl:3"} < expected.keys() and len(seen["operations"]) > 60
    if loop == "rl":
        assert {f"step_{number:06d}.jsonl" for number in (1, 2, 3, 4)} < expected.keys()


def test_a_difference_is_seen():
    one = {"metrics.jsonl:1": {"loss": float("nan")}, "export": b"a", "state.step": np.zeros(2)}
    assert differences(dict(one), one) == []
    assert differences(one | {"export": b"b"}, one) == ["export"]
    assert differences(one | {"state.step": -np.zeros(2)}, one) == ["state.step"]
    assert differences({}, one) == sorted(one)
