"""Signals: numbers about the next-token distribution of a row, for protocols that need them."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Signal(abc.ABC):
    """A number computed from the logits of every row; static, so that a signal that no protocol needs costs nothing."""

    @abc.abstractmethod
    def __call__(self, logprobs: Float[Array, "B V"]) -> Float[Array, "B"]:
        """The signal of each row, from the log-probabilities of the model (temperature 1, no truncation), nats."""


@dataclasses.dataclass(frozen=True)
class Entropy(Signal):
    """The entropy of the distribution, nats."""

    def __call__(self, logprobs: Float[Array, "B V"]) -> Float[Array, "B"]:
        return -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


@dataclasses.dataclass(frozen=True)
class BestMean(Signal):
    """Minus the mean log-probability of the `best` likeliest tokens: the confidence of DeepConf (Fu et al. 2025, arXiv 2508.15260,
    section 2)."""

    best: int = 20

    def __post_init__(self):
        if self.best < 1:
            raise ValueError(f"best_mean.best is {self.best}; at least 1 token is needed")

    def __call__(self, logprobs: Float[Array, "B V"]) -> Float[Array, "B"]:
        return -jnp.mean(jax.lax.top_k(logprobs, min(self.best, logprobs.shape[-1]))[0], axis=-1)


@dataclasses.dataclass(frozen=True)
class Logprobs(Signal):
    """The log-probability that the next token is one of `tokens`, nats; `tokens` may be the spellings of "yes", for example."""

    tokens: tuple[int, ...]

    def __call__(self, logprobs: Float[Array, "B V"]) -> Float[Array, "B"]:
        return jax.nn.logsumexp(logprobs[:, jnp.array(self.tokens)], axis=-1)


def measure(signals: tuple[Signal, ...], logits: Float[Array, "B V"]) -> Float[Array, "B n"]:
    """The signals of every row, [B, n]; nothing is computed if n is 0."""
    if not signals:
        return jnp.zeros((logits.shape[0], 0), jnp.float32)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return jnp.stack([signal(logprobs) for signal in signals], axis=-1).astype(jnp.float32)
