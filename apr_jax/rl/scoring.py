"""Log-probabilities of packed labels by the training forward pass. Axes: B rows, S entries of a row,
C entries of a chunk, V vocabulary."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.model import transformer
from apr_jax.model.attention import packed_attend
from apr_jax.train import chunked
from apr_jax.train.packing import Rows

FORK = 0.01
"""Spawn, wait and end together have more than this share of the mass where a fork is being decided, whatever was drawn then."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """What a forward pass says of the labels of rows, 0 or False where there is none; [B, S] each.

    Attributes:
        logprob: log-probability of the label at its temperature, nats.
        entropy: of the distribution at that temperature, nats.
        forks: whether a fork is being decided there, see `FORK`.
    """

    logprob: Float[Array, "B S"]
    entropy: Float[Array, "B S"]
    forks: Bool[Array, "B S"]


def score(
    graph: transformer.Graph,
    params: transformer.Params,
    rows: Rows,
    temperature: Float[Array, "B S"],
    control: tuple[int, ...] = (),
    chunk: int = 128,
    remat: str = transformer.KEEP_ALL,
) -> Scores:
    """Scores the labels of packed rows under the visibility of decoding.

    Args:
        graph, params: the model.
        temperature: at which each label was drawn.
        control: the ids by which the model spawns, waits and ends.
        chunk: queries per block of attention, and entries per block of logits where those are many, see `chunked.chunk_size`.
        remat: see `transformer.hidden`.
    """
    attend = packed_attend(rows.owner, rows.clock, rows.sees, chunk)
    cache = (None,) * graph.config.layers
    x, _ = transformer.hidden(graph, params, rows.token, rows.position, attend, cache, remat)
    size = chunked.chunk_size(rows.label.shape, graph.config.vocabulary, chunk)
    part = functools.partial(_score, control=control)
    return chunked.at_labels(part, graph, params, x, rows.label, temperature, size=size)


def _score(
    logits: Float[Array, "B C V"], label: Int[Array, "B C"], temperature: Float[Array, "B C"], control: tuple[int, ...]
) -> Scores:
    real = label >= 0
    logits = logits / jnp.where(real, temperature, 1)[..., None].astype(logits.dtype)
    logprobs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    picked = jnp.take_along_axis(logprobs, jnp.maximum(label, 0)[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
    mass = jnp.sum(jnp.exp(logprobs[..., jnp.array(control, jnp.int32)]), axis=-1)
    return Scores(jnp.where(real, picked, 0), jnp.where(real, entropy, 0), real & (mass > FORK))
