"""A pool of lines of reasoning that are scored thought by thought: the worst are given up, and the best branch in their place."""

import dataclasses
from collections.abc import Sequence

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.samples import Samples
from apr_jax.protocols.scores import Score
from apr_jax.protocols.verbs import UNITS
from apr_jax.record import Stop, Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Gambit(Samples):
    """See `apr_jax.protocols.gambit`; to be used with the selector `Weighted`.

    Attributes:
        thought_ends: a thought ends with any of these control words, or a token that holds one of these texts.
        every, warmup, threshold, replace, branches, score, hidden: the choices of the protocol.
    """

    count: int = 256
    thought_ends: tuple[str, ...] = ("\n\n",)
    every: int = 200
    warmup: int = 12_000
    threshold: float = 0.1
    replace: int = 16
    branches: int = 64
    score: Score = "scorer"
    hidden: int = 512
    independent = False

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("every", 1), ("warmup", 0), ("replace", 0), ("branches", 0), ("hidden", 1)):
            whole(f"{self.name}.{name}", getattr(self, name), least)
        self._protocol((1,), 0)

    def protocol(self, codec: TextCodec) -> protocols.Gambit:
        return self._protocol(codec.holding("gambit.thought_ends", self.thought_ends), self.end_id(codec))

    def _protocol(self, thought_ends: tuple[int, ...], end: int) -> protocols.Gambit:
        names = ("every", "warmup", "threshold", "replace", "branches", "score", "hidden")
        choices = {name: getattr(self, name) for name in names}
        return protocols.Gambit(self.count, end, thought_ends, **choices)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        """The last threads of the completed traces."""
        threads = enumerate(transcript.threads)
        return [i for i, thread in threads if thread.parent == 0 and thread.stop in (Stop.END, Stop.LENGTH)]

    def weight(self, transcript: Transcript, thread: int) -> float:
        """Its score; that of a trace without a scored thought is 0."""
        own = transcript.own
        return float(own["total"][thread]) / UNITS / max(int(own["scored"][thread]), 1)
