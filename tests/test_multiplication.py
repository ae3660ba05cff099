"""Multiplication: every digit and carry against Python's integers, in all formats; what decoding would record; training.

The reader below knows the text only: it takes numbers out of the threads and checks them by closed formulas, not by columns.
"""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.tasks.multiplication import problems, text
from apr_jax.tasks.multiplication.problems import PRESETS, Problem, Setting
from apr_jax.tasks.multiplication.task import Multiplication
from apr_jax.tasks.multiplication.training import DataConfig
from apr_jax.tasks.script import record
from apr_jax.train import packing
from experiments import measure_multiplication

CODEC = text.vocabulary()
METHODS = tuple(text.METHODS)
PAIRS = r"((?:\d[a-i])+)"
HEADERS = re.compile(rf"(?:^<spawn>(\d)<go>|^\n<Thread>\n(\d):|^<Path>\n(\d):|^<think(\d)>|\|(\d))(\d){PAIRS}")


def demonstrated(problem, method, number=0):
    return record(text.render(problem, method), CODEC.encode, number)


def value(pairs):
    return int(pairs[-2::-2])


def carries(pairs):
    return ["abcdefghi".index(each) for each in pairs[1::2]]


def text_words(written):
    return re.findall(r"<[^>]*>|.", written)


def check(problem, transcript):
    """Read the threads of a demonstration, and check every number in them."""
    texts = [CODEC.decode(transcript.tokens(i)) for i in range(len(transcript.threads))]
    root = CODEC.decode(transcript.generated(0))
    children = [HEADERS.findall(each) for each in texts[1:]]
    groups = [*itertools.chain.from_iterable(children), *HEADERS.findall(root)]
    partials = [(int("".join(group[:5])), int(group[5]), group[6]) for group in groups]
    totals, left = re.findall(f"={PAIRS}", root), problem.factors[0]
    assert len(totals) == len(problem.factors) - 1
    for factor, total in zip(problem.factors[1:], totals, strict=True):
        mine, partials = partials[: len(str(factor))], partials[len(str(factor)) :]
        for place, (told, digit, pairs) in enumerate(mine, start=1):
            assert told == place and digit == factor // 10 ** (place - 1) % 10
            assert value(pairs) == left * digit and len(pairs) == 2 * (len(str(left)) + 1)
            until = [10 ** (i + 1) for i in range(len(str(left)))]
            assert carries(pairs) == [*(left % each * digit // each for each in until), 0]
        rows = [value(pairs) * 10**i for i, (_, _, pairs) in enumerate(mine)]
        until = [10 ** (i + 1) for i in range(len(total) // 2)]
        assert carries(total) == [sum(row % each for row in rows) // each for each in until]
        left *= factor
        assert value(total) == left and len(total) == 2 * len(str(left))
    assert not partials and left == math.prod(problem.factors)
    assert text.parse_answer(root) == str(left)


# ---- problems


def test_splits_are_disjoint_and_seeded():
    setting = Setting((2, 3), 12)
    found = {split: [problems.generate(setting, 3, split, i) for i in range(80)] for split in ("train", "val", "test")}
    sets = {split: {tuple(sorted(p.factors)) for p in drawn} for split, drawn in found.items()}
    for one, other in itertools.combinations(sets, 2):
        assert sets[one] and not sets[one] & sets[other]
    for split, drawn in found.items():
        assert all(2 <= len(p.factors) <= 3 and max(p.factors) <= 12 for p in drawn)
        assert {problems.split_of(Problem(p.factors[::-1])) for p in drawn} == {split}
    assert list(itertools.islice(problems.stream(setting, 3, "train", 7), 5)) == found["train"][7:12]
    assert problems.generate(setting, 4, "train", 7) != found["train"][7]


def test_all_lengths_and_integers_occur():
    drawn = [problems.generate(PRESETS["two_to_eight"], 0, "train", i) for i in range(400)]
    assert {len(p.factors) for p in drawn} == set(range(2, 9))
    integers = [factor for p in drawn for factor in p.factors]
    assert max(integers) > 990 and min(integers) < 10 and max(integers) <= 1000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Problem((3,)), r"factors: 1 integers \[3\]; give 2 to 8"),
        (lambda: Problem((3, 10_000)), "factors: 10000 is not an integer of 0 .. 9,999"),
        (lambda: Problem((3, True)), "factors: True is not an integer"),
        (lambda: Setting((1, 3)), r"factors: \(1, 3\) must satisfy 2 <= low <= high <= 8"),
        (lambda: Setting(largest=10_000), "largest is 10000"),
        (lambda: problems.generate(Setting((2, 2), 0), 0, "val", 0), "seems to hold no problem"),
        (lambda: problems.benchmark(Setting((2, 2), 1), 0, problems.split_of(Problem((0, 1))), 9), "9 problems wanted"),
        (lambda: problems.generate(Setting(), 0, "dev", 0), "split: 'dev' is not one of train, val, test"),
        (lambda: text.render(Problem((2, 3)), "tree"), "method is 'tree'"),
        (lambda: DataConfig(method="tree"), "method is 'tree'"),
        (lambda: DataConfig(train=0), "train is 0"),
        (lambda: Multiplication(settings=("huge",)), "settings: 'huge' is not one of two_to_five"),
    ],
)
def test_what_is_wrong_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


# ---- the text


@settings(max_examples=40)
@given(st.lists(st.integers(0, 9_999), min_size=2, max_size=8), st.sampled_from(METHODS))
def test_every_digit_and_carry(factors, method):
    problem = Problem(tuple(factors))
    transcript = demonstrated(problem, method)
    assert CODEC.id("<unk>") not in transcript.log.token
    check(problem, transcript)
    packed, _, count = packing.pack([transcript], 4096, 64)
    assert count.labels == transcript.log.sampled.sum() and (packed.weight > 0).sum() == count.labels


@pytest.mark.parametrize("factors", [(0, 0), (0, 1000, 7), (999, 0, 1000), (9999,) * 8, (10, 10), (1, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_the_edges(factors, method):
    check(Problem(factors), demonstrated(Problem(factors), method))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("=3a0b9a<end>", "903"),
        ("=0a<end>", "0"),
        ("=1a0a0a<end>", "1"),
        ("=3a0b9a</Conclusion></Parallel><end>", "903"),
        ("=1a<wait>=3a0b9a<end>", "903"),
        ("=3a0b9a", None),
        ("=3a0b9a<end>5", None),
        ("=3a0b9<end>", None),
        ("=<end>", None),
        ("", None),
    ],
)
def test_answers(said, answer):
    assert text.parse_answer(said) == answer


def test_the_task():
    task = Multiplication(settings=("two_to_five", "published"), problems_per_setting=5)
    questions = task.questions(1)
    assert len(set(questions)) == 10 and {problems.split_of(q) for q in questions} == {"test"}
    assert all(5 <= len(q.factors) <= 8 for q in questions[5:])
    for question in questions:
        prompt = task.prompt(question, CODEC)
        integers = re.findall(f"[A-H]{PAIRS}", CODEC.decode(prompt))
        assert tuple(map(value, integers)) == question.factors
        right = math.prod(question.factors)
        assert task.about(question)["product"] == str(right)
        for method in METHODS:
            transcript = demonstrated(question, method)
            said = text.METHODS[method].said(transcript, 0, CODEC)
            assert text.METHODS[method].voices(transcript) == [0]
            assert task.answer(said, CODEC) == str(right)
        assert task.grade([(question, str(right)), (question, str(right + 1)), (question, "")]) == [True, False, False]


# ---- threads


def test_visibility_and_clocks_by_hand():
    """21 x 43: the children see the prompt and the root up to `<wait>`, the root then sees both children."""
    transcript = demonstrated(Problem((21, 43)), "parallel")
    packed, _, _ = packing.pack([transcript], 64, 4)
    length = int((packed.owner >= 0).sum())
    token, position, clock, owner, label = (
        getattr(packed, name)[0, :length] for name in ("token", "position", "clock", "owner", "label")
    )
    words = lambda ids: [CODEC.decode([i]) for i in ids]
    root = text_words("<s>A1a2aB3a4a<go>B<spawn>1<spawn>2<wait>")
    first, second = text_words("<spawn>1<go>33a6a0a<end>"), text_words("<spawn>2<go>44a8a0a<end>")
    rest = text_words("<go>=3a0b9a")
    assert words(token) == root + first + second + rest
    part = np.repeat([0, 1, 2, 3], [len(each) for each in (root, first, second, rest)])
    allowed = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]], bool)  # who reads, by part
    expected = allowed[part][:, part] & np.tri(length, dtype=bool)
    sees = packed.sees[0][owner][:, owner] & (clock[None] < clock[:, None] + (owner[:, None] == owner[None]))
    np.testing.assert_array_equal(sees, expected)
    start, end = 1 + len(root), 1 + len(root) + len(first)
    children = [*range(start, end)] * 2
    assert clock.tolist() == [*range(1, start), *children, *range(end, end + len(rest))]
    assert position.tolist() == (clock - 1).tolist()
    learned = [CODEC.decode([i]) if i >= 0 else "" for i in label]
    thinks = lambda header, child: [*[""] * (header - 1), *child[header:], ""]  # its end predicts nothing
    assert learned == [*thinks(12, root), *thinks(3, first), *thinks(3, second), *rest[1:], "<end>"]


def test_the_critical_path_by_hand():
    """Generated tokens: B and two messages with their words and `<wait>`, 8 of a child, then `=`, three pairs, `<end>`."""
    parallel, sequential = (demonstrated(Problem((21, 43)), name) for name in ("parallel", "sequential"))
    assert parallel.log.depth.max() == 6 + 8 + 1 + 6 + 1
    assert sequential.log.depth.max() == sequential.log.sampled.sum() == 1 + 2 * (2 + 7) + 7 + 1


def test_the_path_is_half_as_long_again_from_nine_digits_on():
    samples = [problems.generate(Setting((2, 8)), 0, "val", i) for i in range(60)]
    found = measure_multiplication.paths(samples)
    digits = np.array([len(str(math.prod(p.factors))) for p in samples])
    speed = found[:, METHODS.index("sequential")] / found[:, METHODS.index("parallel")]
    assert speed[digits >= 9].mean() > 1.5 and speed[digits >= 18].mean() > 1.65
    lines = measure_multiplication.table(samples)
    assert len(lines) > 5 and sum(int(line.split()[1]) for line in lines[1:]) == 60
