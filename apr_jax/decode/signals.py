"""Signals: numbers about every row, from its next-token distribution or its hidden state, for protocols that need them."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from apr_jax.model import scorer


@dataclasses.dataclass(frozen=True)
class Rows:
    """What signals are computed from.

    Attributes:
        logprobs: of the model (temperature 1, no truncation), nats.
        hidden: the hidden states that they were computed from: after the token that the row was fed.
        scorer: the weights of the scorer; `()` where no signal reads it.
    """

    logprobs: Float[Array, "B V"]
    hidden: Float[Array, "B D"]
    scorer: Any


@dataclasses.dataclass(frozen=True)
class Signal(abc.ABC):
    """A number computed for every row; static, so that a signal that no protocol needs costs nothing."""

    @abc.abstractmethod
    def __call__(self, rows: Rows) -> Float[Array, "B"]:
        """The signal of each row."""


@dataclasses.dataclass(frozen=True)
class Entropy(Signal):
    """The entropy of the distribution, nats."""

    def __call__(self, rows: Rows) -> Float[Array, "B"]:
        return -jnp.sum(jnp.exp(rows.logprobs) * rows.logprobs, axis=-1)


@dataclasses.dataclass(frozen=True)
class BestMean(Signal):
    """Minus the mean log-probability of the `best` likeliest tokens: the confidence of DeepConf (Fu et al. 2025, arXiv 2508.15260,
    section 2)."""

    best: int = 20

    def __post_init__(self):
        if self.best < 1:
            raise ValueError(f"best_mean.best is {self.best}; at least 1 token is needed")

    def __call__(self, rows: Rows) -> Float[Array, "B"]:
        return -jnp.mean(jax.lax.top_k(rows.logprobs, min(self.best, rows.logprobs.shape[-1]))[0], axis=-1)


@dataclasses.dataclass(frozen=True)
class Logprobs(Signal):
    """The log-probability that the next token is one of `tokens`, nats; `tokens` may be the spellings of "yes", for example."""

    tokens: tuple[int, ...]

    def __call__(self, rows: Rows) -> Float[Array, "B"]:
        return jax.nn.logsumexp(rows.logprobs[:, jnp.array(self.tokens)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Scorer(Signal):
    """What a scorer (`apr_jax.model.scorer`) reads off the hidden state, as a probability.

    Its weights are given to the engine and may be changed there. The state after a token is that of the row that is fed the token:
    it is the signal of the row from which the next token is drawn.

    Attributes:
        hidden: units of the scorer.
    """

    hidden: int = scorer.HIDDEN

    def __post_init__(self):
        if self.hidden < 1:
            raise ValueError(f"scorer.hidden is {self.hidden}; at least 1 unit is needed")

    def __call__(self, rows: Rows) -> Float[Array, "B"]:
        return jax.nn.sigmoid(scorer.logit(rows.scorer, rows.hidden))


def scored_by(signals: tuple[Signal, ...]) -> Scorer | None:
    """The scorer among the signals, None if there is none.

    Raises:
        ValueError: there are several; an engine has the weights of one.
    """
    found = [signal for signal in signals if isinstance(signal, Scorer)]
    if len(found) > 1:
        raise ValueError(f"needs.signals has {len(found)} scorers; an engine has the weights of one")
    return found[0] if found else None


def measure(
    signals: tuple[Signal, ...], logits: Float[Array, "B V"], hidden: Float[Array, "B D"], weights: Any
) -> Float[Array, "B n"]:
    """The signals of every row, [B, n]; nothing is computed if n is 0."""
    if not signals:
        return jnp.zeros((logits.shape[0], 0), jnp.float32)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    rows = Rows(logprobs, hidden, weights)
    return jnp.stack([signal(rows) for signal in signals], axis=-1).astype(jnp.float32)
