"""Launch, prune, resume: the compiled loop against the rule over full forwards."""

import collections

import numpy as np
import pytest

import allocating
from allocating import OTHERS, WEIGHTS, Client, mean, units
from apr_jax import methods, protocols
from apr_jax.decode import Engine, Stop
from apr_jax.evaluate import metrics
from apr_jax.model import scorer
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown import SHIPPED
from test_engine import SIZES

CHOICES = dict(count=5, keep=2, after=6)
RULES = {
    "scorer": protocols.LaunchPrune(end=allocating.END, **CHOICES, hidden=allocating.HIDDEN),
    "logprob": protocols.LaunchPrune(end=allocating.END, **CHOICES, score="logprob"),
}


def sample(client: Client, number: int, rule: protocols.LaunchPrune) -> tuple[list[int], Stop, np.float32]:
    """What a sample says if nobody prunes it, and its score at the check or at its end before that."""
    said, total, score = [], 0, np.float32(0)
    while True:
        drawn = client.draw((number,), len(said), tuple(said))
        said.append(drawn.token)
        total += units(drawn.logprob)
        if len(said) <= rule.after:
            score = drawn.chance if rule.score == "scorer" else mean(total, len(said))
            score = np.float32(units(score)) / np.float32(allocating.UNITS)
        if drawn.token == rule.end or len(said) == client.problem.max_tokens:
            return said, Stop.END if drawn.token == rule.end else Stop.LENGTH, score


def check(found, rule: protocols.LaunchPrune, weights: scorer.Weights = WEIGHTS) -> collections.Counter:
    client, seen = Client(allocating.problems()[found.problem], weights), collections.Counter()
    whole = [sample(client, i, rule) for i in range(rule.count)]
    kept = sorted(range(rule.count), key=lambda i: (-whole[i][2], i))[: rule.keep]
    for i, (said, stop, score) in enumerate(whole):
        runs_on = len(said) > rule.after or (len(said) == rule.after and stop == Stop.LENGTH)
        if i not in kept and runs_on:
            said, stop = said[: rule.after], Stop.PRUNED
        where = f"problem {found.problem}, sample {i}"
        assert (found.generated(1 + i).tolist(), found.threads[1 + i].stop) == (said, stop), where
        assert found.own["score"][1 + i] == score, where
        seen[stop.name] += 1
        seen["lost before the check"] += i not in kept and not runs_on
        seen["won before the check"] += i in kept and not runs_on
    assert list(methods.LaunchPrune(**CHOICES).voices(found)) == sorted(1 + i for i in kept)
    assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
    return seen


@pytest.mark.parametrize(("score", "sizes"), [("scorer", "one row"), ("logprob", "scarce rows")])
def test_the_best_go_on_as_if_nothing_had_been(score, sizes):
    engine = Engine(
        allocating.model("float64"), RULES[score], SIZES[sizes], scorer=WEIGHTS if score == "scorer" else None
    )
    seen = collections.Counter()
    for found in engine.decode(allocating.problems(), seed=allocating.SEED):
        seen += check(found, RULES[score])
    if score == "scorer":  # weights that are changed, and a program that is not compiled again
        engine.set_scorer(OTHERS)
        for found in engine.decode(allocating.problems()[:9], seed=allocating.SEED):
            check(found, RULES[score], OTHERS)
    assert engine.traces == 1
    assert min(seen[what] for what in ("END", "LENGTH", "lost before the check", "won before the check")) > 5, seen
    assert seen["PRUNED"] > 50, seen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keep=6), "launch_prune.keep is 6; it must be from 1 to count, 5"),
        (dict(after=0), "launch_prune.after is 0"),
        (dict(score="length"), "launch_prune.score is 'length'; allowed are scorer, logprob"),
    ],
)
def test_choices_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        methods.LaunchPrune(**(CHOICES | change))


def test_every_choice_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    made = methods.LaunchPrune(**CHOICES, hidden=7).protocol(words)
    assert made == protocols.LaunchPrune(end=words.id("<end>"), **CHOICES, hidden=7)
