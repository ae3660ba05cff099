"""Losses on packed rows. Axes: B rows, S entries of a row, V vocabulary, C classes of tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from apr_jax.model import transformer
from apr_jax.model.attention import packed_attend
from apr_jax.train import chunked
from apr_jax.train.packing import Rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums of cross-entropy over labelled entries; the sums of batches may be added.

    Attributes:
        nll: sum of negative log-likelihood times weight, nats.
        weight: sum of the weights of the labels.
        labels: number of labels per class (the last class is "none"); integers, or float64 where the host has added them up.
        correct: number of labels that are the most likely token, per class.
    """

    nll: Float[Array, ""]
    weight: Float[Array, ""]
    labels: Real[Array, " C"]
    correct: Real[Array, " C"]

    @property
    def loss(self) -> Float[Array, ""]:
        """Mean cross-entropy, nats per labelled token."""
        return self.nll / jnp.maximum(self.weight, 1e-9)


def cross_entropy(
    logits: Float[Array, "*B V"], label: Int[Array, "*B"]
) -> tuple[Float[Array, "*B"], Bool[Array, "*B"]]:
    """Negative log-likelihood of each label, nats, computed in f32 (f64 for f64), and whether it is the most likely token.

    Args:
        logits: logits from which the label was sampled.
        label: token id, -1 for no label: 0 and False.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    real = label >= 0
    target = jnp.maximum(label, 0)
    picked = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    nll = jnp.where(real, jax.nn.logsumexp(logits, axis=-1) - picked, 0)
    return nll, real & (jnp.argmax(logits, axis=-1) == target)


def add_up(
    nll: Float[Array, "*B"],
    correct: Bool[Array, "*B"],
    label: Int[Array, "*B"],
    weight: Float[Array, "*B"],
    classes: Int[Array | np.ndarray, " V"],
    count: int,
) -> Sums:
    """Sums over labels.

    Args:
        nll, correct: see `cross_entropy`.
        label: token id, -1 for no label.
        weight: weight in the mean; ignored without a label.
        classes: class of every token id, 0 to `count` - 1.
        count: number of classes.
    """
    real = label >= 0
    weight = jnp.where(real, weight, 0)
    member = (jnp.asarray(classes)[jnp.maximum(label, 0)][..., None] == jnp.arange(count)) & real[..., None]
    axes = tuple(range(label.ndim))
    return Sums(
        nll=jnp.sum(nll * weight),
        weight=jnp.sum(weight),
        labels=jnp.sum(member, axis=axes, dtype=jnp.int32),
        correct=jnp.sum(member & correct[..., None], axis=axes, dtype=jnp.int32),
    )


def rows_loss(
    graph: transformer.Graph,
    params: transformer.Params,
    rows: Rows,
    classes: Int[Array | np.ndarray, " V"],
    count: int,
    chunk: int = 128,
    remat: str = transformer.KEEP_ALL,
) -> tuple[Float[Array, ""], Sums]:
    """Mean cross-entropy of a batch of packed rows under the visibility of decoding.

    Args:
        graph, params: the model.
        rows: the batch.
        classes, count: see `add_up`.
        chunk: queries per block of attention, and entries per block of logits where those are many, see `chunked.chunk_size`.
        remat: see `transformer.hidden`.
    """
    attend = packed_attend(rows.owner, rows.clock, rows.sees, chunk)
    cache = (None,) * graph.config.layers
    x, _ = transformer.hidden(graph, params, rows.token, rows.position, attend, cache, remat, rows.branch)
    size = chunked.chunk_size(rows.label.shape, graph.config.vocabulary, chunk)
    found = chunked.at_labels(cross_entropy, graph, params, x, rows.label, size=size)
    sums = add_up(*found, rows.label, rows.weight, classes, count)
    return sums.loss, sums


def summarise(sums: Sums, names: tuple[str, ...]) -> dict[str, float]:
    """The numbers to report: loss (nats per label), accuracy, and accuracy by class of label."""
    labels, correct = np.asarray(sums.labels, np.float64), np.asarray(sums.correct, np.float64)
    values = {"loss": float(sums.nll) / max(float(sums.weight), 1e-9), "accuracy": correct.sum() / max(labels.sum(), 1)}
    for name, right, all_ in zip(names, correct, labels, strict=True):
        values[f"accuracy/{name}"] = right / max(all_, 1)
    return {name: float(value) for name, value in values.items()}
