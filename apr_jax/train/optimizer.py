"""AdamW with warm-up, cosine decay and clipping."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated.

    Attributes:
        learning_rate: the highest, after the warm-up.
        warm_up: steps over which it rises from 0.
        final: share of it that is left at the last step.
        weight_decay: decoupled, of matrices only (norm scales are left alone).
        beta1, beta2, epsilon: Adam's.
        clip: largest global norm of the gradient.
    """

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
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )
