"""Beam search and DVTS over the steps of a line of reasoning."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.decode.sampling import COLDEST
from apr_jax.methods.method import Method, Sampling
from apr_jax.protocols.beam_search import Finished, Score
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class BeamSearch(Method):
    """See `apr_jax.protocols.beam_search`.

    Attributes:
        step_ends: the words that end a step, each one id.
        beams, width, subtrees, steps, score, finished, distinct: the choices of the protocol.
    """

    step_ends: tuple[str, ...] = ("\n\n",)
    beams: int = 4
    width: int = 4
    subtrees: int = 1
    steps: int = 40
    score: Score = "mean"
    finished: Finished = "compete"
    distinct: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("beams", "width", "subtrees", "steps"):
            whole(f"beam_search.{name}", getattr(self, name), 1)
        # The protocol knows which choices go together; any ids do for that.
        self._protocol(0, tuple(range(1, 1 + len(self.step_ends))))

    def check(self, sampling: Sampling) -> Sampling:
        if self.width > 1 and (sampling.temperature < COLDEST or sampling.top_k == 1):
            greedy = "top_k is 1" if sampling.top_k == 1 else f"temperature is {sampling.temperature:g}"
            raise ValueError(
                f"{greedy}: the {self.width} candidates of each beam would be copies of one; raise temperature (0.8, say) and "
                "top_k, or take the method Sequential"
            )
        return sampling

    def protocol(self, codec: TextCodec) -> protocols.BeamSearch:
        return self._protocol(self.end_id(codec), tuple(codec.id(word) for word in self.step_ends))

    def _protocol(self, end: int, step_ends: tuple[int, ...]) -> protocols.BeamSearch:
        choices = ("beams", "width", "subtrees", "steps", "score", "finished", "distinct")
        return protocols.BeamSearch(end, step_ends, **{name: getattr(self, name) for name in choices})

    def voices(self, transcript: Transcript) -> Sequence[int]:
        """The last threads of the beams that were kept in the end, the best first."""
        place = transcript.own["place"]
        kept = np.flatnonzero(place >= 0)
        return kept[np.argsort(place[kept])].tolist()
