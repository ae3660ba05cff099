"""The gate: bounds by hand, and one rollout of the shipped Countdown model from the engine to a gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.methods import Sampling, SpawnJoin
from apr_jax.model import io
from apr_jax.record import Source
from apr_jax.rl import batches, estimators, gate, groups, rewards, samples, scoring
from apr_jax.rl.scoring import score
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.tasks.task import grades
from apr_jax.tokenizer import Tokenizer

LABELLED = np.array([[True, True, True, False]])
ENGINE = np.array([[-1.0, -2.0, -3.0, 0.0]])


def test_differences_by_hand():
    found = gate.compare(ENGINE + [[0.01, -0.04, 0, 9]], ENGINE, LABELLED, np.array([[True, False, False, True]]))
    assert found.numbers() == pytest.approx(
        dict(labels=3, mean=0.05 / 3, largest=0.04, forks=1, forks_mean=0.01, forks_largest=0.01)
    )
    assert found.where == "row 0, place 1"
    assert gate.compare(ENGINE, ENGINE, LABELLED).numbers() == dict(
        labels=3, mean=0, largest=0, forks=0, forks_mean=0, forks_largest=0
    )


@pytest.mark.parametrize(("dtype", "gap", "passes"), [
    ("float32", 0.9e-4, True), ("float32", 1.1e-4, False), ("float64", 1.1e-4, False), ("bfloat16", 0.04, True),
    ("bfloat16", 0.07, False), ("float32", np.nan, False), ("bfloat16", np.nan, False),
])  # fmt: skip
def test_bounds(dtype, gap, passes):
    """The largest difference in f32, the mean of three in bf16."""
    found = gate.compare(ENGINE + [[0, gap, 0, 0]], ENGINE, LABELLED)
    if passes:
        gate.require(found, dtype)
    else:
        what = "mean" if dtype == "bfloat16" else "largest"
        with pytest.raises(ValueError, match=f"gate: the {what} difference .* allowed in {dtype} .* at row 0, place 1"):
            gate.require(found, dtype)


def test_forks_are_where_control_words_have_mass_whatever_was_drawn():
    """At the temperature of the label: 0.9 % and 1.1 % of the mass in two words, and what cooling makes of 1.1 %."""
    mass = np.array([0.009, 0.011, 0.011])
    logits = np.log(np.stack([mass / 2, mass / 2, (1 - mass) / 2, (1 - mass) / 2], axis=-1))[None]
    drawn = np.array([[0, 2, 3]], np.int32)  # a control word where no fork is decided, others where one is
    temperature = np.array([[1, 1, 0.5]])
    found = scoring._score(jnp.asarray(logits), jnp.asarray(drawn), jnp.asarray(temperature), (0, 1))
    np.testing.assert_array_equal(found.forks, [[False, True, False]])
    cold = logits[0, 2] / 0.5 - np.logaddexp.reduce(logits[0, 2] / 0.5)
    np.testing.assert_allclose(found.logprob, [[*logits[0, [0, 1], [0, 2]], cold[3]]], rtol=1e-5)


def test_draws_depend_on_the_run_and_the_step():
    found = [samples.seed_of(seed, step) for seed in range(20) for step in range(20)]
    assert len(set(found)) == 400 and all(0 <= seed < 2**32 for seed in found)
    assert found[:20] == [samples.seed_of(0, step) for step in range(20)]


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="gate: there is no label to compare"):
        gate.require(gate.compare(ENGINE, ENGINE, LABELLED & False), "float32")


DRAWN = Sampling(temperature=1.0, max_tokens=320)
CONFIG = groups.GroupConfig(length=768, threads=32, rows=12)
SIZES = Sizes(
    problems=4,
    lanes=4,
    rows=16,
    threads=24,
    slots=2560,
    log=3072,
    feed_tiles=4,
    feed_chunk=16,
    prompt=32,
    queue=4,
    outbox=4,
)


@pytest.fixture(scope="module")
def rollout():
    """Two problems of four numbers, two samples each: the model, its words, the questions and the groups."""
    words, model = Tokenizer.from_file(SHIPPED / "compact.model"), io.load(SHIPPED / "apr.safetensors")
    task = Countdown(settings=("four",), problems_per_setting=2)
    questions = task.questions(0)
    protocol = SpawnJoin().protocol(words)
    groups.refuse(DRAWN, protocol.needs)
    asked = [
        Problem(number, np.array(task.prompt(question, words), np.int32), sample, **dataclasses.asdict(DRAWN))
        for number, question in enumerate(questions)
        for sample in range(2)
    ]
    found = list(Engine(model, protocol, SIZES).decode(asked, seed=1))
    return model, words, task, questions, groups.gather(found, DRAWN, CONFIG)


def test_training_scores_the_rollout_as_the_engine_did(rollout):
    model, words, task, questions, found = rollout
    plain, method = estimators.NAMED["p_grpo"], SpawnJoin()
    estimator = dataclasses.replace(plain, entropy=0.01)  # so that groups of one reward are packed too
    assert len(found.trajectories) == 4 and not found.masked
    answers = [task.answer(method.said(t, 0, words), words) for t in found.transcripts]
    pairs = [(questions[t.problem], answer) for t, answer in zip(found.transcripts, answers, strict=True)]
    right = iter(grades(task, [pair for pair in pairs if pair[1] is not None]))
    cases = [rewards.Case(found.alone(i), float(answers[i] is not None and next(right) is True)) for i in range(4)]
    parts = [rewards.Part(rewards.Correctness()), rewards.Part(rewards.TokenPenalty())]
    values = np.concatenate([rewards.total(parts, cases[i : i + 2], 0)[0] for i in (0, 2)])
    batch = batches.pack(found, estimators.advantages(estimator, values, found.group), estimator, CONFIG)
    assert batch.counts.packed.left_out == 0
    assert batch.counts.labels == sum(int((t.log.source == Source.SAMPLED).sum()) for t in found.transcripts)

    control = tuple(words.id(word) for word in (*method.words, method.end))

    @jax.jit
    def scored(params, rows, labels):
        return score(model.graph, params, rows, labels.temperature, control)

    def compared(params):
        scores = scored(params, batch.rows, batch.labels)
        return gate.compare(
            scores.logprob, batch.labels.engine, batch.rows.label >= 0, scores.forks, batch.name
        ), scores

    mismatch, scores = compared(model.params)
    gate.require(mismatch, model.config.dtype)
    assert mismatch.labels == batch.counts.labels and batch.counts.silent_labels == 0
    assert 0 < mismatch.forks < mismatch.labels / 2, "forks are decided at some places"
    spawned = np.isin(batch.rows.label, [words.id(method.words[0])])
    assert np.asarray(scores.forks)[spawned].mean() > 0.9

    # Other parameters than those that drew: refused, by the name of the worst label.
    moved = jax.tree.map(lambda leaf: leaf * 1.01, model.params)
    with pytest.raises(
        ValueError, match="gate: the largest difference .* at problem [01], sample [01], thread .* log entry"
    ):
        gate.require(compared(moved)[0], model.config.dtype)

    value, sums = estimators.loss(plain, scores.logprob, scores.entropy, batch.labels, batch.denominator)
    assert float(value) == pytest.approx(
        -(batch.labels.advantage * batch.labels.weight).sum() / batch.denominator, abs=1e-4
    )
    assert estimators.summarise(sums)["mismatch"] < 1e-5 and float(sums.capped) == 0
