"""Samples that stop as soon as the model has become unsure, and a vote among the confident ones.

Offline, as a filter of finished samples: `DeepConf(count=N, warmup=N, percentile=0)`, with selectors `Confident`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.samples import Samples
from apr_jax.record import Stop, Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class DeepConf(Samples):
    """See `apr_jax.protocols.deepconf`; to be used with the selector `Weighted`, or with `Confident`.

    Attributes:
        warmup, percentile, window, best: the choices of the protocol.
    """

    count: int = 16
    warmup: int = 4
    percentile: float = 90
    window: int = 2048
    best: int = 20
    independent = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("warmup", "window", "best"):
            whole(f"{self.name}.{name}", getattr(self, name), 1)
        self._protocol(0)

    def protocol(self, codec: TextCodec) -> protocols.DeepConf:
        return self._protocol(self.end_id(codec))

    def _protocol(self, end: int) -> protocols.DeepConf:
        choices = {name: getattr(self, name) for name in ("warmup", "percentile", "window", "best")}
        return protocols.DeepConf(self.count, end, **choices)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        """The samples that ran to their ends, and are at or above the bar."""
        confident = transcript.own["trace"] >= transcript.shared["bar"]
        ran = [thread.parent == 0 and thread.stop != Stop.PRUNED for thread in transcript.threads]
        return np.flatnonzero(confident & ran).tolist()

    def weight(self, transcript: Transcript, thread: int) -> float:
        return float(transcript.own["trace"][thread])

    def confidences(self, transcript: Transcript, thread: int) -> tuple[float, ...]:
        mine = (transcript.log.thread == thread) & transcript.log.sampled
        return tuple(transcript.log.signals[mine, 0].tolist())
