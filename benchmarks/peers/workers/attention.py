"""Attention over the pool and nothing else, as the engine does it in the middle of a run of threads.

Axes: P problems, W lanes, N slots, H heads, K kv heads, h head size.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from apr_jax import sharding
from apr_jax.decode import Sizes, native
from apr_jax.decode.pool import View, attend
from apr_jax.model.transformer import Model


class AttentionAlone:
    """One layer's attention for every layer of the model, compiled for P problems of W threads.

    Args:
        prefix, private: slots of each problem that all its threads see, and of each thread that it alone sees.
        page_size: slots of a page; threads write turn by turn, so that their pages lie between each other.
        block: slots by which the pool is read.
    """

    def __init__(
        self, model: Model, problems: int, threads: int, prefix: int, private: int, page_size: int, block: int
    ):
        config = model.config
        pages = -(-private // page_size) * threads
        slots = -(-(-(-prefix // page_size) * page_size + pages * page_size) // block) * block
        slot = np.arange(slots)
        behind = slot - -(-prefix // page_size) * page_size
        mine = (
            (behind >= 0)
            & (behind // page_size % threads == np.arange(threads)[:, None])
            & (behind // page_size < pages)
        )
        mine &= behind // page_size // threads * page_size + behind % page_size < private
        mask = np.broadcast_to((slot < prefix) | mine, (problems, threads, slots))
        self.mask, self.block, self.blocks = jnp.asarray(mask), block, slots // block
        sizes = Sizes(slots=slots, page_size=page_size, attention_block=block)
        self.kernel = native.choose(None, config, config.dtype, sizes, sharding.make_mesh())
        draw = lambda key, *shape: jax.random.normal(key, shape, jnp.float32).astype(config.dtype)
        keys = jax.random.split(jax.random.key(0), 2 * config.layers)
        self.pool = [draw(key, problems, slots, config.kv_heads * config.head_dim) for key in keys]
        self.q = draw(keys[0], problems, threads, config.heads, config.head_dim)
        self._run = jax.jit(self._steps)

    def run(self, steps: int) -> Float[Array, "P W H h"]:
        """Attend `steps` times in every layer, each time with what the last one gave."""
        return self._run(self.q, self.pool, self.mask, jnp.int32(self.blocks), jnp.int32(steps))

    def _steps(self, q: Array, pool: list[Array], mask: Bool[Array, "P W N"], blocks: Array, steps: Int[Array, ""]):
        def step(_, q):
            for keys, values in zip(pool[::2], pool[1::2], strict=True):
                q = attend(q, keys, values, View(mask, blocks), self.block, self.kernel)
            return q

        return jax.lax.fori_loop(0, steps, step, q)
