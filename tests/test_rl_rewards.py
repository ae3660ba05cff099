"""Rewards against numbers worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest

from apr_jax.record import Stop, Transcript
from apr_jax.rl import rewards
from apr_jax.rl.rewards import Case, Part
from synthetic import Thread, build


def made(*children: str, alone: str = "a", rest: str = "e") -> Transcript:
    """A root that generates `alone`, forks a child for each string, and generates `rest`; a letter is a token."""
    forks = [[Thread(("x",), (tuple(child),)) for child in children]] if children else []
    return build(Thread(("s",), (tuple(alone), *forks, tuple(rest))))[0]


WIDE = made("bcd", "bcd", "bcd")  # T = 11, L = 5, n = 4
NARROW = made("b", "cd", alone="ag", rest="efgh")  # T = 9, L = 8, n = 3
PLAIN = made(alone="abc", rest="d")  # T = L = 4, n = 1


def stopped(transcript: Transcript, thread: int, stop: Stop) -> Transcript:
    records = list(transcript.threads)
    records[thread] = dataclasses.replace(records[thread], stop=stop)
    return dataclasses.replace(transcript, threads=tuple(records))


BROKEN = stopped(WIDE, 2, Stop.MALFORMED)
RIGHT = [Case(transcript, 1.0) for transcript in (WIDE, NARROW, PLAIN)]
WRONG = Case(WIDE, 0.0)


@pytest.mark.parametrize(
    ("reward", "cases", "expected"),
    [
        (rewards.Correctness(), [*RIGHT, WRONG, Case(PLAIN, 0.25)], [1, 1, 1, 0, 0.25]),
        (rewards.Correctness(1, -1), [RIGHT[0], WRONG], [1, -1]),
        # eta = 6/11, 1/9, 0
        (rewards.Acceleration("paper"), [*RIGHT, WRONG], [0.2, 0.5 / 9, 0, 0]),
        (rewards.Acceleration("code"), [*RIGHT, WRONG], [0.1, 0.5 / 9, 0, 0]),
        (rewards.Acceleration("readme"), [*RIGHT, WRONG], [0.1, 0.5 * (9 / 8 - 1), 0, 0]),
        (rewards.ParallelStructure(), [*RIGHT, WRONG, Case(BROKEN, 1.0)], [1.2, 1.2, 1, -1, -1]),
        (rewards.ParallelStructure(1, -1, -1), [*RIGHT, WRONG], [1, 1, -1, -1]),
        (rewards.Forked(), [*RIGHT, WRONG, Case(BROKEN, 1.0)], [1, 1, 0, 1, 0]),
        # eta = 11/5, 9/8, 1
        (rewards.Concurrency(4, 0.5), [*RIGHT, WRONG], [1, 9 / 16, 0.5, 1]),
        (rewards.Concurrency(8, 0.5), [*RIGHT], [11 / 20, 9 / 32, 0.25]),
        (rewards.WellFormed(), [*RIGHT, Case(BROKEN, 1.0)], [1, 1, 1, -1]),
        (rewards.Ratio("parallel"), RIGHT, [9 / 11, 3 / 9, 0]),
        (rewards.Ratio("acceleration"), RIGHT, [6 / 11, 1 / 9, 0]),
        (rewards.Spawned(4), RIGHT, [3 / 4, 2 / 4, 0]),
        (rewards.Spawned(2), RIGHT, [1, 1, 0]),
        (rewards.Finished(), [*RIGHT, Case(BROKEN, 1.0)], [1, 1, 0, 2 / 3]),
        (rewards.ThreadPenalty(2, 0.1), RIGHT, [-0.2, -0.1, 0]),
        (rewards.TokenPenalty(100), RIGHT, [-0.11, -0.09, -0.04]),
        (rewards.LengthPenalty(8, 4), RIGHT, [-1 / 4, -1, 0]),
        (rewards.LengthPenalty(7, 3), RIGHT, [-1 / 3, -1, 0]),
        # WIDE takes 11, 7, 5, 5 steps on 1, 2, 3, 4 workers
        (rewards.Makespan(1, 20), [*RIGHT, WRONG], [9 / 20, 11 / 20, 16 / 20, 0]),
        (rewards.Makespan(2, 20), [*RIGHT, WRONG], [13 / 20, 12 / 20, 16 / 20, 0]),
        (rewards.Makespan(3, 20), RIGHT, [15 / 20, 12 / 20, 16 / 20]),
        (rewards.Makespan(math.inf, 4), RIGHT, [0, 0, 0]),
    ],
    ids=lambda value: type(value).__name__.lower() if isinstance(value, rewards.Reward) else "",
)
def test_by_hand(reward, cases, expected):
    np.testing.assert_allclose(reward(cases, 0), expected, atol=1e-12)


def test_alternation_counts_updates():
    reward = rewards.Alternating()
    assert [reward([RIGHT[0]], step)[0] for step in range(12)] == [1.0] * 8 + [1.2] * 2 + [1.0] * 2


def test_annealing_reaches_zero_and_stays():
    reward = rewards.Annealed(rewards.Spawned(3), steps=4, start=2)
    assert [reward([RIGHT[0]], step)[0] for step in (0, 2, 3, 5, 6, 100)] == [1, 1, 0.75, 0.25, 0, 0]


def test_kinds_of_threads():
    kinds = ("", "subtask", "trial", "trial")
    case = Case(WIDE, 1.0, kinds)
    assert rewards.Ratio("subtask")([case], 0) == pytest.approx([3 / 11])
    assert rewards.Ratio("trial")([case], 0) == pytest.approx([6 / 11])
    with pytest.raises(ValueError, match="ratio.kind is 'trial'; the kinds of 0 threads are told and there are 4"):
        rewards.Ratio("trial")([RIGHT[0]], 0)


def test_z_scores_are_of_right_answers():
    """Parallel ratios 9/11, 1/3, 0 of right answers and 9/11 of a wrong one."""
    x = np.array([9 / 11, 1 / 3, 0])
    cases = [*RIGHT, WRONG]
    among_right = rewards.ZScored()(cases, 0)
    np.testing.assert_allclose(among_right, [*(x - x.mean()) / x.std(), 0])
    every = np.array([*x, 9 / 11])
    among_all = rewards.ZScored(over="group")(cases, 0)
    np.testing.assert_allclose(among_all, [*(x - every.mean()) / every.std(), 0])
    assert rewards.ZScored(limit=0.5)(cases, 0).tolist() == [0.5, among_right[1], -0.5, 0]
    assert not rewards.ZScored()([RIGHT[0], RIGHT[0], WRONG], 0).any(), "no spread"
    assert not rewards.ZScored()([WRONG, WRONG], 0).any(), "nobody is right"


def test_one_odd_sample_of_eight_reaches_the_bound_that_is_stated():
    cases = [RIGHT[0], *[RIGHT[2]] * 7]
    assert rewards.ZScored()(cases, 0).max() == pytest.approx(math.sqrt(7))


def test_parts_are_summed_by_weights_and_reported():
    parts = [Part(rewards.Correctness()), Part(rewards.Spawned(4), 0.5), Part(rewards.Spawned(2), -1, "wide")]
    values, found = rewards.total(parts, [*RIGHT, WRONG], 0)
    np.testing.assert_allclose(values, [1 + 3 / 8 - 1, 1 + 2 / 8 - 1, 1, 3 / 8 - 1])
    assert list(found) == ["correctness", "spawned", "wide"]
    np.testing.assert_allclose(found["wide"], [-1, -1, 0, -1])
    with pytest.raises(ValueError, match="two rewards are called 'spawned'; give one of them another name"):
        rewards.total([parts[1], parts[1]], RIGHT, 0)
    with pytest.raises(ValueError, match="spawned gave .* at step 7; it must be finite"):
        rewards.total([Part(rewards.Spawned(), math.inf)], RIGHT[:2], 7)


def test_nothing_generated():
    empty = Case(build(Thread(("s",), ()))[0], 0.0)
    reached = [rewards.Acceleration("readme"), rewards.Concurrency(), rewards.Makespan(), rewards.Spawned()]
    assert [reward([empty], 0)[0] for reward in reached] == [0, 0, 0, 0]
    assert rewards.Ratio("trial").of(dataclasses.replace(empty, kinds=("",))) == 0


def test_rewards_refuse_what_means_nothing():
    for bad in (
        lambda: rewards.Concurrency(cap=0),
        lambda: rewards.Alternating(share=11),
        lambda: rewards.Annealed(steps=0),
        lambda: rewards.Spawned(0),
        lambda: rewards.Makespan(0),
        lambda: rewards.LengthPenalty(10, 11),
        lambda: rewards.Acceleration("fast"),
        lambda: rewards.ZScored(over="all"),
    ):
        with pytest.raises(ValueError, match=" is | = "):
            bad()
