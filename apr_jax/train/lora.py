"""LoRA: low-rank changes of chosen products, trained while all other parameters are frozen (Hu et al. 2021).

Rows of control words that were added to a vocabulary begin as means of other rows. No change of the products can make such a row
win (the logit of a mean is never the largest), so chosen rows of the tables can be trained too.

Adapters are a tree of their own. A loss of the adapters therefore has gradients and optimiser state for the adapters only:

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
from apr_jax.model.products import LowRank
from apr_jax.model.transformer import Params, abstract_params, logical_axes

PRODUCTS = ("q", "k", "v", "out", "gate", "up", "down")
TABLES = ("embed", "head")
# The parameter tree, with {"a": [inputs, rank], "b": [rank, outputs]} for a weight and {"rows": [tokens, width]} for a table.
Adapters = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Lora:
    """The products that get adapters, and their rank.

    Attributes:
      rank: r, columns of A and rows of B.
      alpha: the change of a weight is alpha / r times A B.
      targets: names of the products with adapters, in every layer.
      tokens: ids whose rows of the tables (embedding, and output if it is not tied) are trained too.

    Raises:
      ValueError: a field is out of range; the message names field, value and allowed values.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = PRODUCTS
    tokens: tuple[int, ...] = ()

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"Lora.rank is {self.rank}; it must be at least 1")
        unknown = sorted(set(self.targets) - set(PRODUCTS))
        if unknown or not self.targets:
            raise ValueError(f"Lora.targets is {self.targets}; it must name some of {', '.join(PRODUCTS)}")
        if len(set(self.tokens)) != len(self.tokens) or min(self.tokens, default=0) < 0:
            raise ValueError(f"Lora.tokens is {self.tokens}; it must list different ids of at least 0")


def init(lora: Lora, config: ModelConfig, key: Key[Array, ""]) -> Adapters:
    """Initial adapters in f32, which change nothing: B and rows are 0, A is uniform within 1 / sqrt(inputs). Traceable.

    Raises:
      ValueError: one of the tokens is not an id of the model.
    """
    if max(lora.tokens, default=0) >= config.vocabulary:
        raise ValueError(f"Lora.tokens is {lora.tokens}; the model has the ids 0 .. {config.vocabulary - 1}")
    leaves = io.flatten(abstract_params(config))
    weights = _targets(lora, leaves)
    adapters = {}
    for draw, (name, leaf) in zip(jax.random.split(key, len(weights)), weights.items(), strict=True):
        inputs, outputs = _split(name, leaf.shape)
        bound = math.prod(inputs) ** -0.5
        adapters[f"{name}.a"] = jax.random.uniform(draw, (*inputs, lora.rank), jnp.float32, -bound, bound)
        adapters[f"{name}.b"] = jnp.zeros((lora.rank, *outputs), jnp.float32)
    rows = jnp.zeros((len(lora.tokens), config.width), jnp.float32)
    return io.nest(adapters | {f"{table}.rows": rows for table in _tables(lora, leaves)})


def axes(lora: Lora, config: ModelConfig) -> Mapping[str, Any]:
    """The axis names of the tree of adapters, for `apr_jax.sharding`."""
    names = jax.tree_util.tree_flatten_with_path(logical_axes(config), is_leaf=lambda x: isinstance(x, tuple))[0]
    flat = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in names}
    tree = {}
    for name, leaf in _targets(lora, flat).items():
        inputs, outputs = _split(name, leaf)
        tree |= {f"{name}.a": (*inputs, None), f"{name}.b": (None, *outputs)}
    width = flat["embed"][1]
    return io.nest(tree | {f"{table}.rows": (None, width) for table in _tables(lora, flat)})


def apply(lora: Lora, params: Params, adapters: Adapters) -> Params:
    """Parameters in which adapted weights are `LowRank`: the model computes with W and with A B separately."""
    scale = lora.alpha / lora.rank
    return _changed(lora, params, adapters, lambda weight, a, b: LowRank(weight, a, b * scale))


def merge(lora: Lora, params: Params, adapters: Adapters) -> Params:
    """Plain parameters with the changes added to the weights, computed in f32 or wider; ready to save or to serve."""

    def add(weight: Array, a: Array, b: Array) -> Array:
        wide = jnp.promote_types(weight.dtype, jnp.float32)
        change = jnp.tensordot(a.astype(wide), b.astype(wide), 1) * (lora.alpha / lora.rank)
        return (weight.astype(wide) + change).astype(weight.dtype)

    return _changed(lora, params, adapters, add)


def _changed(lora: Lora, params: Params, adapters: Adapters, change: Callable[[Array, Array, Array], Any]) -> Params:
    weights, factors = io.flatten(params), io.flatten(adapters)
    tables = _tables(lora, weights)
    names = dict.fromkeys(name.rsplit(".", 1)[0] for name in factors if name.rsplit(".", 1)[-1] != "rows")
    return io.nest(
        weights
        | {name: change(weights[name], factors[f"{name}.a"], factors[f"{name}.b"]) for name in names}
        | {table: _with_rows(lora, table, weights[table], factors[f"{table}.rows"]) for table in tables}
    )


def _with_rows(lora: Lora, name: str, table: Array, rows: Array) -> Array:
    """The embedding table [V, D] or output table [D, V] with `rows` [tokens, D] added to chosen rows, in f32 or wider."""
    where = (jnp.array(lora.tokens), slice(None)) if name == "embed" else (slice(None), jnp.array(lora.tokens))
    wide = table[where].astype(jnp.promote_types(table.dtype, jnp.float32))
    return table.at[where].set((wide + (rows if name == "embed" else rows.T)).astype(table.dtype))


def _tables(lora: Lora, leaves: Mapping[str, Any]) -> list[str]:
    return [table for table in TABLES if lora.tokens and table in leaves]


def _targets(lora: Lora, leaves: Mapping[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves.items() if name.rsplit(".", 1)[-1] in lora.targets}


def _split(name: str, axes: tuple) -> tuple[tuple, tuple]:
    """Input and output axes of a weight."""
    inputs = 2 if name.endswith(".out") else 1
    return tuple(axes[:inputs]), tuple(axes[inputs:])
