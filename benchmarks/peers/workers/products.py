"""The matrix products of a decode step and nothing else: the wall that XLA's own products put up.

Products of the same input are one (q, k and v; gate and up), the vocabulary's table lies as the product wants it, and the two
products of attention read one array for each layer and kv head: the best forms known here. No norms, no rotation, no
softmax, no masks, no sampling. Axes: P problems, W lanes, A = P W rows, N slots, D width, H heads, K kv heads, h head size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apr_jax.model.transformer import Model


class BareProducts:
    """The products of one model, compiled for P problems of W lanes over N slots each."""

    def __init__(self, model: Model, problems: int, lanes: int, slots: int):
        self.config, self.problems, self.lanes = model.config, problems, lanes
        dtype = model.config.dtype
        flat = lambda weight: jnp.asarray(weight, dtype).reshape(weight.shape[0], -1)
        layers = []
        for i in range(model.config.layers):
            layer = model.params["layers"][str(i)]
            attention, ffn = layer["attention"], layer["ffn"]
            qkv = jnp.concatenate([flat(attention[name]) for name in ("q", "k", "v")], axis=1)
            out = jnp.asarray(attention["out"], dtype).reshape(-1, model.config.width)
            layers.append((qkv, out, jnp.concatenate([flat(ffn["gate"]), flat(ffn["up"])], axis=1), flat(ffn["down"])))
        kv_heads, size = model.config.kv_heads, model.config.head_dim
        keys = jax.random.split(jax.random.key(0), model.config.layers)
        pool = [
            (0.1 * jax.random.normal(key, (2, problems, kv_heads, size, slots), jnp.float32)).astype(dtype)
            for key in keys
        ]
        self.pool = tuple((k, v.swapaxes(-1, -2)) for k, v in pool)
        self.weights = tuple(layers), jnp.asarray(model.params["embed"], dtype).T
        self._run = jax.jit(self._steps)

    def run(self, steps: int) -> tuple[Array, Array]:
        """Take steps one after the other, each from what the last one gave."""
        return self._run(self.weights, self.pool, jnp.int32(steps))

    def _steps(self, weights: Any, pool: Any, steps: Int[Array, ""]) -> tuple[Array, Array]:
        config, rows = self.config, self.problems * self.lanes
        x = jnp.ones((rows, config.width), config.dtype)
        # The logits are carried because a product that nobody reads would be left out.
        logits = jnp.zeros((rows, config.vocabulary), config.dtype)
        return jax.lax.fori_loop(0, steps, lambda _, carry: self._step(weights, pool, carry[0]), (x, logits))

    def _step(self, weights: Any, pool: Any, x: Float[Array, "A D"]) -> tuple[Array, Array]:
        layers, table = weights
        for layer, memory in zip(layers, pool, strict=True):
            x = self._layer(layer, memory, x)
        # The next step must depend on this one, and numbers must stay of size one.
        return x / jnp.maximum(jnp.max(jnp.abs(x)), 1), x @ table

    def _layer(self, layer: Any, memory: Any, x: Float[Array, "A D"]) -> Float[Array, "A D"]:
        config = self.config
        qkv, out, gate_up, down = layer
        keys, values = memory
        kv_heads, size, group = config.kv_heads, config.head_dim, config.heads // config.kv_heads
        heads = (x @ qkv).reshape(self.problems, self.lanes, -1, size)
        q, k, v = jnp.split(heads, [config.heads, config.heads + kv_heads], axis=2)
        q = q.reshape(self.problems, self.lanes, kv_heads, group, size).transpose(0, 2, 3, 1, 4)
        q = q.reshape(self.problems, kv_heads, -1, size)
        read = (q @ keys @ values).reshape(self.problems, kv_heads, group, self.lanes, size).transpose(0, 3, 1, 2, 4)
        # k and v are added because columns of a product that nobody reads would be left out.
        read = read + (k + v)[:, :, :, None]
        x = x + read.reshape(x.shape[0], -1) @ out
        gate, up = jnp.split(x @ gate_up, 2, axis=1)
        return x + (gate * up) @ down
