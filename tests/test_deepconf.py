"""DeepConf: the compiled loop against the published rule over full forwards, and its votes."""

import collections

import numpy as np
import pytest

import allocating
from allocating import Client, mean, units
from apr_jax import methods, protocols
from apr_jax.decode import Engine, Sizes, Stop
from apr_jax.evaluate import metrics
from apr_jax.evaluate.select import Candidate, Weighted
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown import SHIPPED
from test_engine import SIZES

CHOICES = dict(count=6, warmup=3, percentile=60, window=4, best=3)
PROTOCOL = protocols.DeepConf(end=allocating.END, **CHOICES)
OFFLINE = protocols.DeepConf(end=allocating.END, **(CHOICES | dict(warmup=6, trace="tail")))


def sample(client: Client, number: int, bar: float, rule: protocols.DeepConf) -> tuple[list[int], Stop, np.float32]:
    """A sample's tokens, why it stopped, and its confidence."""
    said, confidences, groups = [], [], []
    while True:
        drawn = client.draw((number,), len(said), tuple(said))
        said.append(drawn.token)
        confidences.append(units(-np.sort(drawn.logprobs)[-rule.best :].mean()))
        if len(said) >= rule.window:
            groups.append(mean(sum(confidences[-rule.window :]), rule.window))
        lowest = (
            groups[-1] if rule.trace == "tail" and groups else min(groups, default=mean(sum(confidences), len(said)))
        )
        if drawn.token == rule.end:
            return said, Stop.END, lowest
        if groups and groups[-1] < bar:
            return said, Stop.PRUNED, lowest
        if len(said) == client.problem.max_tokens:
            return said, Stop.LENGTH, lowest


def check(found, rule: protocols.DeepConf) -> collections.Counter:
    client = Client(allocating.problems()[found.problem])
    warm = [sample(client, i, -np.inf, rule) for i in range(rule.warmup)]
    bar = np.percentile([confidence for _, _, confidence in warm], rule.percentile)
    assert found.shared["bar"] == pytest.approx(bar, rel=1e-6)
    right = [*warm, *(sample(client, i, found.shared["bar"], rule) for i in range(rule.warmup, rule.count))]
    for i, (said, stop, confidence) in enumerate(right, start=1):
        assert (found.generated(i).tolist(), found.threads[i].stop) == (said, stop), f"problem {found.problem}, {i}"
        assert found.own["trace"][i] == confidence
    stages = [max((len(said) for said, _, _ in part), default=0) for part in (warm, right[rule.warmup :])]
    assert metrics.critical_path(found) == metrics.recomputed_critical_path(found) == sum(stages)
    method = methods.DeepConf(**{name: getattr(rule, name) for name in ("count", "warmup", "window", "trace")})
    votes = [i for i, (_, stop, c) in enumerate(right, 1) if stop != Stop.PRUNED and c >= found.shared["bar"]]
    assert list(method.voices(found)) == votes and votes
    assert [method.weight(found, i) for i in votes] == [float(right[i - 1][2]) for i in votes]
    below = sum(stop != Stop.PRUNED for _, stop, _ in right) - len(votes)
    return collections.Counter({stop.name: sum(s == stop for _, s, _ in right) for stop in Stop}, below=below)


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
    assert min(seen["END"], seen["LENGTH"], seen["below"]) > 10 and (seen["PRUNED"] > 20) == (rule is PROTOCOL), seen


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(warmup=7), "deep_conf.warmup is 7; it must be from 1 to count, 6"),
        (dict(percentile=101), "deep_conf.percentile is 101; it must be from 0 to 100"),
        (dict(percentile=float("nan")), "deep_conf.percentile is nan"),
        (dict(window=0), "deep_conf.window is 0"),
        (dict(trace="mean"), "deep_conf.trace is 'mean'; allowed are lowest, tail"),
        (dict(trace="tail"), "the last group filters ended samples, so warmup must be count, 6"),
        (dict(best=0), "best is 0"),
    ],
)
def test_choices_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        methods.DeepConf(**(CHOICES | change))


def test_every_choice_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    assert methods.DeepConf(**CHOICES).protocol(words) == protocols.DeepConf(end=words.id("<end>"), **CHOICES)
