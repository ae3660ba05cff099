"""Products with weights that are packed once, for CPUs that multiply bfloat16.

XLA:CPU brings the weights of a bfloat16 product into the order that the processor wants anew each time: of a step of SmolLM2
with 41 rows that was a third. `product.cc` takes them packed, and leaves out rows that are zero, as those of idle lanes are: a
program has as many rows as it may ever need, of which a fork-join workload keeps two thirds busy.
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
COLUMNS = 16  # that lie together; columns and what is summed over come in twice as many


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """May stand for the weight [n, m] of a product of bfloat16.

    Attributes:
        pairs: pairs of numbers that are summed over, by 16 columns.
    """

    pairs: BFloat16[Array, "m/16 n/2 16 2"]

    def multiply(self, x: BFloat16[Array, "*B n"], wide: bool) -> Float[Array, "*B m"]:
        """Sums are f32; `wide` leaves them so."""
        rows = x.reshape(-1, x.shape[-1])
        shape = rows.shape[0], self.pairs.shape[0] * COLUMNS
        out = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, jnp.float32 if wide else x.dtype))(rows, self.pairs)
        return out.reshape(*x.shape[:-1], shape[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Table:
    """May stand for an embedding table that is the output table too: it is kept twice.

    Attributes:
        rows: as it is, to be looked up.
        packed: to be multiplied with.
    """

    rows: Float[Array, "V D"]
    packed: Packed

    def __getitem__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return self.rows[tokens]

    def multiply(self, x: BFloat16[Array, "*B D"], wide: bool) -> Float[Array, "*B V"]:
        return self.packed.multiply(x, wide)


def pack(params: Params) -> Params:
    """The parameters of a fused model with all weights packed that are plain arrays and whose sizes allow it."""
    plain = lambda weight: not isinstance(weight, Quantised)

    def leaf(path: Any, weight: Any) -> Any:
        name = path[-1].key
        return packed(weight, len(SUMMED[name])) if name in SUMMED and name != "embed" and plain(weight) else weight

    def every(params: Params) -> Params:
        params = jax.tree_util.tree_map_with_path(leaf, params, is_leaf=lambda x: not plain(x))
        table = params["embed"]
        turned = packed(table.T, 1) if "head" not in params and plain(table) else table
        return {**params, "embed": Table(table, turned)} if isinstance(turned, Packed) else params

    return jax.jit(every)(params)


def packed(weight: Float[Array, "..."], summed: int) -> Packed | Array:
    """The weight packed; as it is if its sizes do not fit. Its first `summed` axes are summed over."""
    matrix = weight.reshape(math.prod(weight.shape[:summed]), -1)
    n, m = matrix.shape
    if n % (2 * COLUMNS) or m % (2 * COLUMNS):
        return weight
    return Packed(matrix.reshape(n // 2, 2, m // COLUMNS, COLUMNS).transpose(2, 0, 3, 1).astype(jnp.bfloat16))
