"""Views: every thread sees the others in an order of its own, and each thread may stand at another position in every view.

Keys are rotated to the index of their token in its thread. What counts in attention is the difference of two rotations: instead of
the keys of a thread, which others read from elsewhere, the query is turned by the distance between where its own thread begins in
its view and where that thread does. A page of the pool belongs to one thread: there is one turn for each page, not for each slot.

Axes: P problems, M threads, W lanes, B tiles, R pages of a block, h size of a head.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from apr_jax.decode.book import Book
from apr_jax.decode.pool import Slots
from apr_jax.decode.schedule import Tiles
from apr_jax.decode.sizes import Sizes
from apr_jax.model.config import ModelConfig
from apr_jax.model.rotation import further_angles


def turns(
    books: Book, slots: Slots, tiles: Tiles, decodes: bool, sizes: Sizes, config: ModelConfig, dtype: Any
) -> Float[Array, "2 X Y blocks R 1 h"]:
    """The angles by which the queries of a step are turned further for each page: X, Y are P, W in a decode step, else B, 1.

    Args:
        books: before the step.
        slots: with the owners of the slots that the step writes.
        dtype: of the activations.
    """
    threads = books.threads
    fed = threads.cursor.fed.at[tiles.problem, tiles.thread].add(tiles.count, mode="drop")
    offsets = jax.vmap(books.protocol.offsets)(books, fed)  # [P, M, M]
    if decodes:
        at, viewer = jnp.arange(fed.shape[0]), tiles.lane_thread
    else:
        at, viewer = jnp.minimum(tiles.problem, fed.shape[0] - 1), tiles.thread[:, None]
    row = offsets[at[:, None], viewer]  # [X, Y, M]
    owner = jnp.maximum(slots.owner[at][:, None, :: sizes.page_size], 0)  # [X, 1, pages]
    begins = jnp.take_along_axis(row, jnp.broadcast_to(owner, (*viewer.shape, owner.shape[-1])), axis=2)
    further = jnp.take_along_axis(row, viewer[:, :, None], axis=2) - begins
    wide = jnp.promote_types(dtype, jnp.float32)
    return further_angles(further.reshape(*viewer.shape, -1, sizes.block // sizes.page_size), config, wide)
