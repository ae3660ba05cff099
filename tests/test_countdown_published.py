"""The published text of Countdown searches against the published examples and the verifier."""

import itertools
import random
import re

import pytest
from hypothesis import given, settings

from apr_jax.tasks.countdown import published, search, verify
from apr_jax.tasks.countdown.problems import Problem
from apr_jax.tasks.countdown.search import SearchConfig
from apr_jax.tasks.countdown.solver import expand
from countdown_traces import traces

PROBLEM = Problem((22, 26, 31, 53), 27)

BEFORE = """Moving to Node #0
Current State: 27:[22, 26, 31, 53], Operations: []
Exploring Operation: 53-26=27, Resulting Numbers: [22, 31, 27]
Generated Node #0,0: 27:[22, 31, 27] Operation: 53-26=27
Exploring Operation: 53-22=31, Resulting Numbers: [26, 31, 31]
Generated Node #0,1: 27:[26, 31, 31] Operation: 53-22=31
"""
SPAWN = """<Calling Sub Searches>
<Start Sub Search 0 at level 1> Moving to Node #0,0
<Start Sub Search 1 at level 1> Moving to Node #0,1
<End Calling Sub Searches>
"""
CHILD = """Moving to Node #0,1
Current State: 27:[26, 31, 31], Operations: ['53-22=31']
Exploring Operation: 31-31=0, Resulting Numbers: [26, 0]
Generated Node #0,1,0: 27:[26, 0] Operation: 31-31=0
Exploring Operation: 31/31=1, Resulting Numbers: [26, 1]
Generated Node #0,1,1: 27:[26, 1] Operation: 31/31=1
Moving to Node #0,1,1
Current State: 27:[26, 1], Operations: ['53-22=31', '31/31=1']
Exploring Operation: 26*1=26, Resulting Numbers: [26]
26,27 unequal: No Solution
Exploring Operation: 26+1=27, Resulting Numbers: [27]
27,27 equal: Goal Reached
"""
CHILD_SUMMARY = """Moving to Node #0,1
Current State: 27:[26, 31, 31], Operations: ['53-22=31']
Exploring Operation: 31/31=1, Resulting Numbers: [26, 1]
Generated Node #0,1,1: 27:[26, 1] Operation: 31/31=1
Moving to Node #0,1,1
Current State: 27:[26, 1], Operations: ['53-22=31', '31/31=1']
Exploring Operation: 26+1=27, Resulting Numbers: [27]
27,27 equal: Goal Reached
"""
ROOT_SUMMARY = f"""Moving to Node #0
Current State: 27:[22, 26, 31, 53], Operations: []
Exploring Operation: 53-22=31, Resulting Numbers: [26, 31, 31]
Generated Node #0,1: 27:[26, 31, 31] Operation: 53-22=31
{CHILD_SUMMARY}"""
RESULTS = f"""<Sub Searches>
<No Solution in Sub Search 0 at level 1 at Node #0,0>
<Goal Reached in Sub Search 1 at level 1 at Node #0,1>
{CHILD_SUMMARY}<End Sub Searches>
27,27 equal: Goal Reached
"""


class Chosen(random.Random):
    """A generator whose shuffles are given: they choose the order of the published examples."""

    def __init__(self, orders: list[list[int]]):
        super().__init__(0)
        self.orders = iter(orders)

    def shuffle(self, x):
        order = next(self.orders)
        x[:] = [x[k] for k in order]


def test_apr_text_is_the_published_example():
    # Kept successors come best first: 53-26 before 53-22 at equal value, 31/31 and 31-31 in the child.
    trace = search.apr(PROBLEM, SearchConfig(2, 2, 1.0), Chosen(example_orders(PROBLEM)))
    calls = published.render_apr(27, trace)
    assert calls.main_calls == (BEFORE + SPAWN, BEFORE + RESULTS + ROOT_SUMMARY)
    assert calls.sub_calls[0][1].main_calls == (CHILD + CHILD_SUMMARY,)
    assert calls.sub_calls[0][0].main_calls[0].endswith("No solution found.\n")
    assert published.child_prompt(27, trace.steps[0].searches[1].root) == "".join(CHILD.splitlines(True)[:2])
    assert published.apr_prompt(PROBLEM) == "".join(BEFORE.splitlines(True)[:2])


