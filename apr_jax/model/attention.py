"""Attention under a visibility mask, which is the only trace of threads in the model.

A row that sees nothing gives 0, never NaN, in the result and in the gradients. Softmax is computed in f32, or in f64 if
the inputs are f64.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.model.blockwise import HIDDEN, LOWEST, blockwise_attention, live_blocks
from apr_jax.model.visibility import entries, visible

LONG = 4096
"""Attention over packed rows of more entries than this is blockwise: masks of shorter rows are built once for all layers."""


def masked_attention(
    q: Float[Array, "*B Q H h"], k: Float[Array, "*B N K h"], v: Float[Array, "*B N K h"], mask: Bool[Array, "*#B Q N"]
) -> Float[Array, "*B Q H h"]:
    """Grouped-query attention of Q queries over N keys, scaled by h**-0.5.

    Query head i reads key head i // (H // K). The mask may broadcast over the leading axes. A query whose mask is False
    everywhere gets 0.
    """
    *_, queries, heads, head_dim = q.shape
    kv_heads = k.shape[-2]
    group = heads // kv_heads
    # [*B, K, G * Q, h]: one matrix product per key head, for any size of its group.
    q = jnp.moveaxis(q.reshape(*q.shape[:-2], kv_heads, group, head_dim) * head_dim**-0.5, -4, -2)
    q = q.reshape(*q.shape[:-3], group * queries, head_dim)
    scores = jnp.matmul(q, jnp.moveaxis(k, -3, -1), preferred_element_type=_wide(q.dtype))
    scores = scores.reshape(*scores.shape[:-2], group, queries, scores.shape[-1])
    scores = jnp.where(mask[..., None, None, :, :], scores, HIDDEN)
    # For a row that sees nothing, `top` stays above all masked scores, so that exp gives 0 for each.
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), LOWEST))
    weights = jnp.exp(scores - top)
    # Dividing after the product with v touches h numbers per query, not N. The total is 0, or at least 1 for rows that see a key.
    total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 0.5)
    weights = weights.astype(v.dtype).reshape(*weights.shape[:-3], group * queries, weights.shape[-1])
    out = jnp.matmul(weights, jnp.moveaxis(v, -3, -2)).reshape(*total.shape[:-1], head_dim) / total
    out = jnp.moveaxis(out.astype(v.dtype), -2, -4)
    return out.reshape(*out.shape[:-3], heads, head_dim)


def packed_blocks(
    owner: Int[Array, "B S"], clock: Int[Array, "B S"], sees: Bool[Array, "B U U"], chunk: int
) -> tuple[Bool[Array, "B _ _"], ...]:
    """The visibility masks of packed rows, in blocks: query chunk i against keys 0 .. (i + 1) * chunk.

    The rule is that of `apr_jax.model.visibility`. Rows are causal: every visible key stands before its query, so the blocks
    leave out only invisible keys.

    Args:
      owner: thread of each token; -1 for padding, which sees nothing and is not seen.
      clock: clock of each token.
      sees: visibility among the U threads of a row.
      chunk: queries of a block.

    Returns:
      One mask [B, chunk, (i + 1) * chunk] per query chunk; the last chunk may be shorter.
    """
    rows, length = entries(owner, clock, sees), owner.shape[1]
    block = lambda start, stop: visible(rows[start:stop], rows[:stop])
    return tuple(block(start, min(start + chunk, length)) for start in range(0, length, chunk))


def causal_attention(
    q: Float[Array, "B S H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    blocks: tuple[Bool[Array, "B _ _"], ...],
) -> Float[Array, "B S H h"]:
    """`masked_attention` of whole rows; the blocks of `packed_blocks` save half of the products."""
    out, start = [], 0
    for mask in blocks:
        stop = mask.shape[2]
        out.append(masked_attention(q[:, start:stop], k[:, :stop], v[:, :stop], mask))
        start = stop
    return jnp.concatenate(out, axis=1)


def packed_attend(
    owner: Int[Array, "B S"], clock: Int[Array, "B S"], sees: Bool[Array, "B U U"], chunk: int = 128
) -> Callable[[Array, Array, Array, Any], tuple[Array, Any]]:
    """The `attend` function (see `transformer.Attend`) for packed rows [B, S]; the layers' cache passes through unchanged.

    Up to `LONG` entries the masks are built once and shared by all layers; longer rows share the list of live blocks, and each
    layer makes the masks on the fly. Arguments: see `packed_blocks`.
    """
    if owner.shape[1] <= LONG:
        blocks = packed_blocks(owner, clock, sees, chunk)
        return lambda q, k, v, cache: (causal_attention(q, k, v, blocks), cache)
    live = live_blocks(owner, clock, sees, chunk)
    return lambda q, k, v, cache: (blockwise_attention(q, k, v, live), cache)


def _wide(dtype: Any) -> Any:
    """f32, or f64 if `dtype` is f64."""
    return jnp.promote_types(dtype, jnp.float32)
