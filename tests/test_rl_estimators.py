"""Advantages and losses against numbers worked out by hand, and against those that trl computes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.rl import estimators
from apr_jax.rl.estimators import NAMED, Estimator, Labels, advantages, denominator, loss, trajectory_ratios

REWARDS = np.array([1.0, 0, 0, 1, 1, 1, 0.3, 0.3, 0.3])
GROUP = np.array([5, 5, 5, 2, 2, 2, 9, 9, 9])


def one(name: str, rewards, group, **changes) -> list[float]:
    found = advantages(dataclasses.replace(NAMED[name], epsilon=0, **changes), np.array(rewards), np.array(group))
    assert found.shape == (len(rewards), 1)
    return found[:, 0].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # of 1, 0, 0: mean 1/3, population std sqrt(2)/3, sample std 1/sqrt(3)
        ("grpo", [math.sqrt(2), -1 / math.sqrt(2), -1 / math.sqrt(2)]),
        ("dapo", [math.sqrt(2), -1 / math.sqrt(2), -1 / math.sqrt(2)]),
        ("gspo", [math.sqrt(2), -1 / math.sqrt(2), -1 / math.sqrt(2)]),
        ("dr_grpo", [2 / 3, -1 / 3, -1 / 3]),
        ("p_grpo", [2 / 3, -1 / 3, -1 / 3]),
        ("pa_grpo", [2 / 3, -1 / 3, -1 / 3]),
        ("rloo", [1, -1 / 2, -1 / 2]),
        ("papo", [x / REWARDS.std() for x in (2 / 3, -1 / 3, -1 / 3)]),
    ],
)
def test_advantages_by_hand(name, expected):
    found = one(name, REWARDS, GROUP)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-12)
    assert found[3:] == [0.0] * 6, "where max = min the advantage is 0 exactly: 0.3 - mean(0.3, 0.3, 0.3) is not"


def test_what_is_exactly_zero():
    # A spread that rounding would make of three equal numbers must not be blown up by a std near 0.
    assert one("grpo", [0.1] * 3, [0] * 3) == [0, 0, 0]
    assert one("rloo", [1.0, 0.5, 0.25], [0, 1, 2]) == [0, 0, 0], "alone in a group"
    assert estimators.informative(REWARDS, GROUP).tolist() == [True] * 3 + [False] * 6
    assert one("papo", [1.0], [0]) == [0]


def test_rewards_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="rewards: nan of trajectory 1"):
        one("grpo", [0, math.nan], [0, 0])


def test_the_batch_std_is_computed_once():
    """NPR's code divides every sample by the std of a vector that is half overwritten; the order must not matter."""
    rewards, group = np.array([1.0, -1, 1, 1, -1, -1]), np.array([0, 0, 0, 1, 1, 1])
    found, turned = one("papo", rewards, group), one("papo", rewards[::-1], group[::-1])
    assert found == turned[::-1] == pytest.approx([2 / 3, -4 / 3, 2 / 3, 4 / 3, -2 / 3, -2 / 3])


# A tree of four leaves: nodes 0 (of all), 1 (of leaves 0, 1), 2 (of 2, 3), then one node for each leaf.
HOLDS = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], *np.eye(4)], bool)
PARENT = np.array([-1, 0, 0, 1, 1, 2, 2])


def test_treepo_by_hand():
    rewards = np.array([1.0, 0, 0, 0])
    found = estimators.tree_po(rewards, np.zeros(4, int), HOLDS[1:], PARENT[1:])[:, 0]
    # the group's mean is 1/4, that of the first pair 1/2, that of the second 0
    np.testing.assert_allclose(found, [(3 / 4 + 1 / 2) / 2, (-1 / 4 - 1 / 2) / 2, -1 / 8, -1 / 8])
    scaled = advantages(NAMED["treepo"], rewards, np.zeros(4, int), HOLDS[1:], PARENT[1:])
    np.testing.assert_allclose(scaled[:, 0], found / (found.std() + 1e-6))


def test_treerl_by_hand():
    rewards = np.array([1.0, 0, 0, 0])
    found = advantages(NAMED["treerl"], rewards, np.zeros(4, int), HOLDS, PARENT)
    assert found.shape == (4, 7)
    # V: 1/4 | 1/2, 0 | 1, 0, 0, 0
    np.testing.assert_allclose(found[:, 0], 0)
    np.testing.assert_allclose(found[:2, 1], (1 / 4 + 1 / 4) / math.sqrt(2))
    np.testing.assert_allclose(found[2:, 2], (-1 / 4 - 1 / 4) / math.sqrt(2))
    np.testing.assert_allclose(np.diag(found[:, 3:]), [3 / 4 + 1 / 2, -1 / 4 - 1 / 2, -1 / 4, -1 / 4])
    assert not found[2:, 1].any() and not found[:2, 2].any(), "nothing where a trajectory does not pass"


