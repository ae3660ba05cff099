"""Beam search and DVTS over the steps of a line of reasoning."""

import dataclasses
from collections.abc import Callable

from apr_jax import protocols
from apr_jax.methods.steps import Steps
from apr_jax.protocols.beam_search import Score


@dataclasses.dataclass(frozen=True)
class BeamSearch(Steps):
    """See `apr_jax.protocols.beam_search`.

    Attributes:
        score: what beams are ranked by.
    """

    score: Score = "mean"

    def made(self, ids: Callable[[str], int], end: int) -> protocols.BeamSearch:
        return protocols.BeamSearch(**self.choices(ids, end), score=self.score)
