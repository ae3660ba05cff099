"""Samples of which, after some tokens, the best are kept."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.samples import Samples
from apr_jax.protocols.scores import Score
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class LaunchPrune(Samples):
    """See `apr_jax.protocols.launch_prune`.

    Attributes:
        keep, after, score, hidden: the choices of the protocol.
    """

    count: int = 64
    keep: int = 8
    after: int = 2048
    score: Score = "scorer"
    hidden: int = 512
    independent = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("keep", "after", "hidden"):
            whole(f"{self.name}.{name}", getattr(self, name), 1)
        self._protocol(0)

    def protocol(self, codec: TextCodec) -> protocols.LaunchPrune:
        return self._protocol(self.end_id(codec))

    def _protocol(self, end: int) -> protocols.LaunchPrune:
        return protocols.LaunchPrune(self.count, end, self.keep, self.after, self.score, self.hidden)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        return np.flatnonzero(transcript.own["kept"]).tolist()
