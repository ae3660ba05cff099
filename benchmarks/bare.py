"""Decoding without threads: the yardstick that tells what the thread machinery costs.

The same model, attention and sampling as the engine, in the plainest loop: every row takes a step at every step, its
key and value go to a place known from the step alone, and nothing is kept but the sampled tokens. There are no threads, no
books, no log, no events. Axes: P problems, W lanes, N slots, n prompt tokens, T sampled tokens.

The lanes of a problem share the keys and values of its prompt, as `Samples` does in the engine. One lane a problem is the
usual contiguous cache of each row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from apr_jax import sharding
from apr_jax.decode import native
from apr_jax.decode.book import pytree
from apr_jax.decode.pool import View, attend
from apr_jax.decode.sampling import sample
from apr_jax.decode.sizes import Sizes
from apr_jax.model import transformer


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where tokens stand: the prompt but its last token, then step by step one slot a lane.

    Attributes:
        problems, lanes: P, W; P W rows are decoded.
        prompt: n, tokens of every prompt, at least 2.
        tokens: T, tokens that a lane samples at most.
        block: slots that attention reads at a time.
    """

    problems: int
    lanes: int
    prompt: int
    tokens: int
    block: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 2 if field.name == "prompt" else 1
            if value < least:
                raise ValueError(f"layout.{field.name} = {value}: at least {least} is needed")

    @property
    def slots(self) -> int:
        """N: as many as all tokens need, in whole blocks."""
        return -(-(self.prompt - 1 + self.lanes * self.tokens) // self.block) * self.block

    def place(self, step: Int[Array, ""]) -> Int[Array, ""]:
        """First slot of a step; lane w writes w slots after it."""
        return self.prompt - 1 + step * self.lanes

    def mask(self, step: Int[Array, ""]) -> Bool[Array, "P W N"]:
        """What each lane sees in a step: the shared prompt and its own tokens up to this one."""
        slot, lane = np.arange(self.slots), np.arange(self.lanes)[:, None]
        mine = (slot < self.prompt - 1) | ((slot - (self.prompt - 1)) % self.lanes == lane)
        mask = jnp.asarray(mine) & (slot < self.place(step + 1))
        return jnp.broadcast_to(mask, (self.problems, *mask.shape))


@pytree
class BareState:
    """What the loop carries.

    Attributes:
        pool: per layer (keys, values), each [P, N, K h].
        token: the tokens to be fed next.
        sampled: the tokens sampled so far.
        step: how many of them there are.
        key: of all draws.
    """

    pool: tuple[tuple[Array, Array], ...]
    token: Int[Array, "P W"]
    sampled: Int[Array, "P W T"]
    step: Int[Array, ""]
    key: Key[Array, ""]


class BareLoop:
    """The loop, compiled once for a model and a layout.

    Args:
        model: the model.
        layout: where tokens stand.
        temperature: of all rows; 0 is greedy.
    """

    def __init__(self, model: transformer.Model, layout: Layout, temperature: float):
        on_cpu = jax.default_backend() == "cpu"
        model, self.layout, self.temperature = transformer.fuse(model) if on_cpu else model, layout, temperature
        self.dtype = jnp.promote_types(jax.tree.leaves(model.params)[0].dtype, model.config.dtype)
        sizes = Sizes(slots=layout.slots, page_size=1, attention_block=layout.block)
        self.kernel = native.choose(None, model.config, self.dtype, sizes, sharding.make_mesh())
        self.model = native.prepare(model, self.dtype) if self.kernel else model
        self.traces = 0
        self._run = jax.jit(self._traced, donate_argnums=1)
        self._start = jax.jit(self._prefill)

    def start(self, prompts: Int[np.ndarray, "P n"], seed: int) -> BareState:
        """Feed the prompts but their last tokens."""
        return self._start(self.model.params, jnp.asarray(prompts, jnp.int32), jax.random.key(seed))

    def run(self, state: BareState, steps: int) -> BareState:
        """Take `steps` steps; the state given is consumed."""
        return self._run(self.model.params, state, jnp.int32(steps))

    def _prefill(self, params: Any, prompts: Int[Array, "P n"], key: Key[Array, ""]) -> BareState:
        layout, config = self.layout, self.model.config
        shape = layout.problems, layout.slots, config.kv_heads * config.head_dim
        pool = tuple(tuple(jnp.zeros(shape, self.dtype) for _ in range(2)) for _ in range(config.layers))
        fed = layout.prompt - 1
        seen = np.arange(layout.slots) <= np.arange(fed)[:, None]
        mask = jnp.broadcast_to(seen, (layout.problems, *seen.shape))
        position = jnp.broadcast_to(jnp.arange(fed), (layout.problems, fed))
        layer = self._attend(mask, jnp.int32(0), fed)
        _, pool = transformer.hidden(self.model.graph, params, prompts[:, :-1], position, layer, pool)
        rows = layout.problems, layout.lanes
        sampled = jnp.zeros((*rows, layout.tokens), jnp.int32)
        return BareState(pool, jnp.broadcast_to(prompts[:, -1:], rows), sampled, jnp.int32(0), key)

    def _attend(self, mask: Bool[Array, "P Y N"], place: Int[Array, ""], count: int | Int[Array, ""]):
        """Attention that writes the step's keys and values from slot `place` on, and reads the slots up to there."""
        layout, zero = self.layout, jnp.zeros_like(place)
        view = View(mask, -(-(place + count) // layout.block))

        def layer(q, k, v, cache):
            flat = (*k.shape[:2], -1)
            write = lambda old, new: jax.lax.dynamic_update_slice(
                old, new.reshape(flat).astype(old.dtype), (zero, place, zero)
            )
            keys, values = write(cache[0], k), write(cache[1], v)
            return attend(q, keys, values, view, layout.block, self.kernel), (keys, values)

        return layer

    def _step(self, params: Any, state: BareState) -> BareState:
        layout, graph = self.layout, self.model.graph
        rows = layout.problems, layout.lanes
        layer = self._attend(layout.mask(state.step), layout.place(state.step), layout.lanes)
        position = jnp.broadcast_to(layout.prompt - 1 + state.step, rows)
        x, pool = transformer.hidden(graph, params, state.token, position, layer, state.pool)
        logits = transformer.logits(graph, params, x.reshape(-1, x.shape[-1]))
        every = lambda value, dtype: jnp.full(logits.shape[0], value, dtype)
        uniform = jax.random.uniform(jax.random.fold_in(state.key, state.step), logits.shape[:1], jnp.float32)
        temperature, off = every(self.temperature, jnp.float32), every(0, jnp.int32)
        token, _, _ = sample(logits, uniform, temperature, off, every(1, jnp.float32))
        token = token.reshape(rows)
        sampled = jax.lax.dynamic_update_slice(
            state.sampled, token[:, :, None], (jnp.int32(0), jnp.int32(0), state.step)
        )
        return BareState(pool, token, sampled, state.step + 1, state.key)

    def _traced(self, params: Any, state: BareState, steps: Int[Array, ""]) -> BareState:
        self.traces += 1
        last = jnp.minimum(state.step + steps, self.layout.tokens)
        return jax.lax.while_loop(lambda s: s.step < last, lambda s: self._step(params, s), state)
