"""Numbers stored as int8 with a scale for each group of them: half the bytes of bfloat16, for decoding.

Symmetric: a number is `values * scale`, the largest of a group is 127 times its scale, and zero stays zero. The products of
a group share its scale, so they are taken with the int8 values and scaled afterwards: nothing is stored wide.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

LARGEST = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """May stand for a weight of the parameter tree, or for the keys or the values of a pool.

    Attributes:
      values: the numbers over their scale, rounded.
      scale: f32 (f64 for f64); of a weight with its axes, those of a group being 1.
    """

    values: Int8[Array, "..."]
    scale: Float[Array, "..."]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers that it stands for."""
        return self.values.shape


def quantise(x: Float[Array, "..."], axes: tuple[int, ...]) -> Quantised:
    """Round to the nearest; a group is all numbers along `axes`, which are 1 in the scale. No error is above half the scale."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True) / LARGEST
    return Quantised(jnp.round(wide / jnp.where(scale > 0, scale, 1)).astype(jnp.int8), scale)
