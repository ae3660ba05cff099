"""A scorer: a small network that reads one number off a hidden state, the chance that a line of reasoning ends right, for example.

    logit = relu(hidden state . kernel + bias) . kernel + bias

Its weights are a tree of their own beside the model's. Axes: D width of the model, H hidden units of the scorer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from apr_jax.model import io

FORMAT = "apr_jax scorer 1"
HIDDEN = 512

Weights = Mapping[str, Any]
"""`hidden`: kernel [D, H] and bias [H]; `out`: kernel [H] and bias []."""


def abstract(width: int, hidden: int = HIDDEN) -> Weights:
    """Shapes and dtypes of the weights."""
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return {
        "hidden": {"kernel": shaped(width, hidden), "bias": shaped(hidden)},
        "out": {"kernel": shaped(hidden), "bias": shaped()},
    }


def create(seed: int, width: int, hidden: int = HIDDEN) -> Weights:
    """Random weights, whose logits are of the size of 1 for hidden states of unit mean square."""
    rng = np.random.default_rng(seed)
    drawn = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
    return {
        "hidden": {"kernel": drawn(width, hidden), "bias": drawn(hidden)},
        "out": {"kernel": drawn(hidden), "bias": jnp.zeros((), jnp.float32)},
    }


def logit(weights: Weights, state: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """The score of each hidden state (the output of `transformer.hidden`), before the sigmoid; computed in f32 (f64 for f64)."""
    wide = state.astype(jnp.promote_types(state.dtype, jnp.float32))
    hidden, out = (jax.tree.map(lambda leaf: leaf.astype(wide.dtype), weights[name]) for name in ("hidden", "out"))
    return jax.nn.relu(wide @ hidden["kernel"] + hidden["bias"]) @ out["kernel"] + out["bias"]


def check(what: str, weights: Weights, width: int, hidden: int) -> None:
    """Refuse weights that do not fit a model of this width, or a scorer of so many hidden units.

    Raises:
        ValueError: a tensor is missing, or has another shape; the message names it.
    """
    shapes = lambda tree: {name: tuple(leaf.shape) for name, leaf in io.flatten(tree).items()}
    found, right = shapes(weights), shapes(abstract(width, hidden))
    if found != right:
        raise ValueError(f"{what} has the tensors {found}; for this model and protocol they must be {right}")


def save(path: str | Path, weights: Weights) -> None:
    """Write a scorer's weights as one safetensors file."""
    tensors = {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in io.flatten(weights).items()}
    io.write_tensors(path, tensors, {"format": FORMAT})


def load(path: str | Path) -> Weights:
    """Read a file written by `save`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or no scorer.
    """
    tensors, _ = io.read_tensors(path, FORMAT)
    return jax.tree.map(jnp.asarray, io.nest(tensors))
