"""LoRA: low-rank changes of chosen products, trained while everything else stands still (Hu et al. 2021).

Adapters are a tree of their own, so a loss that takes them as its argument has gradients and optimiser state for nothing
else:

    adapters = lora.init(shape, model.config, key)
    gradients = jax.grad(lambda adapters: loss(lora.apply(shape, model.params, adapters)))(adapters)
    model = Model(model.graph, lora.merge(shape, model.params, adapters))
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from apr_jax.model import io
from apr_jax.model.config import ModelConfig
from apr_jax.model.transformer import LowRank, Params, abstract_params, logical_axes

PRODUCTS = ("q", "k", "v", "out", "gate", "up", "down")
Adapters = Mapping[str, Any]  # as the parameters, with {"a": [inputs, rank], "b": [rank, outputs]} for a weight


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which products get adapters, and of what size.

    Attributes:
      rank: r, columns of A and rows of B.
      alpha: the change is alpha / r times A B.
      targets: names of products, of every layer.

    Raises:
      ValueError: a field is out of range; the message names field, value, what is allowed.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = PRODUCTS

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"Lora.rank is {self.rank}; it must be at least 1")
        unknown = sorted(set(self.targets) - set(PRODUCTS))
        if unknown or not self.targets:
            raise ValueError(f"Lora.targets is {self.targets}; it must name some of {', '.join(PRODUCTS)}")


def init(lora: Lora, config: ModelConfig, key: Key[Array, ""]) -> Adapters:
    """Adapters in f32 that change nothing yet: B is 0, A uniform within 1 / sqrt(inputs). Traceable."""
    weights = _targets(lora, io.flatten(abstract_params(config)))
    adapters = {}
    for draw, (name, leaf) in zip(jax.random.split(key, len(weights)), weights.items(), strict=True):
        inputs, outputs = _split(name, leaf.shape)
        bound = math.prod(inputs) ** -0.5
        adapters[f"{name}.a"] = jax.random.uniform(draw, (*inputs, lora.rank), jnp.float32, -bound, bound)
        adapters[f"{name}.b"] = jnp.zeros((lora.rank, *outputs), jnp.float32)
    return io.nest(adapters)


def axes(lora: Lora, config: ModelConfig) -> Mapping[str, Any]:
    """The tree of adapters with the names of its axes, for `apr_jax.sharding`."""
    names = jax.tree_util.tree_flatten_with_path(logical_axes(config), is_leaf=lambda x: isinstance(x, tuple))[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in names}
    tree = {}
    for name, leaf in _targets(lora, flat).items():
        inputs, outputs = _split(name, leaf)
        tree |= {f"{name}.a": (*inputs, None), f"{name}.b": (None, *outputs)}
    return io.nest(tree)


def apply(lora: Lora, params: Params, adapters: Adapters) -> Params:
    """Parameters in which the adapted weights are `LowRank`: the model runs with W as it is, and A B beside it."""
    scale = lora.alpha / lora.rank
    return _changed(params, adapters, lambda weight, a, b: LowRank(weight, a, b * scale))


def merge(lora: Lora, params: Params, adapters: Adapters) -> Params:
    """Plain parameters with the change added to the weights, computed in f32 or wider; ready to save or to serve."""

    def add(weight: Array, a: Array, b: Array) -> Array:
        wide = jnp.promote_types(weight.dtype, jnp.float32)
        change = jnp.tensordot(a.astype(wide), b.astype(wide), 1) * (lora.alpha / lora.rank)
        return (weight.astype(wide) + change).astype(weight.dtype)

    return _changed(params, adapters, add)


def _changed(params: Params, adapters: Adapters, change: Callable[[Array, Array, Array], Any]) -> Params:
    weights, factors = io.flatten(params), io.flatten(adapters)
    names = dict.fromkeys(name.rsplit(".", 1)[0] for name in factors)
    return io.nest(
        weights | {name: change(weights[name], factors[f"{name}.a"], factors[f"{name}.b"]) for name in names}
    )


def _targets(lora: Lora, leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves.items() if name.rsplit(".", 1)[-1] in lora.targets}


def _split(name: str, axes: tuple) -> tuple[tuple, tuple]:
    """Input and output axes of a weight."""
    inputs = 2 if name.endswith(".out") else 1
    return tuple(axes[:inputs]), tuple(axes[inputs:])
