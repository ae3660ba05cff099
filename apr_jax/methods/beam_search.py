"""Beam search and DVTS over the steps of a line of reasoning."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from apr_jax import protocols
from apr_jax.decode.problem import one_of
from apr_jax.methods.steps import Beams
from apr_jax.protocols.beam_search import Score
from apr_jax.record import Transcript

Answers = Literal["kept", "last"]


@dataclasses.dataclass(frozen=True)
class BeamSearch(Beams):
    """See `apr_jax.protocols.beam_search`.

    Attributes:
        score: what beams are ranked by.
        answers: the beams kept in the end, or ("last") behind each of them also the other candidates of its last round that went
            on from the same beam, as published for DVTS: beams x width texts, not all of which have come to their ends.
    """

    score: Score = "mean"
    answers: Answers = "kept"

    def __post_init__(self):
        super().__post_init__()
        one_of("beam_search.answers", self.answers, get_args(Answers))

    def made(self, step_ends: tuple[int, ...], end: int) -> protocols.BeamSearch:
        return protocols.BeamSearch(**self.choices(step_ends, end), score=self.score)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        kept = super().voices(transcript)
        if self.answers == "kept":
            return kept
        follows, tree = np.array([thread.follows for thread in transcript.threads]), transcript.own["tree"]
        candidates = transcript.own["steps"] > 0
        mates = [np.flatnonzero(candidates & (follows == follows[i]) & (tree == tree[i])).tolist() for i in kept]
        return list(dict.fromkeys(i for voice, group in zip(kept, mates, strict=True) for i in (voice, *group)))
