"""Measure what a protocol pays for features while nothing happens: samples without them, and samples that listen or adjust.

    python -m benchmarks.features
    python -m benchmarks.features --tokenizer work/smollm2.gguf

`recogniser` looks for ThreadWeaver's tags and captures the number of an outline; the tags are ordinary text in these vocabularies,
the dearer case. `adjust` bans two tokens, `signals` measures an entropy. The model is tiny, with a vocabulary as large as the
tokenizer's: a share of its step is the largest that a feature can have.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from apr_jax import settings
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.decode.signals import Entropy
from apr_jax.pretrained import tokenizer
from apr_jax.protocols import Samples
from apr_jax.tasks.countdown import SHIPPED
from benchmarks import turns

PHRASES = (
    Phrase("outlines", "<Outlines>"),
    Phrase("outline", "<Outline>", until=":"),
    Phrase("fork", "</Outlines>"),
    Phrase("close", "</Thread>"),
)


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """Settings of the measurement.

    Attributes:
        tokenizer: file or folder of the vocabulary.
        tokens: that each sample generates.
        turns: measurements of each.
        output: folder of `features.json`.
    """

    tokenizer: str = str(SHIPPED / "compact.model")
    tokens: int = 256
    turns: int = 7
    output: str = "results/features"


@dataclasses.dataclass(frozen=True)
class Listening(Samples):
    """Samples that look for control words and do nothing about them."""

    recogniser: Recogniser

    def own_state(self):
        return self.recogniser.start()

    def observe(self, shared: Any, own: Any, drawn: Any):
        found, event = self.recogniser.step(own, drawn.token)
        return found, drawn.token, jnp.where(event < 0, 1, 0)  # never, but the compiler does not know


@dataclasses.dataclass(frozen=True)
class Adjusting(Samples):
    """Samples that may not draw the first two tokens."""

    @property
    def needs(self):
        return dataclasses.replace(super().needs, adjusts=True)

    def adjust(self, shared: Any, own: Any, bulk: Any, logits: Any):
        return jnp.where(jnp.arange(logits.shape[0]) < 2, -jnp.inf, logits)


@dataclasses.dataclass(frozen=True)
class Measuring(Samples):
    """Samples with a signal a token."""

    @property
    def needs(self):
        return dataclasses.replace(super().needs, signals=(Entropy(),))


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, FeaturesConfig())
    codec, choices = tokenizer.load(config.tokenizer), (turns.SAMPLES, -1)
    protocols = {
        "nothing": Samples(*choices),
        "recogniser": Listening(*choices, Recogniser.of(codec, PHRASES)),
        "adjust": Adjusting(*choices),
        "signals": Measuring(*choices),
    }
    model = dataclasses.replace(turns.MODEL, vocabulary=codec.size)
    engines = {name: turns.engine(each, 1 + turns.SAMPLES, config.tokens, model) for name, each in protocols.items()}
    found = turns.measure(engines, config.tokens, config.turns)
    turns.report(f"feature, {codec.size:,} tokens", found, Path(config.output) / "features.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
