"""Draws by block sums against a plain cumulative sum and a plain sort in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.decode.sampling import argmax, sample

# 1000 has no block of 256 or 128; 16 is one block.
VOCABULARIES = (16, 64, 1000)
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
draw = jax.jit(sample)


def kept(scaled: np.ndarray, top_k: int, top_p: float) -> tuple[np.ndarray, float]:
    """Which tokens truncation leaves, tokens tied with the last one included, and how near `top_p` was to another answer."""
    order = np.sort(scaled)[::-1]
    keep = scaled >= order[min(top_k or len(scaled), len(scaled)) - 1]
    if top_p >= 1:
        return keep, np.inf
    values = np.unique(scaled[keep])[::-1]
    mass = np.cumsum([np.sum(np.exp(scaled[scaled == value] - order[0])) for value in values])
    mass /= mass[-1]
    return keep & (scaled >= values[np.argmax(mass >= top_p)]), np.min(np.abs(mass - top_p))


def check(logits, uniform, temperature, top_k, top_p, slack: float) -> None:
    """Compare one call with the plain way, row by row; `slack` is what rounding may move sums of probabilities by."""
    shape = logits.shape[:1]
    parameters = [np.broadcast_to(x, shape) for x in (np.float32(temperature), np.int32(top_k), np.float32(top_p))]
    token, logprob, behaviour = map(np.asarray, draw(logits, jnp.asarray(uniform), *map(jnp.asarray, parameters)))
    wide = np.asarray(logits, np.float64)
    skipped = 0
    for row, (t, k, p) in enumerate(zip(*parameters, strict=True)):
        x, chosen = wide[row], token[row]
        log_softmax = x - x.max() - np.log(np.sum(np.exp(x - x.max())))
        np.testing.assert_allclose(logprob[row], log_softmax[chosen], atol=10 * slack, rtol=10 * slack)
        if t <= 0:
            assert chosen == np.argmax(x) and behaviour[row] == 0
            continue
        # In the dtype of the logits, so that ties are the same.
        scaled = np.asarray(np.asarray(logits)[row] / t.astype(logits.dtype), np.float64)
        keep, margin = kept(scaled, int(k), float(p))
        if margin < slack:
            skipped += 1
            continue
        weight = np.where(keep, np.exp(scaled - scaled.max()), 0)
        probability = weight / weight.sum()
        above = np.cumsum(probability)
        goal = float(uniform[row])
        assert keep[chosen], f"row {row}: token {chosen} is not among those that truncation leaves"
        assert above[chosen] - probability[chosen] - slack <= goal <= above[chosen] + slack, f"row {row}: {chosen}"
        if slack < 1e-9:
            assert chosen == np.argmax(above > goal)
        np.testing.assert_allclose(behaviour[row], np.log(probability[chosen]), atol=10 * slack, rtol=10 * slack)
    assert skipped <= 0.1 * len(token), "too many cases at the edge of top_p; the test would say nothing"


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize(("dtype", "slack"), [("float64", 1e-12), ("float32", 4e-6)])
def test_rows_of_all_kinds(vocabulary, dtype, slack):
    """Greedy and sampled, truncated either way or both, in one call: rows do not touch each other."""
    rng = np.random.default_rng(vocabulary)
    rows = 400
    logits = jnp.asarray(rng.normal(scale=3, size=(rows, vocabulary)), dtype)
    uniform = rng.random(rows, np.float32)
    uniform[: rows // 4] = rng.choice([0, 1e-30, 1e-7, 1 - 1e-6, BELOW_ONE], rows // 4)
    temperature = rng.choice([0.0, 0.5, 1.0, 1.5], rows)
    top_k = rng.choice([0, 1, 3, 10, vocabulary, vocabulary + 5], rows)
    top_p = rng.choice([1.0, 0.1, 0.5, 0.9, 0.999], rows)
    check(logits, uniform, temperature, top_k, top_p, slack)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_ties_are_kept_together_and_greedy_takes_the_first(vocabulary):
    rng = np.random.default_rng(1)
    rows = 200
    logits = jnp.asarray(rng.integers(-2, 3, (rows, vocabulary)), jnp.float64)
    arguments = rng.random(rows, np.float32), rng.choice([0.0, 1.0], rows), rng.choice([0, 1, 4], rows)
    check(logits, *arguments, np.where(rng.random(rows) < 0.5, 1.0, 0.55), 1e-12)
    np.testing.assert_array_equal(argmax(logits), np.argmax(logits, axis=1))


def test_all_logits_equal():
    logits = jnp.zeros((5, 64), jnp.float32)
    uniform = np.float32([0, 0.25, 0.5, 0.999, BELOW_ONE])
    token, logprob, behaviour = draw(logits, uniform, jnp.ones(5), jnp.zeros(5, jnp.int32), jnp.ones(5))
    np.testing.assert_array_equal(token, [0, 16, 32, 63, 63])
    np.testing.assert_allclose(logprob, -np.log(64), rtol=1e-6)
    np.testing.assert_allclose(behaviour, -np.log(64), rtol=1e-6)


@pytest.mark.parametrize("vocabulary", [64, 1000])
def test_rounding_never_draws_a_token_without_weight(vocabulary):
    """Uniforms at every edge of the cumulative distribution and a few floats beside it, most tokens impossible.

    A cumulative sum in f32 is not the same number before and after a token of weight 0.
    """
    rng = np.random.default_rng(5)
    found = []
    for _ in range(40):
        likely = rng.choice(vocabulary, 24, replace=False)
        logits = np.full(vocabulary, -1e4, np.float32)
        logits[likely] = rng.normal(scale=2, size=24)
        probability = np.exp(np.float64(logits) - logits.max())
        edges = np.float32(np.cumsum(probability)[np.sort(likely)][:-1] / probability.sum())
        near = [edges]
        for direction in (np.float32(0), np.float32(2)):
            beside = edges
            for _ in range(3):
                beside = np.nextafter(beside, direction)
                near.append(beside)
        uniform = np.minimum(np.concatenate(near), BELOW_ONE)
        count = len(uniform)
        rows = jnp.asarray(np.broadcast_to(logits, (count, vocabulary)))
        token, _, behaviour = draw(rows, uniform, jnp.ones(count), jnp.zeros(count, jnp.int32), jnp.ones(count))
        token, behaviour = np.asarray(token), np.asarray(behaviour)
        found.extend(set(token[~np.isin(token, likely)]))
        above = np.cumsum(probability / probability.sum())
        assert np.all(
            np.abs(uniform - np.clip(uniform, above[token] - (probability / probability.sum())[token], above[token]))
            < 1e-5
        )
        assert np.all(np.isfinite(behaviour)), "a draw with behaviour log-probability -inf"
    assert not found, f"tokens without weight were drawn: {found}"


@pytest.mark.parametrize("truncation", [(0, 1.0), (6, 1.0), (0, 0.8), (6, 0.8)])
def test_frequencies(truncation):
    """Pearson's statistic of 40,000 draws against the truncated distribution, below its mean plus six deviations."""
    top_k, top_p = truncation
    rng = np.random.default_rng(2)
    rows, vocabulary, temperature = 40_000, 16, 0.75
    logits = rng.normal(size=vocabulary).astype(np.float32)
    every = lambda value, dtype: jnp.full(rows, value, dtype)  # noqa: E731
    uniform = jax.random.uniform(jax.random.key(0), (rows,), jnp.float32)
    token, _, _ = draw(
        jnp.broadcast_to(logits, (rows, vocabulary)), uniform,
        every(temperature, jnp.float32), every(top_k, jnp.int32), every(top_p, jnp.float32),
    )  # fmt: skip
    scaled = np.float64(logits) / temperature
    keep, _ = kept(scaled, top_k, top_p)
    expected = np.where(keep, np.exp(scaled), 0)
    expected *= rows / expected.sum()
    counts = np.bincount(np.asarray(token), minlength=vocabulary)
    assert not counts[~keep].any()
    freedom = keep.sum() - 1
    statistic = np.sum((counts[keep] - expected[keep]) ** 2 / expected[keep])
    assert statistic < freedom + 6 * np.sqrt(2 * freedom), (statistic, freedom)