def test_a_tree_is_needed_for_tree_estimators():
    with pytest.raises(ValueError, match="estimator.tree is 'treerl'; the tree of the trajectories' threads is needed"):
        advantages(NAMED["treerl"], REWARDS, GROUP)
    with pytest.raises(ValueError, match="leave centre at 'group'"):
        Estimator(tree="treepo", scale="group")


# Losses. Trajectories of 3, 2 and 4 labels lie in two rows; the first has tokens in both; place (0, 0) and the last have no label.
TRAJECTORY = np.array([[-1, 0, 0, 1, 1, -1], [2, 2, 2, 2, 0, -1]])
LENGTHS = np.array([3, 2, 4])
A = np.array([1.5, -0.75, -0.5])


def labels(estimator: Estimator, trajectory=TRAJECTORY, **changes) -> Labels:
    real = trajectory >= 0
    weight = np.where(real, 1 / LENGTHS[trajectory] if estimator.mean == "trajectories" else 1.0, 0.0)
    fields = dict(
        weight=weight,
        advantage=np.where(real, A[trajectory], 0),
        engine=np.zeros(trajectory.shape),
        temperature=np.ones(trajectory.shape),
        version=np.zeros(trajectory.shape, np.int32),
        trajectory=trajectory,
    )
    return Labels(**{name: jnp.asarray(value) for name, value in (fields | changes).items()})


def drawn(seed: int, spread: float = 0.3) -> jnp.ndarray:
    return -jnp.asarray(np.random.default_rng(seed).exponential(spread, TRAJECTORY.shape))


# The choices of trl's trainer that mean the same as the estimators of these names.
TRL = {
    "grpo": dict(kind="grpo", level="token", most=0),
    "dapo": dict(kind="dapo", level="token", most=0),
    "p_grpo": dict(kind="dapo", level="token", most=0),
    "dr_grpo": dict(kind="dr_grpo", level="token", most=1024),
    "gspo": dict(kind="grpo", level="sequence", most=0),
}
# Losses and norms of gradients by trl 1.16.0's own code (`tests/trl_numbers.py`).
NUMBERS = {
    ("grpo", 0.0): (0.172147214, 0.382863043),
    ("grpo", 0.04): (0.182631668, 0.385590663),
    ("dapo", 0.0): (0.0800717004, 0.306893857),
    ("dapo", 0.04): (0.0936538575, 0.309469474),
    ("p_grpo", 0.0): (0.0800717004, 0.306893857),
    ("p_grpo", 0.04): (0.0936538575, 0.309469474),
    ("dr_grpo", 0.0): (0.000266150815, 0.000899103096),
    ("dr_grpo", 0.04): (0.00030594229, 0.000906648849),
    ("gspo", 0.0): (-0.0834018446, 0.348621477),
    ("gspo", 0.04): (-0.074675435, 0.356315476),
}


def given(name: str) -> tuple[jnp.ndarray, ...]:
    """Log-probabilities of the labels: new, old, by the reference, by the engine."""
    new, old, reference, engine = drawn(0), drawn(1), drawn(2), drawn(3, 1.0)
    if name == "gspo":
        new = old + 3e-4 * (new - old)  # its ratios hardly move
        engine = old  # trl gives every label the mean of the factors pi_old / pi_engine of its completion, we give it its own
    return new, old, reference, engine


def by_completion(name: str) -> list[jnp.ndarray]:
    """The same as trl wants them: one completion a row, [n, 4]."""
    places = [np.argwhere(i == TRAJECTORY) for i in range(3)]
    rows = lambda x: [jnp.pad(jnp.stack([x[b, s] for b, s in p]), (0, 4 - len(p))) for p in places]
    return [jnp.stack(rows(x)) for x in given(name)]


@pytest.mark.parametrize(("name", "kl"), NUMBERS)
def test_losses_are_those_of_trl(name, kl):
    estimator = dataclasses.replace(NAMED[name], kl=kl)
    new, old, reference, engine = given(name)
    made = labels(estimator, engine=engine)
    total = denominator(estimator, int(LENGTHS.sum()), 3)

    def ours(new):
        ratios = trajectory_ratios(new, old, made, 3)
        return loss(estimator, new, jnp.zeros_like(new), made, total, old, reference if kl else None, ratios)[0]

    value, gradient = jax.value_and_grad(ours)(new)
    np.testing.assert_allclose((value, jnp.linalg.norm(gradient)), NUMBERS[name, kl], rtol=1e-6)


