"""A server for plain clients: one full forward for each token, no pool and no clocks; draws are those of the lines of threads."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import reference_model


class Line:
    """The draws of one line of requests, and all tokens that it was answered with."""

    def __init__(self, key: jax.Array):
        self.key, self.uniforms, self.tokens, self.children = key, np.asarray(reference_model.uniforms(key)), [], []

    def child(self) -> "Line":
        self.children.append(Line(jax.random.fold_in(self.key, 1 + len(self.children))))
        return self.children[-1]


@dataclasses.dataclass
class Server:
    """The model, for the requests of one problem."""

    params: Any
    config: Any
    problem: Any
    seed: int

    def root(self) -> Line:
        return Line(
            jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), self.problem.id), self.problem.sample)
        )

    def next(
        self,
        line: Line,
        context: Sequence[int],
        positions: Sequence[int] | None = None,
        sees: np.ndarray | None = None,
    ) -> int:
        """One more token of a line after a context, which is causal and without gaps unless it is said otherwise."""
        ids = np.array(context)
        positions = np.arange(len(ids)) if positions is None else np.array(positions)
        logits = reference_model.all_logits(self.params, self.config, ids, positions, sees)[-1]
        line.tokens.append(reference_model.draw(logits, line.uniforms[len(line.tokens)], self.problem)[0])
        return line.tokens[-1]
