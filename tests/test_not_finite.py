"""What is not finite ends the problem it is in, by name, and touches nobody else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.decode import Engine, Problem, Sizes, Stop
from apr_jax.evaluate.select import Candidate, Likeliest
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Samples, Sequential

CONFIG = ModelConfig(
    vocabulary=16, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=32, tied=False, dtype="float32"
)
# One place: the problem behind the broken one gets the very slots that it wrote.
SIZES = Sizes(problems=1, lanes=3, rows=3, feed_tiles=1, feed_chunk=2, feed_threshold=1, threads=4, slots=64, page_size=4,
              log=64, log_page_size=4, queue=4, prompt=9, outbox=4)  # fmt: skip
POISON = 7


def broken_model(value: float) -> transformer.Model:
    """A model that is sound but for what it makes of the token POISON."""
    model = transformer.init(CONFIG, jax.random.key(3))
    embed = model.params["embed"].at[POISON, 0].set(value)
    return dataclasses.replace(model, params={**model.params, "embed": embed})


def problem(number: int, *prompt: int) -> Problem:
    return Problem(id=number, prompt=np.array(prompt), max_tokens=5)


@pytest.mark.parametrize(
    ("kernel", "int8_pool", "value"),
    [(True, False, np.nan), (False, False, np.nan), (False, True, np.nan), (True, False, np.inf)],
)
def test_a_problem_that_is_not_finite_ends_alone(kernel, int8_pool, value):
    sizes = dataclasses.replace(SIZES, int8_pool=int8_pool)
    # The root of `Samples` never samples: the prompt is found out where it is fed.
    engine = Engine(broken_model(value), Samples(count=2, end=1), sizes, kernel=kernel)
    good = [problem(0, 2, 3, 4), problem(2, 5, 6, 2, 3)]
    alone = {t.problem: t for t in engine.decode(good)}  # nobody before them left anything behind
    beside = {t.problem: t for t in engine.decode([good[0], problem(1, 2, 3, 4, 5, 6, 2, 3, POISON, 5), good[1]])}
    assert beside[1].stop == Stop.NOT_FINITE
    assert beside[1].threads[0].stop == Stop.NOT_FINITE
    assert not np.any(beside[1].log.sampled)
    for number in (0, 2):
        assert beside[number].stop == alone[number].stop != Stop.NOT_FINITE
        np.testing.assert_array_equal(beside[number].log.token, alone[number].log.token)
        np.testing.assert_array_equal(beside[number].log.logprob, alone[number].log.logprob)


def test_logits_that_are_not_finite_end_their_thread():
    model = transformer.init(CONFIG, jax.random.key(3))
    model = dataclasses.replace(model, params={**model.params, "head": model.params["head"].at[3, 5].set(jnp.nan)})
    (found,) = Engine(model, Sequential(end=1), SIZES).decode([problem(0, 2, 3)])
    assert found.stop == found.threads[0].stop == Stop.NOT_FINITE
    assert len(found.generated(0)) == 1, "the thread goes no further"


def test_selection_does_not_prefer_what_is_not_a_number():
    samples = [Candidate("a", False, logprob) for logprob in (np.nan, -3.0, np.nan, -2.0)]
    assert Likeliest().choose(samples) == 3
    assert Likeliest().choose(samples[::-1]) == 0
    assert Likeliest().choose(samples[:1]) == 0, "the only answer there is"
