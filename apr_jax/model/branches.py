"""Models that tell apart by which branch of a thought a token was written: a path (ParaThinker), a lane (LaneRoPE).

The branch is a number per token beside its position. 0 is what belongs to none: the prompt, a summary. Models have neither option
by default, and compile then to a program that knows no branches.

Embedding (`ModelConfig.branch_embedding`; ParaThinker, Wen et al. 2025, arXiv 2509.04475, and its released engine). Published: each
attention layer has a table [branches, h], 32 of them, that begins with zeros; the row of its branch is added to key and value of a
token before the rotation, the same for all heads of keys; queries are left alone. Assumed: in models that norm q and k (the
released ones do not) it is added after the norm.

Second rotation (`ModelConfig.branch_stride`; LaneRoPE, 2026, arXiv 2605.27570, of which only the abstract and summaries could be
read). Published: rotary positions get a second rotation by the index of the lane, so that attention knows how far apart two lanes
are; its frequencies are learned; Group Think's disjoint ranges of positions are one way to start them, which fails untrained in
places, and a start that is "NTK-aware" is better. Assumed: the angles of both rotations are added; all layers share one table of
frequencies; lanes are counted from 0. The frequency of a pair is written as `branch_stride` times its frequency of positions times
a learned factor, which starts at 1: the start is then exactly Group Think with ranges of `branch_stride` positions, in any dtype.
Another start is another value of `branch_factor` in the parameters.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from apr_jax.model.transformer import Model, abstract


def with_branches(model: Model, embedding: int = 0, stride: float = 0.0) -> Model:
    """A model without branches, which gets options that read them: where all branches are 0 it still computes what it did.

    Args:
      embedding, stride: `branch_embedding` and `branch_stride` of its configuration.

    Raises:
      ValueError: the model reads branches already, or a number is out of range.
    """
    if model.config.branches:
        raise ValueError("with_branches: the model reads branches already; give one that does not")
    config = dataclasses.replace(model.config, branch_embedding=embedding, branch_stride=stride)
    blank = abstract(config, model.graph.fused)
    return Model(blank.graph, _filled(model.params, blank.params))


def _filled(old: Any, blank: Any) -> Any:
    """The tree `blank` with the leaves of the tree `old`; those that are new begin as in a fresh model."""

    def leaf(name: str, new: Any) -> Any:
        return _filled(old[name], new) if name in old else jnp.full(new.shape, name == "branch_factor", new.dtype)

    return {name: leaf(name, new) for name, new in blank.items()} if isinstance(blank, dict) else old
