"""Products of activations with weights, in whatever form a weight is kept."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from apr_jax.model.int8 import factors


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A weight W + A B whose sum is never formed. Like any object with a method `multiply`, it can replace a matrix in the
    parameter tree.

    Attributes:
      base: W [input axes, output axes].
      a: A [input axes, rank].
      b: B [rank, output axes].
    """

    base: Array
    a: Array
    b: Array

    def multiply(self, x: Float[Array, "*B n"], wide: bool) -> Float[Array, "*B m"]:
        return product(x, self.base, wide) + product(product(x, self.a), self.b, wide)


def product(x: Float[Array, "*B n"], w: Any, wide: bool = False) -> Float[Array, "*B m"]:
    """The product as one plain matrix product of [rows, n] and [n, m]: the fast form on CPU, in the backward pass too.

    Args:
      w: an array whose axes are merged into n and m, a `Quantised`, or an object with a method `multiply(x, wide)`.
      wide: leave the sums in f32 (f64 for f64) instead of rounding them to x's dtype.
    """
    if hasattr(w, "multiply"):
        return w.multiply(x, wide)
    x, numbers, scale = factors(x, w)
    matrix = numbers.reshape(x.shape[-1], -1)
    dtype = jnp.promote_types(x.dtype, jnp.float32) if wide else None
    out = jnp.dot(x.reshape(-1, x.shape[-1]), matrix.astype(x.dtype), preferred_element_type=dtype)
    out = out if scale is None else (out * scale).astype(out.dtype)
    return out.reshape(*x.shape[:-1], matrix.shape[1])
