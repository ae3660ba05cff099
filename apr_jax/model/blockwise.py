"""Attention over long packed rows, block by block: no array of all pairs of entries, in the forward or in the backward pass.

Softmax is accumulated over blocks of keys and its sums are kept for the backward pass, which computes the weights again
(FlashAttention-2, arXiv 2307.08691, algorithms 1 and 2). Masks are made on the fly by the rule of `apr_jax.model.visibility`. Each
block of queries has a list of its *live* blocks of keys, those with a key that one of the queries sees; no other block is read.

Axes: B rows, S entries of a row, n blocks of a row, C entries of a block, H heads, K kv heads, G = H / K, h head size, U threads.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.model.visibility import Entries, entries, visible

HIDDEN = -1e30  # score of a key that is not seen; `LOWEST` stays above it, so that exp gives 0 where nothing is seen
LOWEST = -1e29


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Live:
    """The live blocks of packed rows, shared by all layers.

    Attributes:
      blocks: the entries in blocks, [B, n, C] and [B, n, C, words]; the last block is filled up with padding.
      keys: for each block of queries, the numbers of its live blocks of keys, then those of the others.
      count: number of live blocks of keys.
      turns: the largest of these numbers among the rows: computed once, because rows may lie on several devices.
    """

    blocks: Entries
    keys: Int[Array, "B n n"]
    count: Int[Array, "B n"]
    turns: Int[Array, " n"]


def live_blocks(owner: Int[Array, "B S"], clock: Int[Array, "B S"], sees: Bool[Array, "B U U"], chunk: int) -> Live:
    """The live blocks of packed rows.

    Args:
      owner, clock, sees: see `apr_jax.model.visibility.entries`.
      chunk: C, entries of a block.
    """
    reach = reached(owner, clock, sees, chunk)
    keys = jnp.argsort(~reach, axis=-1, stable=True)
    blocks = entries(_filled(owner, chunk, -1), _filled(clock, chunk), sees)
    count = jnp.sum(reach, axis=-1)
    return Live(jax.tree.map(lambda x: _cut(x, chunk), blocks), keys, count, jnp.max(count, axis=0))


def reached(
    owner: Int[Array, "B S"], clock: Int[Array, "B S"], sees: Bool[Array, "B U U"], chunk: int
) -> Bool[Array, "B n n"]:
    """Whether a query of one block sees a key of another, for all blocks of queries and keys; exact.

    The rule asks for threads and clocks only: the latest query of each thread in a block sees all that its other queries see, and
    the earliest key of each thread is seen if any of its keys is. Arguments: see `live_blocks`.
    """
    threads = jnp.arange(sees.shape[1], dtype=owner.dtype)
    mine = _cut(_filled(owner, chunk, -1), chunk)[..., None] == threads  # [B, n, C, U]
    times = _cut(_filled(clock, chunk), chunk)[..., None]
    never, always = jnp.iinfo(clock.dtype).min, jnp.iinfo(clock.dtype).max
    latest = jnp.max(jnp.where(mine, times, never), axis=2)
    earliest = jnp.min(jnp.where(mine, times, always), axis=2)

    def before(latest: Int[Array, "n U"], sees: Bool[Array, "U U"]) -> Int[Array, "n U"]:
        """The clock below which a block sees keys of each thread."""
        own = jnp.eye(len(sees), dtype=latest.dtype)
        each = jnp.where(sees & (latest[:, :, None] > never), latest[:, :, None] + own, never)
        return jnp.max(each, axis=1)

    bound = jax.vmap(before)(latest, sees)
    return jnp.any(earliest[:, None, :, :] < bound[:, :, None, :], axis=-1)


def skipped(
    owner: Int[Array, "B S"], clock: Int[Array, "B S"], sees: Bool[Array, "B U U"], chunk: int
) -> Float[Array, ""]:
    """The share of the pairs of blocks that causal attention would compute and blockwise attention does not, over all rows.

    Arguments: see `live_blocks`.
    """
    reach = reached(owner, clock, sees, chunk)
    rows, blocks, _ = reach.shape
    causal = rows * blocks * (blocks + 1) // 2
    return (causal - jnp.sum(reach)) / causal


@jax.custom_vjp
def blockwise_attention(
    q: Float[Array, "B S H h"], k: Float[Array, "B S K h"], v: Float[Array, "B S K h"], live: Live
) -> Float[Array, "B S H h"]:
    """`apr_jax.model.attention.masked_attention` of whole rows under the rule of `apr_jax.model.visibility`."""
    return _forward(q, k, v, live)[0]


def _forward(q: Array, k: Array, v: Array, live: Live) -> tuple[Array, tuple]:
    chunk = live.blocks.owner.shape[2]
    queries, keys, values = _queries(q, k.shape[2], chunk), _keys(k, chunk), _keys(v, chunk)
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def block(number: Array) -> tuple[Array, Array]:
        one = queries[:, number]
        rows, group = one.shape[:3], one.shape[2] // chunk
        start = (jnp.full(rows, LOWEST, wide), jnp.zeros(rows, wide), jnp.zeros(one.shape, wide))

        def step(turn: Array, carry: tuple) -> tuple:
            top, total, out = carry
            at, mask = _turn(live, number, turn)
            scores = _scores(one, _take(keys, at), mask, group)
            new = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights, shrink = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
            more = jnp.matmul(weights.astype(v.dtype), _take(values, at), preferred_element_type=wide)
            return new, total * shrink + jnp.sum(weights, axis=-1), out * shrink[..., None] + more

        top, total, out = jax.lax.fori_loop(0, live.turns[number], step, start)
        # The total is 0 for queries that see nothing, else at least 1.
        total = jnp.maximum(total, 0.5)
        return (out / total[..., None]).astype(v.dtype), top + jnp.log(total)

    out, sums = jax.lax.map(block, jnp.arange(queries.shape[1]))
    out = _entries(jnp.moveaxis(out, 0, 1), q.shape)
    return out, (q, k, v, live, out, sums)


def _backward(kept: tuple, slope: Float[Array, "B S H h"]) -> tuple[Array, Array, Array, None]:
    q, k, v, live, out, sums = kept
    chunk, kv_heads = live.blocks.owner.shape[2], k.shape[2]
    queries, keys, values = _queries(q, kv_heads, chunk), _keys(k, chunk), _keys(v, chunk)
    wide = sums.dtype
    slopes, scale = _in_groups(slope, kv_heads, chunk), q.shape[-1] ** -0.5
    pulled = jnp.sum(_in_groups(out, kv_heads, chunk).astype(wide) * slopes.astype(wide), axis=-1)

    def block(both: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], Array]:
        one, slope = queries[:, number], slopes[:, number]

        def step(turn: Array, carry: tuple) -> tuple:
            of_query, of_keys, of_values = carry
            at, mask = _turn(live, number, turn)
            key, value = _take(keys, at), _take(values, at)
            weights = jnp.exp(_scores(one, key, mask, one.shape[2] // chunk) - sums[number][..., None])
            of_weights = jnp.matmul(slope, jnp.swapaxes(value, -1, -2), preferred_element_type=wide)
            of_scores = (weights * (of_weights - pulled[:, number][..., None])).astype(q.dtype)
            turned = lambda x, y: jnp.matmul(jnp.swapaxes(x, -1, -2), y, preferred_element_type=wide)
            of_query += jnp.matmul(of_scores, key, preferred_element_type=wide)
            of_keys = _add(of_keys, at, turned(of_scores, one))
            return of_query, of_keys, _add(of_values, at, turned(weights.astype(slope.dtype), slope))

        start = (jnp.zeros(one.shape, wide), *both)
        of_query, of_keys, of_values = jax.lax.fori_loop(0, live.turns[number], step, start)
        return (of_keys, of_values), (of_query * scale).astype(q.dtype)

    nothing = (jnp.zeros(keys.shape, wide), jnp.zeros(values.shape, wide))
    (of_keys, of_values), of_queries = jax.lax.scan(block, nothing, jnp.arange(queries.shape[1]))
    back = lambda x, like: _entries(x, like.shape).astype(like.dtype)
    return back(jnp.moveaxis(of_queries, 0, 1), q), back(of_keys, k), back(of_values, v), None


blockwise_attention.defvjp(_forward, _backward)


def _filled(x: Array, chunk: int, value: int = 0) -> Array:
    """[B, S, ..] with rows filled up to whole blocks."""
    more = -x.shape[1] % chunk
    return jnp.pad(x, [(0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)], constant_values=value)


def _cut(x: Array, chunk: int) -> Array:
    """[B, n C, ..] as [B, n, C, ..]."""
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:])


def _keys(x: Float[Array, "B S K h"], chunk: int) -> Float[Array, "B n K C h"]:
    return jnp.swapaxes(_cut(_filled(x, chunk), chunk), 2, 3)


def _in_groups(x: Float[Array, "B S H h"], kv_heads: int, chunk: int) -> Float[Array, "B n K GC h"]:
    """The queries of each kv head under each other: one product per kv head, for any size of its group."""
    rows, _, heads, head_dim = x.shape
    x = _cut(_filled(x, chunk), chunk).reshape(rows, -1, chunk, kv_heads, heads // kv_heads, head_dim)
    return jnp.moveaxis(x, 2, 4).reshape(rows, -1, kv_heads, heads // kv_heads * chunk, head_dim)


def _queries(q: Float[Array, "B S H h"], kv_heads: int, chunk: int) -> Float[Array, "B n K GC h"]:
    return _in_groups(q * q.shape[-1] ** -0.5, kv_heads, chunk)


def _entries(x: Float[Array, "B n K GC h"], shape: tuple[int, ...]) -> Float[Array, "B S J h"]:
    """Back to rows of entries, those of the queries or of the keys."""
    rows, entries, heads, head_dim = shape
    blocks, kv_heads = x.shape[1:3]
    x = jnp.moveaxis(x.reshape(rows, blocks, kv_heads, heads // kv_heads, -1, head_dim), 4, 2)
    return x.reshape(rows, -1, heads, head_dim)[:, :entries]


def _turn(live: Live, number: Array, turn: Array) -> tuple[Int[Array, " B"], Bool[Array, "B C C"]]:
    """For a block of queries, the block of keys of each row that is next, and the mask. Rows without another live block take one
    that their queries do not see."""
    at = live.keys[:, number, turn]
    here, there = jax.tree.map(lambda x: x[:, number], live.blocks), jax.tree.map(lambda x: _take(x, at), live.blocks)
    return at, visible(here, there)


def _scores(
    queries: Float[Array, "B K GC h"], keys: Float[Array, "B K C h"], mask: Bool[Array, "B C C"], group: int
) -> Float[Array, "B K GC C"]:
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    scores = jnp.matmul(queries, jnp.swapaxes(keys, -1, -2), preferred_element_type=wide)
    return jnp.where(jnp.tile(mask, (1, group, 1))[:, None], scores, HIDDEN)


def _take(x: Any, at: Int[Array, " B"]) -> Any:
    """Of each row of [B, n, ..] its own block."""
    return jax.vmap(lambda blocks, number: blocks[number])(x, at)


def _add(x: Array, at: Int[Array, " B"], more: Array) -> Array:
    """[B, n, ..] with something added to one block of each row."""
    return jax.vmap(lambda blocks, number, block: blocks.at[number].add(block, unique_indices=True))(x, at, more)
