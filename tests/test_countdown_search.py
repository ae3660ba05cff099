"""Demonstrators of Countdown and their compact text: replays and an independent parser."""

import collections
import dataclasses
import random
import re

import pytest
from hypothesis import given, settings

from apr_jax.tasks.countdown import compact, problems, search, verify
from apr_jax.tasks.countdown.problems import PRESETS, Problem
from apr_jax.tasks.countdown.search import SearchConfig
from apr_jax.tasks.countdown.solver import expand
from countdown_traces import METHODS, traces

PROBLEM = Problem((22, 26, 31, 53), 27)


def searches(trace: search.Search):
    yield trace
    for step in trace.steps:
        for below in step.searches:
            yield from searches(below)


def check_step(target: int, step: search.Step, beam: int) -> None:
    offered = [(operation, nums) for operation, nums in expand(step.node.nums)]
    value = search.mult_heuristic(target)
    kept = [(child.operations[-1], child.nums) for child in step.children]
    assert all(kept.count(pair) <= offered.count(pair) for pair in kept)
    stopped = len(step.children[-1].nums) == 1 and step.children[-1].nums[0] == target
    assert len(kept) == min(beam, len(offered)) or stopped
    worst_kept = sorted(value(nums) for _, nums in offered)[:beam][-1]
    assert all(child.value == value(child.nums) <= worst_kept for child in step.children)
    for child in step.children:
        assert child.operations[:-1] == step.node.operations and child.parent == step.node
    assert not any(child.nums == (target,) for child in step.children[:-1])


@settings(max_examples=60, deadline=None)
@given(traces())
def test_traces_replay(case):
    problem, method, trace, config = case
    for one in searches(trace):
        beam = config.beam if one is trace else config.sub_beam
        assert one.steps[0].node == one.root
        for step in one.steps:
            check_step(problem.target, step, beam)
        expanded = [step.node.ordinals for step in one.steps]
        assert len(set(expanded)) == len(expanded)
        inner = {
            child.ordinals
            for step in one.steps
            if step.branch == "queue"
            for child in step.children
            if len(child.nums) > 1
        }
        assert set(expanded[1:]) <= inner
        if one.goal is None:  # nothing is forgotten
            assert set(expanded[1:]) == inner
            assert all(below.goal is None for step in one.steps for below in step.searches)
        else:
            assert verify.check_solution(problem, one.goal.operations)
        assert all(step.branch != {"apr": "sub", "sos": "spawn"}[method] for step in one.steps)


def test_heuristic_by_hand():
    # 27 = 3 * 9: factors 3, 9, 27
    assert search.mult_heuristic(27)((22, 31, 27)) == 5 + 4 + 0
    assert search.mult_heuristic(27)((6,)) == 3
    assert search.mult_heuristic(7)((2, 9)) == 5 + 2  # 1 is no factor


def test_a_beam_that_keeps_everything_finds_every_solution():
    config = SearchConfig(10**6, 10**6, 0.9, "canonical")
    for index in range(5):
        problem = problems.generate(PRESETS["three"], 0, "train", index)
        for demonstrator in METHODS.values():
            assert demonstrator(problem, config, random.Random(0)).goal is not None
    hopeless = Problem((1, 1, 1), 50)
    assert all(demonstrator(hopeless, config, random.Random(0)).goal is None for demonstrator in METHODS.values())


def test_orders_keep_the_same_successors():
    for index in range(5):
        problem = problems.generate(PRESETS["four"], 1, "train", index)
        shuffled, canonical = (
            search.sos(problem, SearchConfig(6, 6, 0.5, order), random.Random(0)).steps[0]
            for order in ("shuffled", "canonical")
        )
        names = [child.operations[-1] for child in canonical.children]
        assert sorted(names) == sorted(child.operations[-1] for child in shuffled.children)
        places = [operation for operation, _ in expand(problem.nums)]
        assert [places.index(name) for name in names] == sorted(places.index(name) for name in names)


def test_waves_have_any_width_and_end_with_success():
    one = SearchConfig(60, 60, 1.0, "canonical", 99)
    config, widths = dataclasses.replace(one, width=(1, 5), waves=2), collections.Counter()
    for index in range(60):
        problem = problems.generate(PRESETS["three"], 0, "train", index)
        every = [each.root for step in search.apr(problem, one, random.Random(0)).steps for each in step.searches]
        trace = search.apr(problem, config, random.Random(index))
        waves = [[each.root for each in step.searches] for step in trace.steps]
        found = [any(each.goal for each in step.searches) for step in trace.steps]
        tried = sum(waves, [])
        assert tried == every[: len(tried)], "each wave goes on where the one before it ended"
        assert not any(found[:-1]) and (trace.goal is not None) == found[-1]
        assert found[-1] or len(waves) == 2 or tried == every
        assert all(1 <= len(wave) <= 5 for wave in waves)
        widths[len(waves[0])] += 1
    assert sorted(widths) == [1, 2, 3, 4, 5]


