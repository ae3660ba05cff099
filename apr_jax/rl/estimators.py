"""Advantages and losses of policy gradients: small pure functions, chosen by one configuration.

    rewards -> advantages (on the host) -> loss of packed labels (on the device)

Axes: n trajectories, K the nodes of their tree (or 1), B rows, S entries of a row.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode.problem import one_of


@dataclasses.dataclass(frozen=True)
class Estimator:
    """What distinguishes the published estimators; `NAMED` has them by name. Static: a program is compiled for one.

    Attributes:
        centre: subtracted from a reward: the mean of its "group" (the samples of one prompt), of the "others" in it, or "nothing".
        scale: what it is divided by: the std of the "group", of the whole "batch" (over all samples, computed once), or "nothing".
        unbiased: the std has n - 1 in its denominator (as in trl), not n (as in APR's code).
        epsilon: added to the std.
        tree: "none"; "treepo" or "treerl": advantages by subtree, see `tree_po` and `tree_rl`.
        ratio: pi / pi_old of each "label"; of the whole "trajectory", the geometric mean over all its sampled tokens (GSPO); or
            "none", pi / stop_gradient(pi).
        clip_low, clip_high: the ratio is clipped to 1 - clip_low .. 1 + clip_high, as PPO does.
        engine_cap: largest factor pi_old / pi_engine, which corrects for the engine's arithmetic and for stale parameters.
        mean: what the sum over labels is divided by: the number of sampled "labels" of the batch; the number of trajectories,
            each label weighted by 1 / the labels of its trajectory ("trajectories"); or the number of trajectories times `length`
            ("constant").
        length: see `mean`: the most tokens of an answer in Dr. GRPO, 1 in RLOO, whose answers are one action.
        kl: weight of the divergence from a reference model, estimated by k3.
        entropy: weight of the entropy bonus.
        dynamic: prompts whose samples all have the same reward are to be drawn again (DAPO); for the loop, which draws.
    """

    centre: Literal["group", "others", "nothing"] = "group"
    scale: Literal["group", "batch", "nothing"] = "nothing"
    unbiased: bool = False
    epsilon: float = 1e-6
    tree: Literal["none", "treepo", "treerl"] = "none"
    ratio: Literal["label", "trajectory", "none"] = "label"
    clip_low: float = 0.2
    clip_high: float = 0.2
    engine_cap: float = 2.0
    mean: Literal["labels", "trajectories", "constant"] = "labels"
    length: float = 1.0
    kl: float = 0.0
    entropy: float = 0.0
    dynamic: bool = False

    def __post_init__(self):
        one_of("estimator.centre", self.centre, ("group", "others", "nothing"))
        one_of("estimator.scale", self.scale, ("group", "batch", "nothing"))
        one_of("estimator.tree", self.tree, ("none", "treepo", "treerl"))
        one_of("estimator.ratio", self.ratio, ("label", "trajectory", "none"))
        one_of("estimator.mean", self.mean, ("labels", "trajectories", "constant"))
        if self.tree != "none" and (self.centre, self.scale) not in (("group", "nothing"), ("group", "batch")):
            raise ValueError(
                f"estimator.tree is {self.tree!r}, which centres by subtree: leave centre at 'group', scale at 'nothing' or 'batch'"
            )
        if not 0 < self.clip_low < 1 or not self.clip_high > 0:
            raise ValueError(
                f"estimator.clip_low, clip_high are {self.clip_low}, {self.clip_high}; allowed are 0 to 1, and above 0"
            )
        for name, least in (("engine_cap", 1), ("kl", 0), ("entropy", 0), ("epsilon", 0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"estimator.{name} is {getattr(self, name)}; it must be at least {least} and finite")
        if not 0 < self.length < math.inf:
            raise ValueError(f"estimator.length is {self.length}; it must be above 0 and finite")


NAMED: Mapping[str, Estimator] = {
    # DeepSeekMath, arXiv 2402.03300
    "grpo": Estimator(scale="group", mean="trajectories"),
    # arXiv 2503.20783; `length` is to be set to the most tokens of an answer
    "dr_grpo": Estimator(mean="constant", length=1024),
    # arXiv 2503.14476: clip-higher, mean over tokens, dynamic sampling
    "dapo": Estimator(scale="group", clip_high=0.28, dynamic=True),
    # arXiv 2507.18071
    "gspo": Estimator(scale="group", ratio="trajectory", clip_low=3e-4, clip_high=4e-4, mean="trajectories"),
    # ThreadWeaver, arXiv 2512.07843: centred, not scaled, so that a small bonus stays small where all samples are right
    "p_grpo": Estimator(clip_high=0.28),
    # NPR, arXiv 2512.07461: the std of the batch, no ratio; as in the paper (its code takes the std of a half-written vector)
    "papo": Estimator(scale="batch", ratio="none"),
    # Parason, arXiv 2608.24658: what is its own is the reward `rewards.ZScored`
    "pa_grpo": Estimator(clip_high=0.28),
    # arXiv 2402.14740
    "rloo": Estimator(centre="others", ratio="none", mean="constant", length=1),
    "treepo": Estimator(tree="treepo", scale="batch", clip_high=0.28, dynamic=True),
    "treerl": Estimator(tree="treerl"),
}


def informative(rewards: Float[np.ndarray, " n"], group: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """For each trajectory, whether the rewards of its group differ; where they do not, every advantage is 0 exactly."""
    found = np.zeros(len(rewards), bool)
    for members in _members(group):
        found[members] = rewards[members].max() > rewards[members].min()
    return found


def advantages(
    estimator: Estimator,
    rewards: Float[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    holds: Bool[np.ndarray, "K n"] | None = None,
    parent: Int[np.ndarray, " K"] | None = None,
) -> Float[np.ndarray, "n _"]:
    """The advantage of each trajectory: [n, 1], or with "treerl" [n, K], where it differs along the trajectory.

    Args:
        rewards: of the trajectories.
        group: the group of each, any numbers.
        holds, parent: the tree of the trajectories' threads, see `apr_jax.rl.groups.Groups.tree`; for estimators with a tree.

    Raises:
        ValueError: a reward is not finite, or the tree is missing.
    """
    rewards = np.asarray(rewards, np.float64)
    if not np.isfinite(rewards).all():
        raise ValueError(
            f"rewards: {rewards[~np.isfinite(rewards)][0]} of trajectory {np.argmin(np.isfinite(rewards))}"
        )
    differs = informative(rewards, group)
    if estimator.tree != "none":
        if holds is None or parent is None:
            raise ValueError(f"estimator.tree is {estimator.tree!r}; the tree of the trajectories' threads is needed")
        found = (tree_po if estimator.tree == "treepo" else tree_rl)(rewards, group, holds, parent)
        of = found if estimator.tree == "treepo" else found[holds.T]  # what the std is taken of
    else:
        found, of = _centred(estimator, rewards, group)[:, None], rewards
    if estimator.scale == "batch" and differs.any():
        found = found / (of.std(ddof=int(estimator.unbiased)) + estimator.epsilon)
    if estimator.scale == "group":
        for members in _members(group):
            if differs[members].any():
                found[members] /= rewards[members].std(ddof=int(estimator.unbiased)) + estimator.epsilon
    return np.where(differs[:, None], found, 0.0)


def _members(group: Int[np.ndarray, " n"]) -> list[np.ndarray]:
    return [np.flatnonzero(group == number) for number in np.unique(group)]


def _centred(estimator: Estimator, rewards: np.ndarray, group: np.ndarray) -> np.ndarray:
    found = rewards.copy()
    for members in _members(group):
        if estimator.centre != "nothing":
            found[members] -= rewards[members].mean()
        if estimator.centre == "others" and len(members) > 1:
            found[members] *= len(members) / (len(members) - 1)  # the same as subtracting the mean of the others
    return found


def tree_po(
    rewards: Float[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    holds: Bool[np.ndarray, "K n"],
    parent: Int[np.ndarray, " K"],
) -> Float[np.ndarray, "n 1"]:
    """TreePO (arXiv 2508.17445, eq. 5): A_i = mean over j of (R_i - mean of R over G_j), where G_0 is the group of trajectory i and
    the other G_j are the trajectories that share a node with it. Subgroups of one are left out, as in its code, and subgroups
    count alike, whatever their size."""
    found = np.zeros((len(rewards), 1))
    for number, reward in enumerate(rewards):
        shared = [node for node in np.flatnonzero(holds[:, number]) if holds[node].sum() > 1]
        means = [rewards[group == group[number]].mean(), *(rewards[holds[node]].mean() for node in shared)]
        found[number] = np.mean(reward - np.array(means))
    return found


def tree_rl(
    rewards: Float[np.ndarray, " n"],
    group: Int[np.ndarray, " n"],
    holds: Bool[np.ndarray, "K n"],
    parent: Int[np.ndarray, " K"],
) -> Float[np.ndarray, "n K"]:
    """TreeRL (arXiv 2506.11902, 3.3): with V(k) the mean reward of the leaves below node k, V(root) that of the group, and |L(k)|
    their number, every leaf gets ((V(k) - V(root)) + (V(k) - V(parent))) / sqrt(|L(k)|) at the tokens of node k.

    Its code adds V(k) once more, which its paper does not; here it is as in the paper.
    """
    found = np.zeros((len(rewards), len(holds)))
    for node in np.flatnonzero(holds.any(axis=1)):
        leaves = holds[node]
        value, root = rewards[leaves].mean(), rewards[group == group[np.argmax(leaves)]].mean()
        above = root if parent[node] < 0 else rewards[holds[parent[node]]].mean()
        found[leaves, node] = (2 * value - root - above) / math.sqrt(leaves.sum())
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
    """What the loss needs of the labels of packed rows, beside the rows; [B, S] each.

    Attributes:
        weight: weight of the label in the sum, 0 where nothing is trained (no label, or one that a rule rewrote).
        advantage: the sum of the advantages of the trajectories that hold the label.
        engine: its log-probability when it was drawn, nats.
        temperature: at which it was drawn.
        version: of the parameters that drew it, the number of updates before.
        trajectory: number of (the first of) the trajectories that hold it, 0 to n - 1; -1 without a label.
    """

    weight: Float[Array, "B S"]
    advantage: Float[Array, "B S"]
    engine: Float[Array, "B S"]
    temperature: Float[Array, "B S"]
    version: Int[Array, "B S"]
    trajectory: Int[Array, "B S"]

    def __getitem__(self, rows) -> "Labels":
        return jax.tree.map(lambda array: array[rows], self)


def denominator(estimator: Estimator, labels: int, trajectories: int) -> float:
    """What the sum over the labels of a whole update is divided by, however it is cut into micro-batches.

    Args:
        labels: sampled tokens of the trajectories.
        trajectories: number of trajectories.
    """
    count = labels if estimator.mean == "labels" else trajectories
    return max(count, 1) * (estimator.length if estimator.mean == "constant" else 1.0)


def trajectory_ratios(
    logprob: Float[Array, "B S"], old: Float[Array, "B S"], labels: Labels, trajectories: int
) -> Float[Array, " n"]:
    """The mean of log(pi / pi_old) over all sampled tokens of each trajectory, for GSPO. The rows must be those of a whole update,
    because a trajectory's threads may lie in several rows.

    Args:
        logprob: under the parameters that are about to be updated.
        trajectories: n, static; a bound of it, the same at every step, saves compiling anew.
    """
    trained = labels.weight > 0
    place = jnp.where(trained, labels.trajectory, trajectories)
    sums = jnp.zeros(trajectories).at[place].add(jnp.where(trained, logprob - old, 0), mode="drop")
    return sums / jnp.maximum(jnp.zeros(trajectories).at[place].add(1, mode="drop"), 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over trained labels, for reports; those of micro-batches may be added. Nats, without weights.

    Attributes:
        labels: number of trained labels.
        low, high: labels whose ratio was clipped from below (their advantage is negative) or above (it is positive).
        capped: labels whose factor pi_old / pi_engine was cut to the cap.
        mismatch: of |log pi_old - log pi_engine|.
        moved: of the divergence from pi_old.
        kl: of the divergence from the reference model.
        entropy: of the distributions that labels were drawn from.
        forks, fork_entropy: number of labels at fork decisions, and the part of `entropy` there.
    """

    labels: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    capped: Float[Array, ""]
    mismatch: Float[Array, ""]
    moved: Float[Array, ""]
    kl: Float[Array, ""]
    entropy: Float[Array, ""]
    forks: Float[Array, ""]
    fork_entropy: Float[Array, ""]

    def __add__(self, other: "Sums") -> "Sums":
        return jax.tree.map(lambda a, b: a + b, self, other)


def k3(of: Float[Array, "*B"], reference: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The estimate r - log r - 1 of KL(of || reference) from a token drawn from `of`, with r = reference / of."""
    return jnp.expm1(reference - of) - (reference - of)


def loss(
    estimator: Estimator,
    logprob: Float[Array, "B S"],
    entropy: Float[Array, "B S"],
    labels: Labels,
    denominator: float | Float[Array, ""],
    old: Float[Array, "B S"] | None = None,
    reference: Float[Array, "B S"] | None = None,
    ratios: Float[Array, " n"] | None = None,
    forks: Bool[Array, "B S"] | None = None,
) -> tuple[Float[Array, ""], Sums]:
    """The loss of rows, those of a whole update or of a micro-batch: the sum over labels of

        weight * (-min(ratio A, clip(ratio) A) * min(pi_old / pi_engine, cap) + kl * k3 - entropy * H) / denominator

    Args:
        logprob, entropy: of the labels at their temperature, by training, see `apr_jax.rl.scoring`.
        denominator: of the whole update, see `denominator`.
        old: log-probabilities by training before the first of several steps on these rows; None: those at hand.
        reference: log-probabilities by the reference model; needed if `estimator.kl` is above 0.
        ratios: see `trajectory_ratios`, by the parameters at hand; GSPO needs them with `old`.
        forks: the places of fork decisions, for the report.

    Raises:
        ValueError: `reference` or `ratios` is missing.
    """
    if estimator.kl and reference is None:
        raise ValueError(f"estimator.kl is {estimator.kl}; the log-probabilities of a reference model are needed")
    if estimator.ratio == "trajectory" and old is not None and ratios is None:
        raise ValueError(
            "estimator.ratio is 'trajectory'; with old log-probabilities give the trajectories' ratios too"
        )
    trained = labels.weight > 0
    kept = lambda x: jnp.where(trained, x, 0)
    logprob, entropy, advantage, engine = (kept(x) for x in (logprob, entropy, labels.advantage, labels.engine))
    here = jax.lax.stop_gradient(logprob)
    before = here if old is None else jax.lax.stop_gradient(kept(old))
    log_ratio = logprob - (before if estimator.ratio == "label" else here)
    if estimator.ratio == "trajectory" and ratios is not None:
        # The trajectory's ratio times pi / stop_gradient(pi): its value and gradient, in whatever micro-batches its labels lie.
        log_ratio += jax.lax.stop_gradient(ratios)[jnp.maximum(labels.trajectory, 0)]
    ratio = jnp.exp(kept(log_ratio))
    clipped = ratio if estimator.ratio == "none" else jnp.clip(ratio, 1 - estimator.clip_low, 1 + estimator.clip_high)
    gain = jnp.minimum(ratio * advantage, clipped * advantage)
    factor = jnp.exp(before - engine)
    divergence = jnp.zeros_like(logprob) if reference is None else k3(logprob, kept(reference))
    each = -gain * jnp.minimum(factor, estimator.engine_cap)
    each += estimator.kl * divergence - estimator.entropy * entropy
    forks = jnp.zeros_like(trained) if forks is None else trained & forks
    masks = (
        trained,
        (ratio < clipped) & (advantage < 0),
        (ratio > clipped) & (advantage > 0),
        factor > estimator.engine_cap,
    )
    values = (jnp.abs(before - engine), k3(here, before), divergence, entropy, forks, jnp.where(forks, entropy, 0))
    sums = Sums(*(jnp.sum(value, dtype=logprob.dtype) for value in (*masks, *values)))
    return jnp.sum(labels.weight * each) / denominator, jax.lax.stop_gradient(sums)


def summarise(sums: Sums) -> dict[str, float]:
    """The numbers to report: means over labels; entropy at fork decisions apart from that elsewhere."""
    labels, forks = float(sums.labels), float(sums.forks)
    values = {name: float(getattr(sums, name)) / max(labels, 1) for name in ("mismatch", "moved", "kl", "entropy")}
    shares = {"clipped_low": sums.low, "clipped_high": sums.high, "engine_capped": sums.capped, "fork_share": forks}
    values |= {name: float(value) / max(labels, 1) for name, value in shares.items()}
    values["fork_entropy"] = float(sums.fork_entropy) / max(forks, 1)
    values["other_entropy"] = float(sums.entropy - sums.fork_entropy) / max(labels - forks, 1)
    return values
