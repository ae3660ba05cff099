"""Attention under a visibility mask, which is the only trace of threads in the model.

A row that sees nothing gives 0, never NaN, in the result and in the gradients. Softmax is computed in f32, or in f64 if
the inputs are f64.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

WORD = 32  # visibility of 32 threads is one uint32


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
    scores = jnp.where(mask[..., None, None, :, :], scores, -1e30)
    # For a row that sees nothing, `top` stays above all masked scores, so that exp gives 0 for each.
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), -1e29))
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

    A key is visible if `sees[owner of query, owner of key]` and its clock is below the query's clock, or equal within one
    thread. Threads of a row are stored in causal order: every visible key stands before its query, so the blocks leave out
    only invisible keys.

    Args:
      owner: thread of each token; -1 for padding, which sees nothing and is not seen.
      clock: clock of each token.
      sees: visibility among the U threads of a row.
      chunk: queries of a block.

    Returns:
      One mask [B, chunk, (i + 1) * chunk] per query chunk; the last chunk may be shorter.
    """
    length, threads = owner.shape[1], sees.shape[1]
    words = -(-threads // WORD)
    sees = jnp.pad(sees, ((0, 0), (0, 0), (0, words * WORD - threads))).reshape(*sees.shape[:2], words, WORD)
    bits = jnp.sum(sees.astype(jnp.uint32) << jnp.arange(WORD, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)
    seen = jax.vmap(lambda table, row: table[row])(bits, jnp.maximum(owner, 0))  # [B, S, words]
    seen = jnp.where((owner >= 0)[..., None], seen, 0)
    in_word = (owner[..., None] >= 0) & (owner[..., None] // WORD == jnp.arange(words, dtype=owner.dtype))
    bit = jnp.where(in_word, jnp.uint32(1) << (owner[..., None] % WORD).astype(jnp.uint32), 0)

    def block(start: int, stop: int) -> Bool[Array, "B Q N"]:
        own = owner[:, start:stop, None] == owner[:, None, :stop]
        before = clock[:, None, :stop] < clock[:, start:stop, None] + own.astype(clock.dtype)
        related = [(seen[:, start:stop, None, w] & bit[:, None, :stop, w]) != 0 for w in range(words)]
        return jax.tree.reduce(jnp.logical_or, related) & before

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

    The masks are built once and shared by all layers. Arguments: see `packed_blocks`.
    """
    blocks = packed_blocks(owner, clock, sees, chunk)
    return lambda q, k, v, cache: (causal_attention(q, k, v, blocks), cache)


def _wide(dtype: Any) -> Any:
    """f32, or f64 if `dtype` is f64."""
    return jnp.promote_types(dtype, jnp.float32)