def example_orders(problem: Problem) -> list[list[int]]:
    """Orders of the shuffles that give the example, found by what the example lists."""
    value = search.mult_heuristic(problem.target)

    def order(nums: tuple[int, ...], wanted: list[str]) -> list[int]:
        names = [operation for operation, _ in sorted(expand(nums), key=lambda successor: value(successor[1]))][:2]
        return [names.index(name) for name in wanted]

    return [
        order((22, 26, 31, 53), ["53-26=27", "53-22=31"]),
        [0, 1],  # child 0 and its two nodes
        [0, 1],
        [0, 1],
        order((26, 31, 31), ["31-31=0", "31/31=1"]),
        order((26, 1), ["26*1=26", "26+1=27"]),
    ]


def test_sos_text_is_the_published_example():
    orders = example_orders(PROBLEM)
    text = published.render_sos(27, search.sos(PROBLEM, SearchConfig(2, 2, 1.0), Chosen(orders)))
    head = BEFORE.removeprefix("Moving to Node #0\n") + "Start Sub Search at level 1: Moving to Node #0,0\n"
    assert text.startswith(head + "Current State: 27:[22, 31, 27], Operations: ['53-26=27']\n")
    middle = (
        "No solution found.\nExit Sub Search at level 1\nNo solution found in sub search\nStart Sub Search at level 1: "
    )
    assert middle + CHILD.partition("Moving to Node #0,1,1")[0] in text
    assert text.endswith(
        "27,27 equal: Goal Reached\n" + ROOT_SUMMARY + "Exit Sub Search at level 2\nExit Sub Search at level 1\n"
    )
    assert published.sos_prompt(PROBLEM) == text.splitlines(True)[0]


@settings(max_examples=60, deadline=None)
@given(traces())
def test_published_text_is_verified(case):
    problem, method, trace, _ = case
    if method == "sos":
        text = published.render_sos(problem.target, trace)
    else:
        calls = published.render_apr(problem.target, trace)
        text = calls.main_calls[-1]
        for before, after in itertools.pairwise(calls.main_calls):
            assert after.startswith(before.partition("<Calling")[0] if "<Calling" in before else before)
        assert len(calls.main_calls) == 1 + len(calls.sub_calls)
    assert verify.check_published(problem, text) is (trace.goal is not None)
    assert not verify.check_published(Problem((*problem.nums[:-1], 1000), problem.target), text)
    moves = re.findall(r"^Moving to Node (#[0-9,]+)\nCurrent State", text, re.MULTILINE)
    assert len(moves) == text.count("Current State") - (method == "sos") * (1 + text.count("Start Sub Search"))


def test_published_check_replays_the_numbers():
    text = BEFORE + RESULTS + ROOT_SUMMARY
    assert verify.check_published(PROBLEM, text)
    summary = text.rindex("Resulting Numbers: [26, 1]")
    assert not verify.check_published(PROBLEM, text[:summary] + text[summary:].replace("[26, 1]", "[26, 2]", 1))
    assert not verify.check_published(PROBLEM, ROOT_SUMMARY)  # a summary alone: nothing was reached before it


def test_conditioned_prompts():
    assert published.apr_prompt(PROBLEM, 10).startswith("Sub Call Budget: 10 Moving to Node #0\nCurrent State: 27:")
    assert published.sos_prompt(PROBLEM, 1024).startswith("Token Budget: 1024 Current State: 27:")
    with pytest.raises(ValueError, match="tokens: 1000"):
        published.sos_prompt(PROBLEM, 1000)
