"""Problems, solver and verifier of Countdown against brute force over expression trees."""

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.tasks.countdown import problems, solver, verify
from apr_jax.tasks.countdown.problems import PRESETS, Problem, Setting


def reachable(nums: tuple[int, ...]) -> set[int]:
    """All values of expression trees over all the numbers, by splitting the multiset in two (another algorithm)."""
    if len(nums) == 1:
        return {nums[0]}
    values = set()
    for size in range(1, len(nums) // 2 + 1):
        for left in itertools.combinations(range(len(nums)), size):
            right = [k for k in range(len(nums)) if k not in left]
            pairs = itertools.product(reachable(tuple(nums[k] for k in left)), reachable(tuple(nums[k] for k in right)))
            for a, b in pairs:
                values |= {a + b, a * b, abs(a - b)}
                values |= {max(a, b) // min(a, b)} if min(a, b) and max(a, b) % min(a, b) == 0 else set()
    return values


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.integers(0, 60))
def test_solver_agrees_with_expression_trees(nums, target):
    operations = solver.solve(tuple(nums), target)
    assert (operations is not None) == (target in reachable(tuple(nums)))
    if operations is not None:
        assert verify.check_solution(Problem(tuple(nums), target), operations)


def test_combine_is_as_published():
    assert solver.combine(6, 24) == [(6, "+", 24, 30), (6, "*", 24, 144), (24, "-", 6, 18), (24, "/", 6, 4)]
    assert solver.combine(1, 5)[3] == (5, "/", 1, 5)
    assert [c[1] for c in solver.combine(7, 24)] == ["+", "*", "-"]
    assert [c[1] for c in solver.combine(0, 5)] == ["+", "*", "-"]
    assert [c[1] for c in solver.combine(0, 0)] == ["+", "*", "-"]


def test_expand_keeps_the_order_of_the_remaining_numbers():
    successors = solver.expand((22, 26, 31, 53))
    assert ("53-22=31", (26, 31, 31)) in successors
    assert ("53-26=27", (22, 31, 27)) in successors
    assert [operation for operation, _ in successors[:3]] == ["22+26=48", "22*26=572", "26-22=4"]


@pytest.mark.parametrize("preset", PRESETS)
def test_problems_are_seeded_by_index(preset):
    setting = PRESETS[preset]
    drawn = [problems.generate(setting, 7, "train", k) for k in range(12)]
    later = [problems.generate(setting, 7, "train", k) for k in reversed(range(12))]
    assert drawn == later[::-1]
    assert drawn[5:9] == list(itertools.islice(problems.stream(setting, 7, "train", 5), 4))
    assert drawn != [problems.generate(setting, 8, "train", k) for k in range(12)]
    assert len(set(drawn)) > 6
    for problem in drawn:
        problems.check(problem, setting)
        assert problem.target in reachable(problem.nums)


def test_splits_are_disjoint_in_numbers_up_to_order():
    setting = PRESETS["three"]
    streams = {split: itertools.islice(problems.stream(setting, 0, split), 300) for split in ("train", "val", "test")}
    keys = {split: {(tuple(sorted(p.nums)), p.target) for p in stream} for split, stream in streams.items()}
    assert not keys["train"] & keys["val"]
    assert not keys["train"] & keys["test"]
    assert not keys["val"] & keys["test"]
    rng = random.Random(0)
    for _ in range(50):
        nums = [rng.randint(1, 99) for _ in range(4)]
        assert len({problems.split_of(Problem(p, 24)) for p in itertools.permutations(nums)}) == 1


def test_benchmark_has_distinct_problems_of_its_split():
    chosen = problems.benchmark(PRESETS["three"], 3, "test", 80)
    assert len({(tuple(sorted(p.nums)), p.target) for p in chosen}) == 80
    assert {problems.split_of(p) for p in chosen} == {"test"}
    assert problems.benchmark(PRESETS["three"], 3, "test", 40) == chosen[:40]


def test_benchmark_says_when_there_are_too_few():
    with pytest.raises(ValueError, match="count: 5000 problems wanted"):
        problems.benchmark(Setting(numbers=2, high=5, target_low=1, target_high=10), 0, "train", 5000)


def test_unknown_split():
    with pytest.raises(ValueError, match="split: 'dev' is not one of"):
        problems.generate(PRESETS["four"], 0, "dev", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": 1}, "numbers: 1"),
        ({"low": 9, "high": 3}, "low, high: 9, 3"),
        ({"target_low": 0}, "target_low, target_high: 0, 100"),
    ],
)
def test_setting_is_validated(change, message):
    with pytest.raises(ValueError, match=message):
        Setting(**change)


