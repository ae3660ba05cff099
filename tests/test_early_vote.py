"""Self-consistency that ends early: which samples, where, and that the vote is the one over all of them."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import forking
import oracle
import reference_model
import replaying
from apr_jax.decode import Engine, Problem, Stop
from apr_jax.evaluate import metrics
from apr_jax.evaluate.select import Candidate, First, Likeliest, Majority, Verifier, Weighted
from apr_jax.model import transformer
from apr_jax.protocols import EarlyVote, Samples
from test_engine import CONFIG, SIZES
from test_native import need_kernel

SEED, COUNT, ANSWER, END = 5, 5, 8, forking.Words().end
PROTOCOL = EarlyVote(COUNT, END, ANSWER)


@functools.cache
def model(dtype: str) -> transformer.Model:
    """One that likes few words, and soon ends an answer that it began, so that samples often agree."""
    table = np.full((16, 16), -6.0)
    table[:, [9, 10]], table[:, ANSWER], table[:, END] = 0, 1.5, -0.5
    table[ANSWER, [ANSWER, END]] = -3, 1.5
    config = dataclasses.replace(
        CONFIG, dtype=dtype, param_dtype=dtype, head_dim=CONFIG.head_dim if dtype == "float64" else 16
    )
    biased = forking.biased_model(config, 0, table, 1.0)
    return transformer.Model(biased.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), biased.params))


@functools.cache
def forward(dtype: str) -> reference_model.Forward:
    return reference_model.transformer(model(dtype).params, model(dtype).config)


def problems() -> list[Problem]:
    rng = np.random.default_rng(4)
    drawn = [
        Problem(i, rng.integers(0, 16, rng.integers(1, 7)), temperature=float(rng.choice([0.5, 1.0, 1.25])),
                max_tokens=int(rng.integers(4, 24)))
        for i in range(60)
    ]  # fmt: skip
    return [
        *drawn,
        Problem(60, np.array([1]), temperature=0.0, max_tokens=20),
        Problem(61, np.array([1]), max_tokens=1),
    ]


def vote(tokens: list[int], stop: Stop) -> tuple[int, ...] | None:
    """The answer of a sample: what stands after its last answer word, before its end."""
    if stop != Stop.END or ANSWER not in tokens:
        return None
    return tuple(tokens[len(tokens) - tokens[::-1].index(ANSWER) : -1])


def certain(votes: list[tuple[int, ...] | None]) -> int:
    """How many of the votes, in this order, make the majority certain; all of them if fewer do not."""
    for seen in range(1, len(votes) + 1):
        counts = sorted(collections.Counter(v for v in votes[:seen] if v is not None).values(), reverse=True)
        if counts and counts[0] > sum(counts[1:2]) + len(votes) - seen:
            return seen
    return len(votes)


def check(found, right) -> tuple[bool, bool]:
    """Assert that samples are those of `right` up to where the majority is certain; returns whether that was early, or a tie."""
    said = [right.generated(i).tolist() for i in range(1, 1 + COUNT)]
    votes = [vote(tokens, right.threads[1 + i].stop) for i, tokens in enumerate(said)]
    order = sorted(range(COUNT), key=lambda i: (len(said[i]), i))
    enough = certain([votes[i] for i in order])
    last = len(said[order[enough - 1]])
    for i in range(COUNT):
        arrived = i in order[:enough]
        assert (found.threads[1 + i].stop == Stop.KILLED) == (not arrived)
        # A sample that is killed has sampled from all rows up to the clock of the decision, and from no other.
        assert found.generated(1 + i).tolist() == said[i][: len(said[i]) if arrived else last]
    counts = collections.Counter(v for v in votes if v is not None).most_common(2)
    early, tie = enough < COUNT, len({n for _, n in counts}) < len(counts)
    if early:
        now = collections.Counter(votes[i] for i in order[:enough] if votes[i] is not None)
        assert now.most_common(1)[0][0] == counts[0][0], "the vote is that of all samples"
    return early, tie


@pytest.mark.parametrize("sizes", ["one row", "scarce rows"])
def test_samples_end_when_the_majority_is_certain_and_not_before(sizes):
    seen = collections.Counter()
    for found in Engine(model("float64"), PROTOCOL, SIZES[sizes]).decode(problems(), seed=SEED):
        plain = forking.Samples(COUNT, END)
        right = oracle.run(forward("float64"), problems()[found.problem], plain, SEED)
        early, tie = check(found, right)
        seen.update({"early": early, "tie": tie, "all": not early})
        if not early:
            oracle.compare(found, right)
        assert metrics.critical_path(found) <= metrics.critical_path(right)
    assert seen["early"] > 20 and seen["tie"] > 0 and seen["all"] > 5, seen


def test_the_kernels_end_the_same_samples():
    """What an engine in float32 gives without an early end is replayed; with one it is the beginning of that."""
    need_kernel()
    few, plain = problems()[:20], Samples(COUNT, END)
    engines = [Engine(model("float32"), each, SIZES["scarce rows"], kernel=True) for each in (plain, PROTOCOL)]
    whole, early = ({found.problem: found for found in engine.decode(few, seed=SEED)} for engine in engines)
    for number, right in whole.items():

        def again(choose, number=number):
            samples = forking.Samples(COUNT, END)
            return oracle.run(forward("float32"), few[number], samples, SEED, choose=choose)

        replaying.replay(right, again, replaying.F32)
        check(early[number], right)


def test_what_is_full_is_named():
    sizes = dataclasses.replace(SIZES["scarce rows"], slots=24, attention_block=24, log=96)
    stops = collections.Counter(
        found.stop for found in Engine(model("float64"), PROTOCOL, sizes).decode(problems(), seed=SEED)
    )
    assert set(stops) <= {Stop.END, Stop.POOL_FULL, Stop.LOG_FULL} and len(stops) > 1 and stops.total() == 62, stops


# ---- votes of weight, and smaller budgets


def candidates(*rows):
    return [Candidate(answer, correct, logprob) for answer, correct, logprob in rows]


POOL = candidates(
    (None, False, 0.0),
    ("a", False, -3.0),
    ("b", True, -0.5),
    ("a", False, -2.0),
    ("c", False, float("nan")),
    ("d", False, -0.5),
)


def test_votes_have_weights():
    assert Majority().choose(POOL) == 1
    assert Weighted().choose(POOL) == 2, "e^-0.5 is more than e^-3 + e^-2; of b and d b occurs first"
    assert Weighted().choose(POOL[4:5]) == 0, "what weighs nothing is better than no answer"
    assert Weighted().choose(POOL[:1]) is None and Weighted().choose([]) is None
    ties = candidates(("x", False, np.log(0.1)), ("y", True, np.log(0.6)), *[("x", False, np.log(0.1))] * 5)
    assert Weighted().choose(ties) == 0


def test_smaller_budgets_are_read_off_the_same_pool():
    rules = [First(count, rule) for rule in (Majority(), Likeliest(), Verifier()) for count in (1, 2, 3, 99)]
    assert [rule.name for rule in rules[:2]] == ["majority_of_1", "majority_of_2"]
    assert [rule.oracle for rule in rules] == [False] * 8 + [True] * 4
    assert [rule.choose(POOL) for rule in rules] == [None, 1, 1, 1, None, 1, 2, 2, None, 1, 2, 2]
    with pytest.raises(ValueError, match=r"first.count is 0; at least 1 candidate is needed"):
        First(0, Majority())
    found = metrics.of_fewer([POOL, POOL[1:5]])
    assert found["pass_at"] == pytest.approx([np.mean([1 - (6 - k) / 6, 1 - (4 - k) / 4]) for k in range(1, 5)])
    assert found["cons_at"] == [0.0, 0.0, 0.0, 0.0] and metrics.of_fewer([]) == {"pass_at": [], "cons_at": []}
