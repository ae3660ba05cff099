"""The pool of key/value slots and attention over it.

Attention is over a set: a slot is visible or not, wherever it lies in the pool. Each layer keeps keys and values in arrays
[P, N, K h] (heads merged, so that the last axis fills TPU tiles). A step writes its rows before it reads, so that XLA updates
the arrays in place. Keys and values in int8 have scales [P, K, N] (slots last, because TPUs pad the last axis to 128); the
scales multiply attention scores and weights instead of keys and values.

Axes: P problems, N slots, W lanes, B tiles, C tokens of a tile, H heads, K kv heads, h head size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax import sharding
from apr_jax.decode import messages, native
from apr_jax.decode.book import NOBODY, Book, pytree
from apr_jax.decode.schedule import Places, Tiles
from apr_jax.decode.sizes import Sizes
from apr_jax.model.int8 import Quantised, quantise
from apr_jax.model.rotation import rotate
from apr_jax.record import Stop

Stored = Float[Array, "P N Kh"] | Quantised  # the keys or the values of a layer


@pytree
class Slots:
    """The writer and the clock of every slot.

    Attributes:
        owner: thread that wrote the slot; NOBODY if the problem has not written it.
        clock: clock of the token in the slot.
    """

    owner: Int[Array, "P N"]
    clock: Int[Array, "P N"]


@pytree
class View:
    """The attention mask of a step.

    Attributes:
        mask: Bool [P, W, N] in a decode step (one row per lane), [B, C, N] in a feed step.
        blocks: number of blocks that attention reads, up to the fill mark of the fullest problem.
        turns: the angles by which queries are turned further, see `apr_jax.decode.views`; None: they are not.
    """

    mask: Bool[Array, "..."]
    blocks: Int[Array, ""]
    turns: Float[Array, "..."] | None = None


def empty(sizes: Sizes, heads: int, size: int, dtype: Any) -> Stored:
    """Keys or values of one layer, all zero; `heads`: K, `size`: h."""
    shape = sizes.problems, sizes.slots, heads * size
    if not sizes.int8_pool:
        return jnp.zeros(shape, dtype)
    scale = jnp.zeros((sizes.problems, heads, sizes.slots), jnp.promote_types(dtype, jnp.float32))
    return Quantised(jnp.zeros(shape, jnp.int8), scale)


def put(stored: Stored, new: Float[Array, "B C K h"], row: Int[Array, "B C"], slot: Int[Array, "B C"]) -> Stored:
    """Store the keys or the values of a step; rows with slot N are dropped.

    NaN and infinity are stored as 0. Their problem ends with this step (Stop.NOT_FINITE), but the next problem in its place
    inherits the slot, and a masked NaN would still spoil the sums of attention.
    """
    heads, flat = new.shape[-2], (*row.shape, -1)
    new = jnp.where(jnp.isfinite(new), new, 0)
    if not isinstance(stored, Quantised):
        stored = stored.at[row, slot].set(new.reshape(flat).astype(stored.dtype), mode="drop")
        return sharding.hold(stored, heads)
    new = quantise(new, (-1,))
    values = stored.values.at[row, slot].set(new.values.reshape(flat), mode="drop")
    scale = stored.scale.at[row, :, slot].set(new.scale[..., 0].astype(stored.scale.dtype), mode="drop")
    return Quantised(sharding.hold(values, heads), sharding.hold(scale, heads, axis=1))


def write(slots: Slots, tiles: Tiles, places: Places, clock: Int[Array, "B C"]) -> Slots:
    """Record owner and clock of the slots that the step writes."""
    row = jnp.broadcast_to(tiles.problem[:, None], places.slot.shape)
    thread = jnp.broadcast_to(tiles.thread[:, None], places.slot.shape)
    return Slots(
        owner=slots.owner.at[row, places.slot].set(thread, mode="drop"),
        clock=slots.clock.at[row, places.slot].set(clock, mode="drop"),
    )


def relabel(slots: Slots, log_clock: Int[Array, "P T"], books: Book, sizes: Sizes) -> tuple[Slots, Book]:
    """After `lines.split`: give the slots of the split-off tokens to their new owner.

    The log tells the clock of the first split-off token; all later tokens of the same thread are split off too. A page changes
    its owner only if all its tokens were split off.

    Args:
        log_clock: clock of every log entry, -1 if its token was not fed.
    """
    threads, every = books.threads, jnp.arange(books.active.shape[0])
    entry = messages.find_entry(books, every, threads.line.parent, threads.line.split_at, sizes)
    first = log_clock[every[:, None], entry]
    written = (threads.stop == Stop.SPLIT) & (first >= 0)
    theirs = slots.owner[:, None, :] == threads.line.parent[:, :, None]  # [P, M, N]
    moves = written[:, :, None] & theirs & (slots.clock[:, None, :] >= first[:, :, None])
    owner = jnp.where(jnp.any(moves, axis=1), jnp.argmax(moves, axis=1).astype(jnp.int32), slots.owner)
    # Clocks grow along a page: if its first slot moves, all its slots do.
    moved = jnp.any(moves, axis=1)[:, :: sizes.page_size] & (books.page_owner != NOBODY)
    pages = jnp.where(moved, owner[:, :: sizes.page_size], books.page_owner)
    return Slots(owner, slots.clock), books.replace(page_owner=pages)


def visible(
    words: UInt32[Array, "X Y words"],
    thread: Int[Array, "X Y"],
    clock: Int[Array, "X Y"],
    slots: Slots,
    page_size: int = 1,
    together: bool = False,
) -> Bool[Array, "X Y N"]:
    """The attention mask: a row sees its own thread up to and including itself, and visible threads at earlier clocks.

    The visibility of an owner is looked up once per page, so that the work per slot does not grow with the number of threads.

    Args:
        words: for each row, the visibility-matrix row of its thread.
        thread, clock: thread and clock of each row.
        slots: slots of the row's problem, [X, N] each.
        page_size: slots of a page. The first slot tells the page's owner; later slots may still hold tokens of an earlier
            owner, which no thread sees any more.
        together: slots with the same clock are visible too. Only live siblings can have written them, in this step.
    """
    owner = slots.owner.reshape(slots.owner.shape[0], 1, -1, page_size)  # [X, 1, pages, page_size]
    first = jnp.maximum(owner[..., 0], 0)  # [X, 1, pages]
    word = words
    if words.shape[-1] > 1:
        place = jnp.broadcast_to(first // 32, (*thread.shape, first.shape[-1]))
        word = jnp.take_along_axis(words, place, axis=2)
    sees = ((word >> (first % 32).astype(jnp.uint32)) & 1).astype(bool)  # [X, Y, pages]
    own = first == thread[:, :, None]
    limit = clock[:, :, None] + (own | together).astype(clock.dtype)
    written = (owner == owner[..., :1]) & (owner != NOBODY)
    mask = sees[..., None] & written & (slots.clock.reshape(owner.shape) < limit[..., None])
    return mask.reshape(*thread.shape, -1)


def visibility(books: Book, slots: Slots, tiles: Tiles, clock: Int[Array, "B C"], sizes: Sizes) -> View:
    """The attention mask of a step, after `write` has recorded its slots; `clock`: clock of every row."""
    needs = books.protocol.needs
    together = needs.together > 0
    page_size = 1 if needs.splits else sizes.page_size  # a page may hold tokens of both sides of a split
    used = (books.page_owner != NOBODY) & books.active[:, None]
    highest = jnp.max(jnp.where(used, jnp.arange(sizes.pages) + 1, 0))
    blocks = -(-(highest * sizes.page_size) // sizes.block)
    if clock.shape[1] == 1:
        lanes = jnp.arange(books.active.shape[0])[:, None]
        words, thread, busy = books.sees[lanes, tiles.lane_thread], tiles.lane_thread, tiles.lane_busy
        clock = tiles.to_lanes(clock[:, 0])
    else:
        at = jnp.minimum(tiles.problem, books.active.shape[0] - 1)
        words = jnp.broadcast_to(books.sees[at, tiles.thread][:, None], (*clock.shape, sizes.words))
        thread = jnp.broadcast_to(tiles.thread[:, None], clock.shape)
        busy = jnp.arange(clock.shape[1])[None] < tiles.count[:, None]
        slots = Slots(slots.owner[at], slots.clock[at])

    def one(i, mask):
        piece = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i * sizes.block, sizes.block, axis=1), slots)
        part = visible(words, thread, clock, piece, page_size, together) & busy[:, :, None]
        return jax.lax.dynamic_update_slice_in_dim(mask, part, i * sizes.block, axis=2)

    # Computed block by block, so that slots behind the fill mark cost nothing.
    mask = jax.lax.fori_loop(0, blocks, one, jnp.zeros((*thread.shape, sizes.slots), bool))
    return View(mask, blocks)


def attention(view: View, tiles: Tiles, places: Places, block: int, kernel: bool) -> Callable:
    """The `attend` function of a step (see `apr_jax.model.transformer.hidden`); the cache of a layer is its (keys, values).

    Args:
        block: slots that attention reads at a time.
        kernel: see `attend`.
    """
    row = jnp.broadcast_to(tiles.problem[:, None], places.slot.shape)

    def layer(q, k, v, cache):
        keys, values = (put(stored, new, row, places.slot) for stored, new in zip(cache, (k, v), strict=True))
        if q.shape[1] == 1:
            problems, lanes = tiles.lane_busy.shape
            spread = jnp.zeros((problems, lanes, *q.shape[2:]), q.dtype)
            spread = spread.at[tiles.problem, tiles.lane].set(q[:, 0], mode="drop")
            out = attend(spread, keys, values, view, block, kernel)
            out = out.at[tiles.problem, tiles.lane].get(mode="fill", fill_value=0)[:, None]
        else:
            out = attend(q, keys, values, view, block, kernel, tiles.problem)
        return out, (keys, values)

    return layer


def attend(
    q: Float[Array, "X Y H h"],
    keys: Stored,
    values: Stored,
    view: View,
    block: int,
    kernel: bool,
    problem: Int[Array, "X"] | None = None,
) -> Float[Array, "X Y H h"]:
    """Softmax attention under `view.mask`; a row that sees nothing gives 0.

    Args:
        q: queries of X problems, not scaled.
        block: slots that attention reads at a time.
        kernel: compute with `apr_jax.decode.native` instead of `blockwise_attention`.
        problem: row of the pool for each of the X, P for an idle one; None means all P rows in order.
    """
    if kernel:
        every = jnp.arange(keys.shape[0], dtype=jnp.int32)
        return native.attend(q, keys, values, every if problem is None else problem, view.mask, view.blocks * block)
    at = None if problem is None else jnp.minimum(problem, keys.shape[0] - 1)
    return blockwise_attention(q, keys, values, view, block, at)


def blockwise_attention(
    q: Float[Array, "X Y H h"],
    keys: Stored,
    values: Stored,
    view: View,
    block: int,
    rows: Int[Array, "X"] | None = None,
) -> Float[Array, "X Y H h"]:
    """Softmax attention under `view.mask`, block by block up to the fill mark; a row that sees nothing gives 0.

    Running maximum and sum are kept as in FlashAttention (Dao et al. 2022, section 3.1). Only the blocks in use are read, so
    that a large pool costs no more than a small pool with the same fill.

    Args:
        q: queries of X problems, not scaled.
        block: slots that attention reads at a time.
        rows: row of the pool for each of the X; None means all P rows in order.
    """
    x, y, heads, size = q.shape
    kv = keys.shape[-1] // size
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scaled_q = q * size**-0.5
    q = scaled_q.reshape(x, y, kv, heads // kv, size).transpose(0, 2, 3, 1, 4).reshape(x, kv, -1, size)

    def piece(a, i, axis, heads_axis):
        a = sharding.hold(jax.lax.dynamic_slice_in_dim(a, i * block, block, axis), kv, heads_axis)
        return a if rows is None else a[rows]

    def read_block(stored, i):
        """Keys or values [x, kv, block, size] and their scales, [x, kv, 1, block] or None."""
        numbers, scale = stored, None
        if isinstance(stored, Quantised):
            numbers, scale = stored.values, piece(stored.scale, i, 2, 1)[:, :, None]
        numbers = piece(numbers, i, 1, -1).reshape(x, block, kv, size).transpose(0, 2, 1, 3)
        return numbers.astype(q.dtype), scale

    scaled = lambda a, scale: a if scale is None else a * scale
    plain = lambda k: jnp.einsum("xkqh,xknh->xkqn", q, k, preferred_element_type=wide)

    def step(i, carry):
        top, total, out = carry
        (k, k_scale), (v, v_scale) = read_block(keys, i), read_block(values, i)
        mask = jax.lax.dynamic_slice_in_dim(view.mask, i * block, block, axis=2)[:, None, None]
        scores = scaled(plain(k) if view.turns is None else turned_product(scaled_q, k, view.turns, i), k_scale)
        scores = jnp.where(mask, scores.reshape(x, kv, -1, y, block), -jnp.inf).reshape(x, kv, -1, block)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
        shift = jnp.where(jnp.isfinite(new_top), new_top, 0)
        weights = jnp.exp(scores - shift[..., None])
        scale = jnp.exp(top - shift)
        total = total * scale + jnp.sum(weights, axis=-1)
        add = jnp.einsum("xkqn,xknh->xkqh", scaled(weights, v_scale).astype(q.dtype), v, preferred_element_type=wide)
        return new_top, total, out * scale[..., None] + add

    shape = q.shape[:-1]
    start = jnp.full(shape, -jnp.inf, wide), jnp.zeros(shape, wide), jnp.zeros(q.shape, wide)
    _, total, out = jax.lax.fori_loop(0, view.blocks, step, start)
    out = out / jnp.where(total > 0, total, 1)[..., None]
    out = out.reshape(x, kv, heads // kv, y, size).transpose(0, 3, 1, 2, 4)
    return out.reshape(x, y, heads, size).astype(q.dtype)


def turned_product(
    q: Float[Array, "X Y H h"], k: Float[Array, "X K n h"], turns: Float[Array, "2 X _ blocks R 1 h"], i: Int[Array, ""]
) -> Float[Array, "X K Q n"]:
    """Products of the n keys of block `i` with queries that are turned for each of its R pages; Q: heads of a group, then Y."""
    (x, y, heads, size), kv, pages = q.shape, k.shape[1], turns.shape[4]
    turns = jax.lax.dynamic_index_in_dim(turns, i, axis=3, keepdims=False)
    turned = rotate(q[:, :, None], turns).reshape(x, y, pages, kv, heads // kv, size)
    wide, k = jnp.promote_types(q.dtype, jnp.float32), k.reshape(x, kv, pages, -1, size)
    products = jnp.einsum("xypkgh,xkpsh->xkgyps", turned, k, preferred_element_type=wide)
    return products.reshape(x, kv, heads // kv * y, -1)