GOOD = '{"nums": [22, 26, 31, 53], "target": 27}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nums", "not JSON"),
        ("[1, 2]", "expected an object with the fields nums and target"),
        ('{"nums": [1, 2, 3, 4]}', "expected an object with the fields nums and target"),
        ('{"nums": "1,2,3,4", "target": 27}', "nums: '1,2,3,4' is not a list"),
        ('{"nums": [22, 26, 31], "target": 27}', "nums: 31 is out of range, allowed are 1..30"),
        ('{"nums": [22, 26, 31, 100], "target": 27}', "nums: 100 is out of range, allowed are 1..99"),
        ('{"nums": [22, 26, 31, 5.0], "target": 27}', "nums: 5.0 is not an integer"),
        ('{"nums": [22, 26, 31, true], "target": 27}', "nums: True is not an integer"),
        ('{"nums": [22, 26, 31, 53], "target": "27"}', "target: '27' is not an integer"),
        ('{"nums": [22, 26, 31, 53], "target": 9}', "target: 9 is out of range, allowed are 10..100"),
    ],
)
def test_read_jsonl_names_file_line_and_fault(tmp_path, line, message):
    path = tmp_path / "problems.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"problems\.jsonl:3: {message}"):
        problems.read_jsonl(path)


def test_files_of_problems_are_text_in_utf8(tmp_path):
    path = tmp_path / "problems.jsonl"
    line = '{"nums": [22, 26, 31, 53], "target": 27, "source": "a\u2028b"}'  # a line ends at \n alone
    path.write_text(line, encoding="utf-8")
    assert len(problems.read_jsonl(path)) == 1
    path.write_text(line, encoding="utf-16")
    with pytest.raises(ValueError, match=r"problems_file: .*problems\.jsonl is not text in UTF-8"):
        problems.read_jsonl(path)
    path.write_text('{"nums": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"problems\.jsonl:1: not JSON"):
        problems.read_jsonl(path)


def test_jsonl_round_trip(tmp_path):
    path = tmp_path / "problems.jsonl"
    wanted = [problems.generate(PRESETS["four"], 0, "val", k) for k in range(5)]
    problems.write_jsonl(path, wanted)
    assert problems.read_jsonl(path) == wanted
    assert json.loads(path.read_text().splitlines()[0])["target"] == wanted[0].target


PROBLEM = Problem((22, 26, 31, 53), 27)


@pytest.mark.parametrize(
    ("operations", "right"),
    [
        (("53-22=31", "31/31=1", "26+1=27"), True),
        (("53-22=31", "31/31=1", "1+26=27"), True),
        (("53-26=27",), False),  # numbers are left over
        (("53-22=31", "31/31=1", "26+1=28"), False),  # wrong arithmetic
        (("53-22=31", "31-31=0", "26+0=26"), False),  # not the target
        (("22-53=31", "31/31=1", "26+1=27"), False),  # a negative difference
        (("53-22=31", "22+31=53", "26+1=27"), False),  # 22 is used twice
        (("31/31=1", "53-22=31", "26+1=27"), False),  # the second 31 is not there yet
        (("53-22=031", "31/31=1", "26+1=27"), False),  # not a number as we write them
        ((), False),
        (None, False),
        (("26/0=0",), False),
        (("53-22=31\n", "31/31=1", "26+1=27"), False),
        (("٥٣-22=31", "31/31=1", "26+1=27"), False),
    ],
)
def test_check_solution(operations, right):
    assert verify.check_solution(PROBLEM, operations) is right


def test_a_number_can_be_used_only_once_against_itself():
    assert verify.check_solution(Problem((5, 5), 10), ("5+5=10",))
    assert not verify.check_solution(Problem((5, 6), 10), ("5+5=10",))
    assert not verify.check_solution(Problem((0, 0), 10), ("0/0=10",))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("0123456789+-*/= \n", max_size=40), max_size=4))
def test_garbage_is_wrong_and_no_error(operations):
    assert not verify.check_solution(PROBLEM, operations)
    assert not verify.check_published(PROBLEM, "\n".join(operations) + "Goal Reached" * 2)


def test_huge_numbers_are_wrong_and_no_error():
    assert not verify.check_solution(PROBLEM, (f"{'9' * 10000}+1=27",))


def test_a_split_without_problems_is_an_error():
    """1 + 1 = 2 is one problem: it belongs to one split, and the other two have none."""
    tiny = Setting(numbers=2, low=1, high=1, target_low=2, target_high=2)
    home = problems.split_of(Problem((1, 1), 2))
    assert problems.generate(tiny, 0, home, 0) == Problem((1, 1), 2)
    with pytest.raises(ValueError, match="seems to hold no problem"):
        problems.generate(tiny, 0, next(s for s in ("train", "val", "test") if s != home), 0)