def test_demonstrators_are_seeded():
    config = SearchConfig(4, 6, 0.5)
    first, again, other = (search.sos(PROBLEM, config, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam": 0}, "beam: 0"),
        ({"promising": 1.5}, "promising: 1.5"),
        ({"order": "random"}, "order: 'random'"),
        ({"width": (3, 2)}, "width: \\(3, 2\\) must satisfy"),
        ({"waves": 2}, "waves: 2 must be at least 1, and 1 without width"),
    ],
)
def test_search_config_is_validated(change, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig(**({"beam": 2, "sub_beam": 2, "promising": 0.5} | change))


# ---- compact text


def events(problem: Problem, thread: compact.ThreadText) -> list:
    """Parse a thread back to its events: the word, the operations it names and the numbers they leave."""
    _, target, state = re.fullmatch(r"<(s|spawn)>(\d+):(.*)<go>", thread.segments[0].text).groups()
    assert int(target) == problem.target
    found = [("start", written(state)[1])]
    for segment in thread.segments[1:]:
        for word, rest in re.findall(r"(<[a-z]+>|^)([^<]*)", segment.text if segment.generated else ""):
            if word in ("<node>", "<sub>"):
                place = re.match(r"(\d+[-+*/]\d+=\d+;?)+(,\d+)+", rest)[0]
                found.append((word, *written(place)))
                rest = rest[len(place) :]
            if word == "<spawn>":
                found.append((word, *written(rest.partition(":")[2])))
            if word == "<exit>":
                found.append((word,))
            if word in ("", "<node>", "<sub>", "<exit>"):
                found += [("result", *pair) for pair in re.findall(r"([-+*/])(\d+)", rest)]
    return found


def written(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The operations and the state behind `31/31=1,26`: the others, then the last result."""
    if "=" not in text:
        return (), tuple(map(int, text.split(",")))
    operations, *others = text.split(",")
    return tuple(operations.split(";")), (*map(int, others), int(operations.rpartition("=")[2]))


def expected(trace: search.Search) -> list:
    """The same from the trace."""
    return [("start", trace.root.nums), *expected_body(trace)]


def expected_body(trace: search.Search) -> list:
    found, start = [], len(trace.root.operations)
    for step in trace.steps:
        if step.node is not trace.root:
            found.append(("<node>", step.node.operations[start:], step.node.nums))
        if len(step.node.nums) == 2:
            for child in step.children:
                symbol = re.search("[-+*/]", child.operations[-1])[0]
                found.append(("result", symbol, str(child.nums[0])))
        for below in step.searches:
            if step.branch == "spawn":
                found.append(("<spawn>", below.root.operations[-1:], below.root.nums))
            else:
                found += [("<sub>", below.root.operations[start:], below.root.nums), *expected_body(below)]
                found += [] if below.goal else [("<exit>",)]
    return found


@settings(max_examples=80, deadline=None)
@given(traces())
def test_compact_text_parses_back(case):
    problem, _, trace, _ = case
    threads = compact.render(problem, trace)
    assert events(problem, threads[0]) == expected(trace)
    spawned = [below for step in trace.steps if step.branch == "spawn" for below in step.searches]
    assert len(threads) == 1 + len(spawned)
    for number, below in enumerate(spawned, start=1):
        assert events(problem, threads[number]) == expected(below)
        assert threads[number].path == (number - 1,) and threads[number].parent == 0
    known = {*compact.SPECIALS, *compact.CONTROL, *compact.CHARACTERS}
    assert all(piece in known for thread in threads for piece in compact.pieces(thread.text))


@settings(max_examples=60, deadline=None)
@given(traces())
def test_compact_answers_and_messages(case):
    problem, _, trace, _ = case
    threads = compact.render(problem, trace)
    root = threads[0]
    answer = compact.parse_answer(root.text)
    assert answer == (trace.goal.operations if trace.goal else None)
    assert verify.check_solution(problem, answer) is (trace.goal is not None)
    assert root.segments[0].text == compact.prompt(problem)
    for thread in threads:
        assert [segment.generated for segment in thread.segments] == [k % 2 == 1 for k in range(len(thread.segments))]
        assert thread.segments[-1].text.endswith("<end>")
    for place in range(2, len(root.segments), 2):
        children = [thread for thread in threads[1:] if thread.forked_after == place]
        asked = "".join(child.segments[0].text.removesuffix("<go>") for child in children)
        assert root.segments[place - 1].text.endswith(f"{asked}<wait>")
        returned = [re.search("<join>(.*)<end>", child.segments[-1].text)[1] for child in children]
        assert root.segments[place].text == "".join(f"<result>{text}" for text in returned) + "<go>"


def test_compact_text_of_the_published_example():
    trace = search.apr(PROBLEM, SearchConfig(2, 2, 1.0, "canonical"), random.Random(0))
    root, success, failure = compact.render(PROBLEM, trace)
    assert [segment.text for segment in root.segments] == [
        "<s>27:22,26,31,53<go>",
        "<spawn>27:53-22=31,26,31<spawn>27:53-26=27,22,31<wait>",
        "<result>53-22=31;31/31=1;26+1=27<result><go>",
        "<goal>53-22=31;31/31=1;26+1=27<end>",
    ]
    assert success.text == (
        "<spawn>27:53-22=31,26,31<go><node>31-31=0,26+26-26<node>31/31=1,26+27<goal><join>53-22=31;31/31=1;26+1=27<end>"
    )
    assert failure.text == "<spawn>27:53-26=27,22,31<go><node>31-22=9,27+36/3<node>27-22=5,31+36-26<join><end>"
    assert (success.forked_after, failure.forked_after) == (2, 2)
    # root: 37 up to <wait>; the longer child 58; then 26
    assert compact.count(compact.render(PROBLEM, trace)) == compact.Counts((106, 77, 54), (63, 58, 35), 37 + 58 + 26)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<goal>1+2=3<end>", ("1+2=3",)),
        ("+3<goal>1+2=3;3*4=12", ("1+2=3", "3*4=12")),
        ("<goal>1+2=4<goal>1+2=3<end>", ("1+2=3",)),
        ("<goal><join>1+2=3<end>", ("1+2=3",)),
        ("<goal><end>", None),
        ("<end>", None),
        ("<goal>1+2<end>", None),
        ("<goal>1+2=3;<end>", None),
        ("", None),
    ],
)
def test_parse_answer(text, answer):
    assert compact.parse_answer(text) == answer
