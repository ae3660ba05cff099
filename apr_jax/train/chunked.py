"""Functions of the logits at labels, a chunk of entries at a time: logits of whole rows are never held where they are many.

A vocabulary of 150,000 makes [B, S, V] the largest array of a training step by far. What losses need of it is a few numbers per
entry, so a scan computes the logits of one chunk of entries after the other, and the backward pass computes them again. Entries
with a label come first, and chunks without any are skipped.

Axes: B rows, S entries of a row, C entries of a chunk, D width, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from apr_jax.model import transformer

WHOLE = 1 << 27
"""Logits of all entries are computed at once if each device holds at most this number of them, which are 512 MiB in f32."""


def chunk_size(shape: tuple[int, int], vocabulary: int, chunk: int) -> int:
    """Entries of a row whose logits are computed at once: all S if the logits of rows [B, S] are few, see `WHOLE`, else `chunk`."""
    rows, entries = shape
    devices = max(jax.sharding.get_abstract_mesh().size, 1)  # rows and vocabulary are cut over them
    return entries if rows * entries * vocabulary <= WHOLE * devices else min(chunk, entries)


def at_labels(
    function: Callable[..., Any],
    graph: transformer.Graph,
    params: transformer.Params,
    x: Float[Array, "B S D"],
    label: Int[Array, "B S"],
    *others: Shaped[Array, "B S"],
    size: int,
) -> Any:
    """A function of logits and labels, for `size` entries of each row at a time; with `size` >= S it is called once and plainly.

    Args:
        function: from logits [B, C, V], labels [B, C] and the chunks of `others` to a tree of arrays [B, C]. Each entry is
            computed alone, and is 0 without a label.
        graph, params: the model.
        x: the output of `transformer.hidden`.
        label: token ids, -1 for none.
        others: what else the function takes.
        size: C, see `chunk_size`.

    Returns:
        The function's tree, of arrays [B, S].
    """
    entries = label.shape[1]
    part = lambda x, *given: function(transformer.logits(graph, params, x), *given)
    if size >= entries:
        return part(x, label, *others)
    order = jnp.argsort(label < 0, axis=1, stable=True)  # row by row: rows may lie on several devices
    count = -(-entries // size)

    def cut(array: Array, value: int = 0) -> Array:
        """[B, S, ..] in that order, filled up and cut into [chunks, B, C, ..]."""
        array = jnp.take_along_axis(array, order.reshape(*order.shape, *(1,) * (array.ndim - 2)), axis=1)
        fill = [(0, 0), (0, count * size - entries), *[(0, 0)] * (array.ndim - 2)]
        array = jnp.pad(array, fill, constant_values=value)
        return jnp.moveaxis(array.reshape(array.shape[0], count, size, *array.shape[2:]), 1, 0)

    chunks = (cut(x), cut(label, -1), *map(cut, others))
    shapes = jax.eval_shape(part, *(chunk[0] for chunk in chunks))
    nothing = lambda *_: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    # Else the backward pass would keep the logits of all chunks. Within a scan nothing merges the two computations.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def either(*chunk: Array) -> Any:
        return jax.lax.cond(jnp.any(chunk[1] >= 0), part, nothing, *chunk)

    found = jax.lax.scan(lambda _, chunk: (None, either(*chunk)), None, chunks)[1]
    back = jnp.argsort(order, axis=1)
    join = lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], count * size)
    return jax.tree.map(lambda leaf: jnp.take_along_axis(join(leaf), back, axis=1), found)
