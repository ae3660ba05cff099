"""The gate before an update: the training forward pass must give the rollout's log-probabilities, or nothing is learnt from it."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

LARGEST, MEAN = 1e-4, 0.02
"""Bounds, nats: of the largest difference if activations are f32 (or wider), of the mean if they have 16 bits."""


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """Absolute differences of log-probabilities between training and engine, over the labels of packed rows, nats.

    Attributes:
        labels, mean, largest: of all labels; `largest` is NaN if a number is.
        forks, forks_mean, forks_largest: of those at fork decisions.
        where: the label with the largest difference.
    """

    labels: int
    mean: float
    largest: float
    forks: int
    forks_mean: float
    forks_largest: float
    where: str

    def numbers(self) -> dict[str, float]:
        """For reports, without what is not a number."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "where"}


def compare(
    logprob: Float[np.ndarray, "B S"],
    engine: Float[np.ndarray, "B S"],
    labelled: Bool[np.ndarray, "B S"],
    forks: Bool[np.ndarray, "B S"] | None = None,
    name: Callable[[int, int], str] = "row {}, place {}".format,
) -> Mismatch:
    """Compares log-probabilities of the same labels.

    Args:
        logprob, engine: by training and by the engine, at the temperature of the rollout.
        labelled: the labels; rewritten ones may be among them, for the model drew them too.
        forks: the places of fork decisions.
        name: of a label, see `apr_jax.rl.batches.Batch.name`.
    """
    gap = np.where(labelled, np.abs(np.asarray(logprob, np.float64) - np.asarray(engine, np.float64)), -1)
    row, place = np.unravel_index(np.argmax(gap), gap.shape) if gap.size else (0, 0)  # NaN is found first
    decided = labelled & (np.zeros_like(labelled) if forks is None else np.asarray(forks, bool))
    of = lambda mask: (
        (int(mask.sum()), float(gap[mask].mean()), float(gap[mask].max())) if mask.any() else (0, 0.0, 0.0)
    )
    return Mismatch(*of(labelled), *of(decided), name(int(row), int(place)) if labelled.any() else "")


def require(mismatch: Mismatch, dtype: str) -> None:
    """Refuse to train on rollouts that training scores otherwise.

    Args:
        dtype: of the activations, as `ModelConfig.dtype` has it.

    Raises:
        ValueError: a difference is above its bound, or there is no label; the message has the numbers, the place and causes.
    """
    if not mismatch.labels:
        raise ValueError("gate: there is no label to compare; pack a batch in which advantages are not all 0")
    narrow = dtype in ("bfloat16", "float16")
    what, found, bound = ("mean", mismatch.mean, MEAN) if narrow else ("largest", mismatch.largest, LARGEST)
    if not found <= bound:
        raise ValueError(
            f"gate: the {what} difference between training's and the engine's log-probabilities is {found:.3g} nats over "
            f"{mismatch.labels} labels, {bound:g} is allowed in {dtype} (mean {mismatch.mean:.3g}, largest {mismatch.largest:.3g}; "
            f"at {mismatch.forks} fork decisions mean {mismatch.forks_mean:.3g}, largest {mismatch.forks_largest:.3g}), the "
            f"largest at {mismatch.where}: do engine and training have the same parameters, dtype and temperature?"
        )