def test_advantages_are_those_of_trl():
    """scale_rewards "group", "batch", "none" of the trainer: unbiased std, 1e-4 added; RLOO: the mean of the others."""
    rewards, group = np.array([1.0, 0, 0.5, 0.2, 0.9, 0.1]), np.repeat([0, 1], 3)
    centred = rewards - rewards.reshape(2, 3).mean(1).repeat(3)
    group_std = rewards.reshape(2, 3).std(1, ddof=1).repeat(3)
    for scale, divisor in (("group", group_std + 1e-4), ("batch", rewards.std(ddof=1) + 1e-4), ("nothing", 1)):
        found = advantages(Estimator(scale=scale, unbiased=True, epsilon=1e-4), rewards, group)[:, 0]
        np.testing.assert_allclose(found, centred / divisor)
    others = [(0 + 0.5) / 2, (1 + 0.5) / 2, 0.5, 0.5, (0.2 + 0.1) / 2, (0.2 + 0.9) / 2]
    np.testing.assert_allclose(advantages(NAMED["rloo"], rewards, group)[:, 0], rewards - others)


def test_micro_batches_add_up():
    """The loss, its gradient and the report of two micro-batches are those of the whole, GSPO's trajectory across both included."""
    for name in ("grpo", "dapo", "gspo", "rloo"):
        estimator = dataclasses.replace(NAMED[name], kl=0.1, entropy=0.01)
        new, old, reference, entropy = drawn(0), drawn(1), drawn(2), -drawn(4)
        made, total = labels(estimator, engine=drawn(3)), denominator(estimator, 9, 3)
        ratios = trajectory_ratios(new, old, made, 3)

        def part(new, which, of=(estimator, made, total, old, reference, ratios, entropy)):
            estimator, made, total, old, reference, ratios, entropy = of
            rows = slice(*which)
            return loss(
                estimator, new[rows], entropy[rows], made[rows], total, old[rows], reference[rows], ratios=ratios
            )

        (whole, sums), gradient = jax.value_and_grad(part, has_aux=True)(new, (0, 2))
        (first, one_), da = jax.value_and_grad(part, has_aux=True)(new, (0, 1))
        (second, two), db = jax.value_and_grad(part, has_aux=True)(new, (1, 2))
        np.testing.assert_allclose(first + second, whole, rtol=1e-6)
        np.testing.assert_allclose(da + db, gradient, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(sums), jax.tree.leaves(one_ + two), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_reinforce_on_policy_by_hand():
    """RLOO and PAPO have no ratio: the gradient is -A / denominator at every label, whatever the old log-probabilities."""
    for name, total in (("rloo", 3), ("papo", 9)):
        estimator, new = NAMED[name], drawn(0)
        made = labels(estimator, engine=new)
        assert denominator(estimator, 9, 3) == total
        for old in (None, new):
            value, gradient = jax.value_and_grad(
                lambda x, of=(estimator, made, total, old): loss(of[0], x, jnp.zeros_like(x), *of[1:])[0]
            )(new)
            real = TRAJECTORY >= 0
            np.testing.assert_allclose(gradient, np.where(real, -A[TRAJECTORY] / total, 0), rtol=1e-5)
            np.testing.assert_allclose(value, -(A * LENGTHS).sum() / total, rtol=1e-5)


def test_clipping_by_hand():
    """One label of each kind: the gradient stops where the ratio leaves the range in the direction of its advantage."""
    estimator = Estimator(clip_low=0.2, clip_high=0.28)
    ratio = np.log([[1.3, 1.25, 0.7, 0.7, 1.3, 1.0]])
    advantage = jnp.array([[1.0, 1, -1, 1, -1, 1]])
    new = jnp.asarray(ratio)
    made = labels(estimator, np.zeros((1, 6), int), advantage=advantage, weight=jnp.ones((1, 6)))
    old = jnp.zeros_like(new)
    run = lambda x: loss(estimator, x, jnp.zeros_like(x), made, 6, old)
    (value, sums), gradient = jax.value_and_grad(run, has_aux=True)(new)
    np.testing.assert_allclose(value, -(1.28 + 1.25 - 0.8 + 0.7 - 1.3 + 1) / 6, rtol=1e-5)
    np.testing.assert_allclose(gradient, -np.array([[0, 1.25, 0, 0.7, -1.3, 1]]) / 6, rtol=1e-5)
    assert (float(sums.low), float(sums.high), float(sums.labels)) == (1, 1, 6)


def test_the_engines_drift_is_corrected_and_capped():
    """min(pi_old / pi_engine, 2) multiplies every gradient, in estimators without ratios too; the share cut is reported."""
    old = jnp.log(jnp.array([[0.5, 0.9, 0.3]]))
    engine = jnp.log(jnp.array([[0.25, 0.3, 0.6]]))
    for name in ("dapo", "papo", "gspo"):
        estimator = NAMED[name]
        made = labels(estimator, np.zeros((1, 3), int), engine=engine, weight=jnp.ones((1, 3)))
        zero = jnp.zeros_like(old)
        ratios = jnp.zeros(1)
        run = lambda x, of=(estimator, made, zero, ratios): loss(of[0], x, of[2], of[1], 1.0, old, ratios=of[3])
        (_, sums), gradient = jax.value_and_grad(run, has_aux=True)(old)
        np.testing.assert_allclose(gradient, -1.5 * np.array([[2, 2, 0.5]]), rtol=1e-5)
        assert float(sums.capped) == 1
        np.testing.assert_allclose(sums.mismatch, np.log(2) + np.log(3) + np.log(2), rtol=1e-5)
    assert estimators.summarise(sums)["engine_capped"] == pytest.approx(1 / 3)


def test_untrained_places_count_for_nothing():
    """Neither value nor gradient nor report, whatever stands there."""
    estimator = dataclasses.replace(NAMED["grpo"], kl=0.1, entropy=0.1)
    new, old, reference, entropy = drawn(0), drawn(1), drawn(2), -drawn(3)
    made, off = labels(estimator), TRAJECTORY < 0
    spoilt = [
        jnp.where(off, value, x)
        for x, value in ((new, -300.0), (old, jnp.nan), (reference, jnp.inf), (entropy, jnp.nan))
    ]
    bad = dataclasses.replace(
        made, advantage=jnp.where(off, jnp.nan, made.advantage), engine=jnp.where(off, jnp.nan, 0)
    )
    run = lambda x, made, old, reference, entropy: loss(estimator, x, entropy, made, 3, old, reference)
    (a, one_), da = jax.value_and_grad(run, has_aux=True)(new, made, old, reference, entropy)
    (b, two), db = jax.value_and_grad(run, has_aux=True)(spoilt[0], bad, *spoilt[1:])
    assert float(a) == float(b)
    np.testing.assert_array_equal(da, db)
    assert jax.tree.leaves(one_) == jax.tree.leaves(two)
    assert not np.asarray(da)[off].any()


def test_entropy_is_reported_at_forks_and_elsewhere():
    estimator, new = NAMED["dapo"], drawn(0)
    entropy = jnp.where(TRAJECTORY == 0, 2.0, 0.5)
    _, sums = loss(
        estimator, new, entropy, labels(estimator), 9, forks=jnp.ones_like(TRAJECTORY, bool) & (TRAJECTORY < 1)
    )
    found = estimators.summarise(sums)
    assert found["fork_share"] == pytest.approx(3 / 9)
    assert (found["fork_entropy"], found["other_entropy"]) == (2.0, 0.5)
    weighted, _ = loss(dataclasses.replace(estimator, entropy=0.1), new, entropy, labels(estimator), 9)
    plain, _ = loss(estimator, new, entropy, labels(estimator), 9)
    assert float(weighted - plain) == pytest.approx(-0.1 * (3 * 2 + 6 * 0.5) / 9, rel=1e-4)


def test_denominators_are_never_sums_of_weights_or_advantages():
    assert denominator(NAMED["dapo"], 9, 3) == 9
    assert denominator(NAMED["grpo"], 9, 3) == 3
    assert denominator(NAMED["dr_grpo"], 9, 3) == 3 * 1024
    assert denominator(NAMED["rloo"], 9, 3) == 3
    assert denominator(NAMED["dapo"], 0, 0) == 1


def test_what_is_missing_is_named():
    new = drawn(0)
    with pytest.raises(ValueError, match="estimator.kl is 0.1; the log-probabilities of a reference model are needed"):
        loss(Estimator(kl=0.1), new, new, labels(Estimator()), 1)
    with pytest.raises(ValueError, match="estimator.ratio is 'trajectory'; with old log-probabilities"):
        loss(NAMED["gspo"], new, new, labels(NAMED["gspo"]), 1, old=new)
    for bad in (dict(clip_low=1.0), dict(engine_cap=0.5), dict(kl=-1), dict(length=0), dict(mean="rows")):
        with pytest.raises(ValueError, match="estimator"):
            Estimator(**bad)
