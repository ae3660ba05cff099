"""Multiplication: every digit and carry against Python's integers, in all formats; what decoding would record; training.

The reader below knows the text only: it takes numbers out of the threads and checks them by closed formulas, not by columns.
"""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fuzz_programs
import oracle
import scripting
from apr_jax.decode import Engine, Sizes
from apr_jax.decode import Problem as Asked
from apr_jax.model.config import ModelConfig
from apr_jax.record import Source
from apr_jax.tasks.multiplication import problems, text
from apr_jax.tasks.multiplication.problems import PRESETS, Problem, Setting
from apr_jax.tasks.multiplication.task import Multiplication
from apr_jax.tasks.multiplication.training import DataConfig
from apr_jax.tasks.script import Fed, Fork, Said, Thread, record
from apr_jax.train import data, packing
from apr_jax.train.data import Dataset
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
        (lambda: Thread((Said("1"),)), "after None; a thread is fed something first, and after each fork"),
        (lambda: Thread((Fed("1"), Fork((Thread((Fed("2"),)),), 1))), r"None after Fork.*fed something first"),
        (lambda: Fork((Thread((Fed("1"),)),), 2), "seen is 2; of 1 threads"),
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


# ---- what decoding would record

REPLAYED = (Problem((21, 43)), Problem((7, 105, 6)), Problem((0, 1000, 38)))
SIZES = Sizes(problems=3, lanes=4, rows=8, feed_tiles=2, feed_chunk=8, threads=12, slots=512, log=768, page_size=4,
              log_page_size=4, queue=4, prompt=32, outbox=4, attention_block=512)  # fmt: skip
MODEL = ModelConfig(
    vocabulary=CODEC.size,
    width=16,
    layers=1,
    heads=1,
    kv_heads=1,
    head_dim=16,
    ffn=16,
    tied=False,
    dtype="float64",
    param_dtype="float64",
)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "sequential"])
def test_the_engine_records_the_same(method):
    """A model that says just what the demonstrations do, in the published protocol."""
    expected = [demonstrated(problem, method, number) for number, problem in enumerate(REPLAYED)]
    engine = Engine(
        fuzz_programs.random_model(MODEL),
        scripting.replayed(text.METHODS[method].protocol(CODEC), expected),
        SIZES,
        kernel=False,
    )
    asked = [
        Asked(number, np.array(CODEC.encode(text.prompt(problem)), np.int32), max_tokens=200)
        for number, problem in enumerate(REPLAYED)
    ]
    found = sorted(engine.decode(asked), key=lambda each: each.problem)
    for each, right in zip(found, expected, strict=True):
        taken = {name: getattr(each.log, name) for name in ("logprob", "behaviour_logprob")}  # demonstrations have none
        right = dataclasses.replace(right, log=dataclasses.replace(right.log, **taken))
        # The script's token counts as one that a rule put in the place of the model's.
        source = np.where(each.log.source == Source.REWRITTEN, Source.SAMPLED, each.log.source)
        oracle.compare(dataclasses.replace(each, log=dataclasses.replace(each.log, source=source)), right)
        np.testing.assert_array_equal(each.log.depth, right.log.depth)
        assert not text.METHODS[method].format_errors(each)


# ---- training data


def test_the_data_of_all_methods_are_of_the_same_problems(tmp_path):
    asked, labels = {}, {}
    for method in METHODS:
        config = DataConfig(
            str(tmp_path / method), method, Setting((2, 3)), train=6, held_out=3, length=320, threads=16
        )
        told = []
        counts = data.make(config, told.append)
        found = Dataset.open(config)
        assert found.vocabulary == CODEC.size and counts["train"].left_out == 0
        members = [i for ids in found.members.values() for i in ids]
        assert sorted([*members, *map(CODEC.id, ("<pad>", "<unk>", "<s>", "</s>", "\n"))]) == list(range(CODEC.size))
        rows = found.train.read(np.arange(len(found.train)))
        labels[method] = (rows.label[rows.weight > 0]).size
        words = "".join(CODEC.decode(row.tolist()) for row in rows.token)
        asked[method] = sorted(re.findall(r"<s>[^<]*<go>", words))
    assert all(len(each) == 6 and each == asked["parallel"] for each in asked.values())
    assert labels["sequential"] < labels["parallel"] < labels["threadweaver"]
