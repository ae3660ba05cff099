"""The repetition penalty: a set of token ids, one bit each, kept as the bulk state of a line, and the logits that it changes.

As in SGLang since 2025: logits of tokens that the line has sampled are divided by the penalty if they are positive, else multiplied
by it. Axes: V vocabulary.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32


def nothing(vocabulary: int) -> UInt32[Array, "words"]:
    """No token of a vocabulary."""
    return jnp.zeros(-(-vocabulary // 32), jnp.uint32)


def add(present: UInt32[Array, "words"], token: Int[Array, ""], anew: Bool[Array, ""]) -> UInt32[Array, "words"]:
    """The set with one more token; `anew`: what it held is another line's."""
    bit = jnp.where(jnp.arange(present.shape[0]) == token // 32, jnp.uint32(1) << (token % 32).astype(jnp.uint32), 0)
    return jnp.where(anew, jnp.uint32(0), present) | bit.astype(jnp.uint32)


def weigh(
    logits: Float[Array, "V"], present: UInt32[Array, "words"], penalty: Float[Array, ""] | float
) -> Float[Array, "V"]:
    """The logits under the penalty; a model's vocabulary may be longer than the set's."""
    bits = (present[:, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    held = jnp.pad(bits.reshape(-1), (0, max(logits.shape[0] - bits.size, 0)))[: logits.shape[0]] > 0
    return jnp.where(held, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
