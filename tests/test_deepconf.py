"""DeepConf: the compiled loop against the published rule over full forwards, and its votes."""

import collections

import numpy as np
import pytest

import allocating
from allocating import Client, mean, units
from apr_jax import methods, protocols
from apr_jax.decode import Engine, Sizes, Stop
from apr_jax.evaluate import metrics
from apr_jax.evaluate.select import Candidate, Confident, Weighted
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown import SHIPPED
from test_engine import SIZES

CHOICES = dict(count=6, warmup=3, percentile=60, window=4, best=3)
PROTOCOL = protocols.DeepConf(end=allocating.END, **CHOICES)
OFFLINE = protocols.DeepConf(end=allocating.END, **(CHOICES | dict(warmup=6, percentile=0)))


def sample(
    client: Client, number: int, bar: float, rule: protocols.DeepConf
) -> tuple[list[int], Stop, np.float32, list[float]]:
    """A sample's tokens, why it stopped, its confidence, and those of its tokens."""
    said, confidences, groups, known = [], [], [], []
    while True:
        drawn = client.draw((number,), len(said), tuple(said))
        said.append(drawn.token)
        known.append(-np.sort(drawn.logprobs)[-rule.best :].mean())
        confidences.append(units(known[-1]))
        if len(said) >= rule.window:
            groups.append(mean(sum(confidences[-rule.window :]), rule.window))
        lowest = min(groups, default=mean(sum(confidences), len(said)))
        if drawn.token == rule.end:
            return said, Stop.END, lowest, known
        if groups and groups[-1] < bar:
            return said, Stop.PRUNED, lowest, known
        if len(said) == client.problem.max_tokens:
            return said, Stop.LENGTH, lowest, known


def check(found, rule: protocols.DeepConf) -> collections.Counter:
    client = Client(allocating.problems()[found.problem])
    warm = [sample(client, i, -np.inf, rule) for i in range(rule.warmup)]
    bar = np.percentile([confidence for _, _, confidence, _ in warm], rule.percentile)
    assert found.shared["bar"] == pytest.approx(bar, rel=1e-6)
    right = [*warm, *(sample(client, i, found.shared["bar"], rule) for i in range(rule.warmup, rule.count))]
    for i, (said, stop, confidence, known) in enumerate(right, start=1):
        assert (found.generated(i).tolist(), found.threads[i].stop) == (said, stop), f"problem {found.problem}, {i}"
        assert found.own["trace"][i] == confidence
        np.testing.assert_allclose(found.log.signals[(found.log.thread == i) & found.log.sampled, 0], known, rtol=1e-5)
    assert np.isnan(found.log.signals[~found.log.sampled]).all() and found.log.signals.shape == (len(found.log), 1)
    stages = [max((len(said) for said, *_ in part), default=0) for part in (warm, right[rule.warmup :])]
    assert metrics.critical_path(found) == metrics.recomputed_critical_path(found) == sum(stages)
    method = methods.DeepConf(**{name: getattr(rule, name) for name in ("count", "warmup", "window")})
    votes = [i for i, (_, stop, c, _) in enumerate(right, 1) if stop != Stop.PRUNED and c >= found.shared["bar"]]
    assert list(method.voices(found)) == votes and votes
    assert [method.weight(found, i) for i in votes] == [float(right[i - 1][2]) for i in votes]
    assert all(len(method.confidences(found, i)) == len(right[i - 1][0]) for i in votes)
    below = sum(stop != Stop.PRUNED for _, stop, *_ in right) - len(votes)
    return collections.Counter({stop.name: sum(s == stop for _, s, *_ in right) for stop in Stop}, below=below)


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [(PROTOCOL, SIZES["scarce rows"]), (OFFLINE, SIZES["plenty"])],
    ids=["online", "offline"],
)
def test_samples_stop_where_the_rule_says_so(rule: protocols.DeepConf, sizes: Sizes):
    engine, seen = Engine(allocating.model("float64"), rule, sizes), collections.Counter()
    for found in engine.decode(allocating.problems(), seed=allocating.SEED):
        seen += check(found, rule)
    assert engine.traces == 1
    assert min(seen["END"], seen["LENGTH"]) > 10, seen
    assert (seen["PRUNED"] > 20) == (seen["below"] > 10) == (rule is PROTOCOL), seen


