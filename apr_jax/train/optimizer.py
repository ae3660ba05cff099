"""AdamW or Muon, with warm-up, cosine decay and clipping."""

import dataclasses
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimiser.

    Attributes:
        kind: "adamw", or "muon": orthogonalised momentum for the matrices inside the layers, with updates scaled to the size
            of Adam's updates so that both take the same learning rates (arXiv 2502.16982), and AdamW for all other parameters.
        learning_rate: peak learning rate, after the warm-up.
        warm_up: steps over which the learning rate rises from 0 to its peak.
        final: learning rate at the last step, as a share of the peak.
        weight_decay: decoupled weight decay, of matrices only (not of norm scales).
        beta1, beta2, epsilon: Adam's parameters.
        clip: largest global norm of the gradient.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 2e-3
    warm_up: int = 100
    final: float = 0.1
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 1.0

    def __post_init__(self):
        for name, low, high in (("final", 0, 1), ("weight_decay", 0, 1), ("warm_up", 0, float("inf"))):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed are {low} to {high}")
        for name in ("learning_rate", "epsilon", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.learning_rate == float("inf"):
            raise ValueError("learning_rate is inf; it must be finite")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed are 0 up to, not including, 1")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine down to `final` of the peak at the last of `steps`."""
    warm_up = min(config.warm_up, steps // 2)
    return optax.warmup_cosine_decay_schedule(
        0.0 if warm_up else config.learning_rate,
        config.learning_rate,
        warm_up,
        max(steps, warm_up + 1),
        config.final * config.learning_rate,
    )


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` steps."""
    rate = schedule(config, steps)
    if config.kind == "adamw":
        step = optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        )
    else:
        step = muon(
            rate,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            adam_b1=config.beta1,
            adam_b2=config.beta2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,  # the root mean square of Adam's updates
        )
    return optax.chain(optax.clip_by_global_norm(config.clip), step)


def _matrices(params: Any) -> Any:
    """Input and output axes of the parameters that are matrices inside layers; None for all others, tables included."""

    def axes(path: tuple, leaf: jax.Array) -> MuonDimensionNumbers | None:
        names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        if leaf.ndim < 2 or "layers" not in names or "branch_embedding" in names:
            return None
        inputs = 2 if "out" in names and leaf.ndim == 3 else 1
        return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)
