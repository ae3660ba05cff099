"""Samples that stop as soon as the model has become unsure, and a vote among the confident ones.

Source: DeepConf online, Fu et al. 2025, arXiv 2508.15260; facebookresearch/deepconf, `deepconf-online.py`. The rule:

    1. a token's confidence is minus the mean log-probability of the `best` likeliest tokens of its row;
    2. a group's is the mean over `window` tokens in a row; a sample's the lowest of its groups, or its mean if none is whole;
    3. `warmup` samples run to their ends; the bar is a percentile of their confidences;
    4. the others start then, and each stops with the first group below the bar;
    5. samples at or above the bar vote, warm-up ones too, with the weight of their confidence.

Nothing runs in a race: the bar is fixed before those that it stops begin. The confidences of all tokens are logged. If all samples
are warm-up ones and the percentile is 0, nothing stops and all vote: `apr_jax.evaluate.select.Confident` filters them afterwards,
by any of the offline measures. What is easily done wrong: a group that is not whole yet stops nothing; and stopped samples are no
samples of the distribution.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll
from apr_jax.decode.signals import BestMean
from apr_jax.protocols import verbs
from apr_jax.protocols.samples import Samples


@pytree
class Confidence:
    """What a sample knows of its own confidence.

    Attributes:
        count: tokens sampled.
        total: the sum over its last group, or over all if that is not whole yet, in units.
        trace: the lowest of its groups so far, or its mean if none is whole yet.
    """

    count: Int[Array, ""]
    total: Int[Array, ""]
    trace: Float[Array, ""]


@pytree
class Bar:
    """The bar that groups must reach; -inf as long as the warm-up lasts."""

    bar: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class DeepConf(Samples):
    """Attributes: as of `Samples`, and

    warmup: samples that run to their ends; they come first.
    percentile: of their confidences, from 0 to 100, is the bar; between two of them it is interpolated.
    window: tokens of a group.
    best: likeliest tokens of a row that its confidence is read from.
    """

    warmup: int
    percentile: float = 90
    window: int = 2048
    best: int = 20

    handlers = (ForAll(verbs.end), ForAll(verbs.prune))

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.warmup <= self.count:
            raise ValueError(f"deep_conf.warmup is {self.warmup}; it must be from 1 to count, {self.count}")
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"deep_conf.percentile is {self.percentile}; it must be from 0 to 100")
        if self.window < 1:
            raise ValueError(f"deep_conf.window is {self.window}; a group has at least 1 token")

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, signals=(BestMean(self.best),), recorded=True, logged=True)

    def own_state(self) -> Confidence:
        return Confidence(jnp.int32(0), jnp.int32(0), jnp.float32(0))

    def shared_state(self) -> Bar:
        return Bar(jnp.float32(-jnp.inf))

    def bulk_state(self) -> Int[Array, "window"]:
        """The confidences of the line's last group, in units, as a ring."""
        return jnp.zeros(self.window, jnp.int32)

    def watch(
        self, bulk: Int[Array, "window"], own: Confidence, drawn: Drawn
    ) -> tuple[Int[Array, "window"], Confidence]:
        units, place = verbs.in_units(drawn.signals[0]), own.count % self.window
        total = own.total + units - jnp.where(own.count >= self.window, bulk[place], 0)
        count = own.count + 1
        group = verbs.mean(total, jnp.minimum(count, self.window))
        trace = jnp.where(count > self.window, jnp.minimum(own.trace, group), group)
        return bulk.at[place].set(units), Confidence(count, total, trace)

    def observe(self, shared: Bar, own: Confidence, drawn: Drawn) -> tuple[Confidence, Int[Array, ""], Int[Array, ""]]:
        own, token, event = super().observe(shared, own, drawn)
        unsure = (own.count >= self.window) & (verbs.mean(own.total, jnp.int32(self.window)) < shared.bar)
        return own, token, jnp.where((event == 0) & unsure, 2, event)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        return verbs.launch(book, thread, self.warmup)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """All of the warm-up have ended, or all others."""
        closed = super().joined(book, thread)
        warm, set_bar = book.shared.bar == -jnp.inf, book.replace(shared=Bar(self._bar(book, thread)))
        if self.warmup == self.count:
            return super().joined(set_bar, thread)
        return books.choose(warm, verbs.launch(set_bar, thread, self.count - self.warmup), closed)

    def _bar(self, book: Book, thread: Int[Array, ""]) -> Float[Array, ""]:
        """The percentile of the samples that have ended."""
        ended = books.awaited(book, thread)
        confidences = jnp.sort(jnp.where(ended, book.threads.own.trace, jnp.inf))
        place = self.percentile / 100 * (self.warmup - 1)
        low, high = confidences[math.floor(place)], confidences[math.ceil(place)]
        return low + (high - low) * jnp.float32(place - math.floor(place))
