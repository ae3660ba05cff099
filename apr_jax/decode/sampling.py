"""Draws one token per row: greedy, or by inversion of the cumulative distribution with one uniform number per row.

The vocabulary is summed in blocks and never sorted: on CPU and TPU alike, sorting it costs more than a whole step of a small
model. Axes: B rows, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_BISECTIONS = 48
# Below this temperature sampling is greedy. A logit in f32 is accurate to about 1e-6: divided by a smaller temperature, rounding
# errors would decide the draw, and the draw would change with every way in which XLA fuses the program.
COLDEST = 1e-5


def _blocks(vocabulary: int) -> int:
    """Number of blocks; a block is the largest power of two up to 256 that divides the vocabulary."""
    size = next(size for size in (256, 128, 64, 32, 16, 8, 4, 2, 1) if vocabulary % size == 0)
    return vocabulary // size


def argmax(x: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The first maximum of each row, by block maxima (a plain argmax does not vectorise on XLA:CPU)."""
    blocks = x.reshape(x.shape[0], _blocks(x.shape[1]), -1)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    inside = jnp.argmax(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    return (block * blocks.shape[-1] + inside).astype(jnp.int32)


def _threshold(x: Float[Array, "B V"], mass: Float[Array, "B V"], least: Float[Array, "B"]) -> Float[Array, "B"]:
    """The largest threshold t, to rounding, such that the mass of {x >= t} is at least `least`."""

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) / 2
        enough = jnp.sum(jnp.where(x >= middle[:, None], mass, 0), axis=-1) >= least
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # The upper bound lies above the maximum, so that the search can reach the maximum itself.
    top = jnp.max(x, axis=-1)
    least_of = jnp.min(jnp.where(x > -jnp.inf, x, top[:, None]), axis=-1)  # of the tokens that are not banned
    low, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (least_of, top + 1 + jnp.abs(top) * 1e-6))
    return low


def _keep(x: Float[Array, "B V"], top_k: Int[Array, "B"], top_p: Float[Array, "B"]) -> Bool[Array, "B V"]:
    """The mask of the tokens that truncation keeps: the `top_k` largest, and of them the fewest that hold `top_p` of the mass."""
    ones = jnp.ones_like(x)
    count = jnp.where(top_k > 0, top_k, x.shape[-1]).astype(x.dtype)
    keep = x >= _threshold(x, ones, count)[:, None]
    mass = jnp.where(keep, jnp.exp(x - jnp.max(x, axis=-1, keepdims=True)), 0)
    nucleus = x >= _threshold(x, mass, jnp.minimum(top_p, 1).astype(x.dtype) * jnp.sum(mass, axis=-1))[:, None]
    return keep & (nucleus | (top_p >= 1)[:, None])


def _invert(weights: Float[Array, "B V"], uniform: Float[Array, "B"]) -> Int[Array, "B"]:
    """The smallest token whose cumulative weight is above `uniform` times the total."""
    blocks = weights.reshape(weights.shape[0], _blocks(weights.shape[1]), -1)
    sums = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    goal = uniform.astype(weights.dtype) * sums[:, -1]
    # Rounding may push the goal up to the total: then the last token with a weight is drawn.
    last_block = blocks.shape[1] - 1 - jnp.argmax(jnp.any(blocks > 0, axis=-1)[:, ::-1], axis=-1)
    block = jnp.minimum(jnp.sum(sums <= goal[:, None], axis=-1), last_block)
    before = jnp.where(block > 0, jnp.take_along_axis(sums, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    last = inside.shape[-1] - 1 - jnp.argmax((inside > 0)[:, ::-1], axis=-1)
    offset = jnp.minimum(jnp.sum(jnp.cumsum(inside, axis=-1) <= (goal - before)[:, None], axis=-1), last)
    return (block * inside.shape[-1] + offset).astype(jnp.int32)


def sample(
    logits: Float[Array, "B V"],
    uniform: Float[Array, "B"],
    temperature: Float[Array, "B"],
    top_k: Int[Array, "B"],
    top_p: Float[Array, "B"],
    adjusted: Float[Array, "B V"] | None = None,
) -> tuple[Int[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """Draw one token per row.

    Args:
        logits: in f32 (f64 in exact tests).
        uniform: one number in [0, 1) per row.
        temperature: below `COLDEST` means greedy.
        top_k: keep that many tokens; 0 means off.
        top_p: keep that share of the mass; 1 means off. Applied after `top_k`, on what it left.
        adjusted: the logits that tokens are drawn from, where those are not the model's.

    Returns:
        The token, its log-probability under the model, and its log-probability under the distribution drawn from (nats).
    """
    greedy, offered = temperature < COLDEST, logits if adjusted is None else adjusted

    def draw() -> tuple[Array, Array]:
        # The best token is at 0 exactly, however the division is rounded.
        scaled = (offered - jnp.max(offered, axis=-1, keepdims=True)) / jnp.where(greedy, 1, temperature).astype(
            logits.dtype
        )[:, None]
        truncates = ~greedy & ((top_k > 0) | (top_p < 1))
        keep = jax.lax.cond(
            jnp.any(truncates),
            lambda: _keep(scaled, top_k, top_p) | ~truncates[:, None],
            lambda: jnp.ones(scaled.shape, bool),
        )
        weights = jnp.where(keep, jnp.exp(scaled), 0)
        token = _invert(weights, uniform)
        return token, jnp.log(_pick(weights, token)) - jnp.log(jnp.sum(weights, axis=-1))

    nothing = jnp.zeros(greedy.shape, jnp.int32), jnp.zeros(greedy.shape, logits.dtype)
    drawn, behaviour = jax.lax.cond(jnp.all(greedy), lambda: nothing, draw)
    token = jnp.where(greedy, argmax(offered), drawn)
    logprob = _pick(logits, token) - jax.nn.logsumexp(logits, axis=-1)
    return token, logprob, jnp.where(greedy, 0, behaviour)


def _pick(x: Float[Array, "B V"], token: Int[Array, "B"]) -> Float[Array, "B"]:
    return jnp.take_along_axis(x, token[:, None], axis=1)[:, 0]
