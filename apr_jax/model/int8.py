"""Numbers stored as int8 with a scale for each group of them: half the bytes of bfloat16, for decoding.

Symmetric: a number is `values * scale`, the largest of a group is 127 times its scale, and zero stays zero. The products of
a group share its scale, so they are taken with the int8 values and scaled afterwards: nothing is stored wide.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int8

LARGEST = 127
# Axes of the weights of products that a sum runs over; what is left are the channels, each with a scale in int8.
SUMMED = {"embed": (1,), "out": (0, 1)} | dict.fromkeys(
    ("head", "q", "k", "v", "qkv", "gate", "up", "gate_up", "down"), (0,)
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """Numbers in int8: can replace a weight in the parameter tree, or the keys or the values of a pool.

    Attributes:
      values: the numbers over their scale, rounded.
      scale: f32 (f64 for f64); of a weight with its axes, those of a group being 1.
    """

    values: Int8[Array, "..."]
    scale: Float[Array, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the numbers that it represents."""
        return self.values.shape


def quantise(x: Float[Array, "..."], axes: tuple[int, ...]) -> Quantised:
    """Round to the nearest; a group is all numbers along `axes`, which are 1 in the scale. No error is above half the scale."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / LARGEST
    return Quantised(jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale)


def logical_axes_in_int8(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Axes of parameters with those of the scales beside them: a scale is cut with its channel."""

    def leaf(path: Any, axes: tuple) -> Any:
        summed = SUMMED.get(path[-1].key)
        return Quantised(axes, tuple(None if i in summed else axis for i, axis in enumerate(axes))) if summed else axes

    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=lambda x: isinstance(x, tuple))


def factors(x: Float[Array, "..."], w: Array | Quantised) -> tuple[Array, Array, Array | None]:
    """The two factors of a product, and the scale of each channel of the product; None where there is no scale."""
    if not isinstance(w, Quantised):
        return x, w, None
    # Behind a barrier with x, because XLA would widen all weights before the loop and keep them: nothing would be saved.
    x, values = jax.lax.optimization_barrier((x, w.values))
    return x, values, w.scale.reshape(-1)


def look_up(table: Any, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """Rows of an embedding table."""
    return table.values[tokens] * table.scale[tokens] if isinstance(table, Quantised) else table[tokens]