def test_a_vote_weighs_what_the_method_says():
    pool = [
        Candidate("a", False, -0.1, weight=1.0),
        Candidate("b", True, -9.0, weight=2.5),
        Candidate("a", False, -0.1, weight=1.0),
    ]
    assert Weighted().choose(pool) == 1
    assert Weighted().choose([*pool, Candidate("a", False, -0.1, weight=1.0)]) == 0
    assert Weighted().choose([*pool, Candidate("a", False, -0.1, weight=float("nan"))]) == 1, (
        "what is NaN weighs nothing"
    )


# Means, last two, lowest two, lowest tenth of pairs:                 mean  tail  lowest  bottom
POOL = [
    Candidate("a", False, 0.0, confidences=(4.0, 4.0, 1.0, 3.0)),  #      3     2       2       2
    Candidate(None, False, 0.0, confidences=(9.0, 9.0)),  #                               no vote
    Candidate("b", True, 0.0, confidences=(1.0, 1.0, 3.0, 7.0)),  #       3     5       1       1
    Candidate("c", False, 0.0, confidences=(3.5,)),  #                  3.5   3.5     3.5     3.5
    Candidate("a", False, 0.0, confidences=(2.0, 2.0, 2.0, 2.0)),  #      2     2       2       2
    Candidate("a", False, 0.0, confidences=(*[5.0] * 20, 0.0)),  #     4.76   2.5     2.5    3.75
]


@pytest.mark.parametrize(
    ("measure", "keep", "right"),
    [
        ("tail", 0.1, 2),  # the bar is 4.4, of 2, 2, 2.5, 3.5, 5
        ("lowest", 0.1, 3),  # 3.1, of 1, 2, 2, 2.5, 3.5
        ("bottom", 0.1, 5),  # 3.65, of 1, 2, 2, 3.5, 3.75
        ("mean", 0.1, 5),  # 4.26, of 2, 3, 3, 3.5, 4.76
        ("tail", 0.5, 2),  # 2.5: b 5, c 3.5, a 2.5
        ("tail", 1.0, 0),  # a 6.5, b 5, c 3.5
        ("lowest", 0.75, 0),  # 2, without b: a 6.5, c 3.5
        ("mean", 0.9, 0),  # 2.4, of 2, 3, 3, 3.5, 4.76: a 7.76, c 3.5, b 3
    ],
)
def test_the_most_confident_vote(measure, keep: float, right: int):
    assert Confident(keep, measure, window=2).choose(POOL) == right


def test_a_vote_of_the_confident_by_hand():
    assert Confident(1.0, "mean", window=2).choose(POOL[1:2]) is None and Confident().choose([]) is None
    equal = [Candidate(answer, False, 0.0, confidences=(1.0,)) for answer in "ab"]
    assert Confident(1.0).choose(equal) == Confident(1.0).choose(equal[::-1]) == 0, "ties go to the first answer"
    assert Confident(0.1, "bottom").name == "confident_bottom_0.1"
    with pytest.raises(ValueError, match="a candidate has no confidences; take a method that logs them"):
        Confident().choose([Candidate("a", False, 0.0)])
    for change, message in (
        (dict(keep=0), "confident.keep is 0; it must be above 0 and at most 1"),
        (dict(measure="least"), "confident.measure is 'least'; allowed are mean, tail, lowest, bottom"),
        (dict(window=0), "confident.window is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Confident(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(warmup=7), "deep_conf.warmup is 7; it must be from 1 to count, 6"),
        (dict(percentile=101), "deep_conf.percentile is 101; it must be from 0 to 100"),
        (dict(percentile=float("nan")), "deep_conf.percentile is nan"),
        (dict(window=0), "deep_conf.window is 0"),
        (dict(best=0), "best is 0"),
    ],
)
def test_choices_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        methods.DeepConf(**(CHOICES | change))


def test_every_choice_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    assert methods.DeepConf(**CHOICES).protocol(words) == protocols.DeepConf(end=words.id("<end>"), **CHOICES)
