"""Rotary frequencies, and three published ways to scale them for contexts beyond the length of the first training.

Axes: h size of a head.
"""

import dataclasses
import math
from typing import Any

import numpy as np

KINDS = ("none", "linear", "yarn", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The scaling of the rotary frequencies; hashable, and one class for all kinds, so that it has one CLI form.

    Sources: linear, position interpolation (Chen et al. 2023); yarn, Peng et al. 2023, as `transformers` computes it;
    llama3, the release of Llama 3.1.

    Attributes:
      kind: "none", "linear", "yarn" or "llama3".
      factor: ratio of the new context length to the original one.
      original: context length in tokens before scaling (yarn, llama3).
      low, high: llama3: wavelengths above original / low are scaled fully, wavelengths below original / high not at all.
      slow, fast: yarn: the same bounds, as rotations within the original context (`beta_slow`, `beta_fast`).
      attention: yarn: factor of cosine and sine; 0 means the published 0.1 ln(factor) + 1.
      whole: yarn: whether the bounds of the ramp are rounded to whole dimensions (`truncate`).

    Raises:
      ValueError: a field is out of range; the message names field, value and allowed values.
    """

    kind: str = "none"
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    slow: float = 1.0
    fast: float = 32.0
    attention: float = 0.0
    whole: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"RopeScaling.kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.factor < 1:
            raise ValueError(f"RopeScaling.factor is {self.factor!r}; it must be at least 1")
        if self.kind in ("yarn", "llama3") and self.original < 1:
            raise ValueError(
                f"RopeScaling.original is {self.original!r}; {self.kind} needs the context length before stretching"
            )
        if not 0 < self.low < self.high or not 0 < self.slow < self.fast or self.attention < 0:
            raise ValueError(
                f"RopeScaling has low={self.low}, high={self.high}, slow={self.slow}, fast={self.fast}, "
                f"attention={self.attention}; it needs 0 < low < high, 0 < slow < fast and attention >= 0"
            )

    @property
    def magnitude(self) -> float:
        """The factor of cosine and sine; exactly 1 unless the kind is yarn."""
        if self.kind != "yarn":
            return 1.0
        return self.attention or 0.1 * math.log(self.factor) + 1.0


def frequencies(theta: float, head_dim: int, scaling: RopeScaling) -> np.ndarray:
    """Radians per position of each pair of a head, [h / 2], in f64.

    Args:
      theta: base of the wavelengths.
      head_dim: h.
      scaling: scaling of the frequencies.
    """
    plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling.kind == "none":
        return plain
    # 1 where the frequency is kept, 0 where it is divided by the factor, in between a blend of both.
    keep: Any = 0.0
    if scaling.kind == "llama3":
        turns = scaling.original * plain / (2 * math.pi)
        keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    elif scaling.kind == "yarn":
        keep = 1 - _yarn_ramp(theta, head_dim, scaling)
    return plain * keep + plain / scaling.factor * (1 - keep)


def _yarn_ramp(theta: float, head_dim: int, scaling: RopeScaling) -> np.ndarray:
    """0 for pairs with more than `fast` rotations within the original context, 1 for pairs with fewer than `slow`, [h / 2]."""

    def pair(turns: float) -> float:
        """The (fractional) index of the pair with this number of rotations."""
        return head_dim * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.fast), pair(scaling.slow)
    if scaling.whole:
        first, last = math.floor(first), math.ceil(last)
    # The published code clamps to h - 1, not to h / 2 - 1; we do the same, because the bound moves the ramp.
    first, last = max(first, 0), min(last, head_dim - 1)
    return np.clip((np.arange(head_dim // 2) - first) / max(last - first, 0.001), 0, 1)
