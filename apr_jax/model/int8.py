"""Numbers stored as int8 with one scale per group: half the bytes of bfloat16, for decoding.

Symmetric: a number is `values * scale`; the largest magnitude of a group is 127 times the scale, and zero stays zero. Products
use the int8 values and are scaled afterwards, because all numbers of a group share one scale: no wide copy is stored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

LARGEST = 127
# The summed axes of the weights of products; the other axes are the channels, each with its own scale in int8.
SUMMED = {"embed": (1,), "out": (0, 1)} | dict.fromkeys(
    ("head", "q", "k", "v", "qkv", "gate", "up", "gate_up", "down"), (0,)
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """Numbers in int8: can replace a weight in the parameter tree, or the keys or the values of a pool.

    Attributes:
      values: the numbers divided by their scale, rounded.
      scale: f32 (f64 for f64); for a weight, with the axes of the weight, of size 1 along a group.
    """

    values: Int8[Array, "..."]
    scale: Float[Array, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the represented numbers."""
        return self.values.shape


def quantise(x: Float[Array, "..."], axes: tuple[int, ...]) -> Quantised:
    """Round `x` to int8; a group is all numbers along `axes`, which have size 1 in the scale. Errors are at most scale / 2."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / LARGEST
    return Quantised(jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale)


def logical_axes_in_int8(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The axis names of parameters, extended by the axis names of their scales: a scale is cut like its channel."""

    def leaf(path: Any, axes: tuple) -> Any:
        summed = SUMMED.get(path[-1].key)
        return Quantised(axes, tuple(None if i in summed else axis for i, axis in enumerate(axes))) if summed else axes

    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=lambda x: isinstance(x, tuple))


def factors(x: Float[Array, "..."], w: Array | Quantised) -> tuple[Array, Array, Array | None]:
    """The two factors of the product of x and w, and the scale [m] of the product's channels, None without scale."""
    if not isinstance(w, Quantised):
        return x, w, None
    # A barrier with x: without it, XLA would widen all weights before the loop and keep the wide copies.
    x, values = jax.lax.optimization_barrier((x, w.values))
    return x, values, w.scale.reshape(-1)


def look_up(table: Any, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Rows of an embedding table [V, D]: an array, `Quantised`, or an object that is indexed by tokens."""
    return table.values[tokens] * table.scale[tokens] if isinstance(table, Quantised) else table[tokens]
