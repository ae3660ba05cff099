"""Statistics of studies, beside scipy's and cases worked out by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from apr_jax.evaluate import statistics


def test_one_seed_is_the_paired_bootstrap_of_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, 60), rng.normal(0, 1, 60)
    found = statistics.difference(a[None], b[None])
    mean = lambda x, axis: x.mean(axis=axis)
    theirs = scipy.stats.bootstrap((a - b,), mean, n_resamples=10_000, method="percentile", random_state=2)
    assert found.mean == pytest.approx((a - b).mean())
    assert found.error == pytest.approx(theirs.standard_error, rel=0.03)
    assert (found.low, found.high) == pytest.approx(theirs.confidence_interval, abs=0.02)
    # For means of 60 the normal approximation holds: the p of the paired t-test is near.
    assert found.p == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_pairing_counts():
    """Two arms that differ by a constant on problems of very different difficulty: no doubt about the difference."""
    hard = np.linspace(-50, 50, 40)
    found = statistics.difference((hard + 0.5)[None], hard[None])
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5)) and found.error < 1e-12


def test_seeds_are_drawn_with_the_right_spread():
    """One problem alone: the standard error is the textbook one of a difference of means, not (S - 1) / S of its square."""
    a, b = np.array([[1.0], [2.0], [4.0]]), np.array([[0.0], [3.0]])
    wanted = np.sqrt(a.var(ddof=1) / 3 + b.var(ddof=1) / 2)
    assert statistics.difference(a, b, count=40_000).error == pytest.approx(wanted, rel=0.02)


def test_problems_and_seeds_together():
    """Every draw of a small case, enumerated: 2 seeds of one arm, 3 problems."""
    a, b = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), np.array([[0.0, 1.0, 1.0]])
    found = []
    for columns in itertools.product(range(3), repeat=3):
        by_seed = a[:, columns].mean(axis=1)
        for chosen in itertools.product(range(2), repeat=2):
            stretched = by_seed.mean() + (by_seed[list(chosen)].mean() - by_seed.mean()) * np.sqrt(2)
            found.append(stretched - b[0, columns].mean())
    given = statistics.difference(a, b, count=40_000)
    assert given.error == pytest.approx(np.std(found), rel=0.02)
    assert given.mean == pytest.approx(0.5 - 2 / 3)


def test_equivalence_is_two_one_sided_tests():
    values = np.random.default_rng(3).normal(0, 1, 500)
    values += 0.05 - values.mean()
    found = statistics.difference(values[None], np.zeros((1, 500)), margin=0.15)
    above = scipy.stats.ttest_1samp(values, 0.15, alternative="less").pvalue
    below = scipy.stats.ttest_1samp(values, -0.15, alternative="greater").pvalue
    assert found.equivalence == pytest.approx(max(above, below), abs=0.003) and found.equivalence < 0.05
    assert statistics.difference(values[None], np.zeros((1, 500))).equivalence == 1


def test_holm():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; the last may not be below the one before.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0] and statistics.holm([]) == []


def test_the_smallest_resolvable_difference():
    """1,000 problems at 75 % and three seeds against three: the power of the z-test at that difference is what was asked for."""
    error = np.sqrt(2 * 0.75 * 0.25 / 1000)
    found = statistics.resolvable(error)
    assert found == pytest.approx((1.959964 + 0.841621) * error)
    z = scipy.stats.norm
    assert z.sf(z.isf(0.025) - found / error) + z.cdf(-z.isf(0.025) - found / error) == pytest.approx(0.8, abs=1e-3)


def test_arms_with_other_problems_are_refused():
    with pytest.raises(ValueError, match="the same problems"):
        statistics.difference(np.zeros((1, 3)), np.zeros((1, 4)))


def test_the_level_holds():
    """No difference between arms of three seeds that vary: at 5 % about one in twenty is taken for one, and not one in six."""
    rng, wrong, trials = np.random.default_rng(5), 0, 200
    for trial in range(trials):
        a, b = (rng.normal(0, 1, (3, 30)) + rng.normal(0, 0.2, (3, 1)) for _ in range(2))
        wrong += statistics.difference(a, b, count=500, seed=trial).p < 0.05
    assert wrong / trials < 0.11
