"""Products with weights that are packed once, for CPUs that multiply bfloat16.

XLA:CPU repacks the weights of every bfloat16 product into the processor's order: a third of a step of SmolLM2 with 41 rows.
`product.cc` takes packed weights and skips zero rows, such as the rows of idle lanes: a program has as many rows as it may ever
need, and a fork-join workload keeps two thirds of them busy.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Int

from apr_jax.model.int8 import SUMMED, Quantised
from apr_jax.model.transformer import Params

TARGET = "apr_jax_product"
COLUMNS = 16  # columns per tile; n and m must be multiples of 2 * COLUMNS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A packed weight [n, m] of a bfloat16 product; can replace the weight in the parameter tree.

    Attributes:
        pairs: the weight in tiles of 16 columns; pairs along the summed axis n are adjacent.
    """

    pairs: BFloat16[Array, "m/16 n/2 16 2"]

    def multiply(self, x: BFloat16[Array, "*B n"], wide: bool) -> Float[Array, "*B m"]:
        """The product of `x` with the weight. Sums are f32; `wide` returns them in f32 instead of bfloat16."""
        rows = x.reshape(-1, x.shape[-1])
        shape = rows.shape[0], self.pairs.shape[0] * COLUMNS
        out = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, jnp.float32 if wide else x.dtype))(rows, self.pairs)
        return out.reshape(*x.shape[:-1], shape[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """A tied embedding table, kept twice; can replace the table in the parameter tree.

    Attributes:
        rows: the plain table, for look-up of embeddings.
        packed: the packed table, for the output product.
    """

    rows: Float[Array, "V D"]
    packed: Packed

    def __getitem__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return self.rows[tokens]

    def multiply(self, x: BFloat16[Array, "*B D"], wide: bool) -> Float[Array, "*B V"]:
        return self.packed.multiply(x, wide)


def pack(params: Params) -> Params:
    """The parameters of a fused model; every weight that is a plain array of suitable sizes is packed."""
    return jax.jit(_every)(params)


def _every(params: Params) -> Params:
    plain = lambda weight: not isinstance(weight, Quantised)

    def leaf(path: Any, weight: Any) -> Any:
        name = path[-1].key
        return packed(weight, len(SUMMED[name])) if name in SUMMED and name != "embed" and plain(weight) else weight

    params = jax.tree_util.tree_map_with_path(leaf, params, is_leaf=lambda x: not plain(x))
    table = params["embed"]
    turned = packed(table.T, 1) if "head" not in params and plain(table) else table
    return {**params, "embed": Table(table, turned)} if isinstance(turned, Packed) else params


def packed(weight: Float[Array, "..."], summed: int) -> Packed | Array:
    """The packed weight, or the weight unchanged if its sizes do not fit. The product sums over its first `summed` axes."""
    matrix = weight.reshape(math.prod(weight.shape[:summed]), -1)
    n, m = matrix.shape
    if n % (2 * COLUMNS) or m % (2 * COLUMNS):
        return weight
    return Packed(matrix.reshape(n // 2, 2, m // COLUMNS, COLUMNS).transpose(2, 0, 3, 1).astype(jnp.bfloat16))
