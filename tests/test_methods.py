"""Methods are checked where they are configured: numbers by their fields, and samples that would all be the same."""

import dataclasses

import pytest

import forking
from apr_jax.decode import Stop
from apr_jax.evaluate import methods
from apr_jax.evaluate.methods import ControlWords, RolloutConfig
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown import solver as search
from apr_jax.tasks.countdown.problems import Problem
from configs import demo

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("temperature", (NAN, INFINITE, -0.1, 1e39), r"temperature is .*; it must be 0 \(greedy\) or more"),
        ("top_p", (NAN, INFINITE, 0.0, -0.5, 1.1, 1e-50), "top_p is .*; it must be above 0 .* and at most 1"),
        ("top_k", (-1, 2**31, 2.0, True), "top_k is .*; it must be a whole number of 0 .. 2147483647"),
        ("max_tokens", (0, -3, 2**31, 2**70, NAN), "max_tokens is .*; it must be a whole number of 1 .. 2147483647"),
        ("child_max_tokens", (-1, 2**31), "child_max_tokens is .*; it must be a whole number of 0 .. 2147483647"),
        ("samples", (0, 2**31), "samples is .*; it must be a whole number of 1 .. 2147483647"),
        ("max_depth", (0, 2**31), "max_depth is .*; it must be a whole number of 1 .. 2147483647"),
    ],
)
def test_numbers_are_refused_by_field(field, values, message):
    for value in values:
        with pytest.raises(ValueError, match=message):
            RolloutConfig("none", "sequential", **{field: value})


@pytest.mark.parametrize("gain", [NAN, INFINITE, 0.0, -1.0])
def test_gains_are_refused(gain):
    with pytest.raises(ValueError, match=f"gain is {gain}; it must be above 0 and finite"):
        ControlWords(gain=gain)


def test_samples_that_would_be_copies_are_refused():
    """Of self-consistency and best-of-N alike, which read samples; one sample may be greedy, and so may other methods."""
    with pytest.raises(
        ValueError, match="temperature is 0: the 4 samples of each question would be copies of one answer"
    ):
        RolloutConfig("none", "samples")
    with pytest.raises(ValueError, match="top_k is 1: the 3 samples"):
        RolloutConfig("none", "samples", samples=3, temperature=1.0, top_k=1)
    with pytest.raises(ValueError, match="temperature is 1e-40: the 3 samples"):
        RolloutConfig("none", "samples", samples=3, temperature=1e-40)
    for method in ("self_consistency", "best_of_n"):
        with pytest.raises(ValueError, match="temperature is 0: the 3 samples"):
            dataclasses.replace(demo.config().methods[method].rollout, temperature=0.0)
    RolloutConfig("none", "samples", samples=1)
    RolloutConfig("none", "spawn_join")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**32}, "seed is 4294967296; it must be a whole number of 0 .. 4294967295"),
        ({"seed": -1}, "seed is -1; it must be"),
        ({"shown": 0}, "shown is 0; it must be at least 1"),
    ],
)
def test_evaluations_check_their_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(demo.config(), **options)


def test_a_method_that_does_not_fit_its_sizes_is_refused_before_anything_is_decoded():
    config = demo.config()
    rollout = config.methods["self_consistency"].rollout
    small = dataclasses.replace(rollout, samples=8, sizes=dataclasses.replace(rollout.sizes, threads=4))
    with pytest.raises(ValueError, match="sizes.threads = 4: Samples opens 9 threads, so at least 9 are needed"):
        methods.requests(config.task, [], small, load(config.tokenizer))


def test_nothing_is_an_answer_where_the_model_gave_nan():
    """Best-of-N would choose by a mean log-probability that is not a number."""
    config = demo.config()
    words = load(config.tokenizer)
    question = Problem((22, 26, 31, 53), 27)
    steps = search.solve(question.nums, question.target)
    said = words.encode(f"<goal><join>{';'.join(steps)}<end>")
    transcript = forking.played({(): said}, forking.Sequential(end=words.id("<end>")), words.encode("<s>27<go>"))
    for stop, answered in ((Stop.END, True), (Stop.NOT_FINITE, False)):
        ended = dataclasses.replace(transcript, stop=stop)
        ((answer,),) = methods.read(config.task, [question], [ended], words, config.methods["sequential"].rollout)
        assert (answer.sample.answer is not None) == answered == answer.sample.correct
