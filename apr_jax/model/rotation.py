"""Rotary positions: the angles of tokens, and the rotation of heads by them.

Axes: h size of a head, p = h / 2 pairs of coordinates that turn together.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apr_jax.model import rope as rotary
from apr_jax.model.config import ModelConfig


def rope_angles(
    positions: Int[Array, "*B"],
    config: ModelConfig,
    dtype: Any,
    branches: Int[Array, "*B"] | None = None,
    factor: Float[Array, "p"] | None = None,
) -> Float[Array, "2 *B 1 h"]:
    """Cosine and sine of the rotary angles, in f32 (f64 if `dtype` is f64); the two halves of a head have the same angles.

    Args:
      positions: positions of the tokens.
      dtype: of the activations.
      branches, factor: of the tokens and of the pairs, for the second rotation, see `apr_jax.model.branches`; None: there is none.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    frequency = rotary.frequencies(config.rope_theta, config.head_dim, config.rope)
    frequency = jnp.expand_dims(jnp.asarray(np.tile(frequency, 2), wide), range(positions.ndim + 1))
    angle = positions[..., None, None].astype(wide) * frequency
    if factor is not None:
        ahead = config.branch_stride * branches[..., None, None].astype(wide) * jnp.tile(factor.astype(wide), 2)
        angle = angle + ahead * frequency
    turns = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
    return turns if config.rope.magnitude == 1 else turns * config.rope.magnitude


def further_angles(by: Int[Array, "*B"], config: ModelConfig, dtype: Any) -> Float[Array, "2 *B 1 h"]:
    """Angles that turn heads, which have been rotated to their positions, by so many positions further."""
    unscaled = dataclasses.replace(config.rope, attention=1.0)  # YaRN's factor is in the heads already
    return rope_angles(by, dataclasses.replace(config, rope=unscaled), dtype)


def rotate(x: Float[Array, "*#B H h"], rope: Float[Array, "2 *#B 1 h"]) -> Float[Array, "... H h"]:
    """Rotates pairs (i, i + h/2) of each head by their angles, in the dtype of `rope`."""
    cos, sin = rope[0], rope[1]
    wide = x.astype(cos.dtype)
    low, high = jnp.split(wide, 2, axis=-1)
    return (wide * cos + jnp.concatenate([-high, low], axis=-1) * sin).astype(x.dtype)
