"""Searches over the steps of a line of reasoning, as configurations name them."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from apr_jax.decode.problem import whole
from apr_jax.methods.method import Method, Sampling
from apr_jax.protocols.beams import Finished
from apr_jax.protocols.steps import StepSearch
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Steps(Method):
    """See `apr_jax.protocols.steps`. Its answers are the beams that have a place in the end, the best first.

    Attributes:
        step_ends: a step ends with any of these control words, or a token that holds one of these texts.
        width, steps, distinct: the choices of the protocol.
    """

    step_ends: tuple[str, ...] = ("\n\n",)
    width: int = 4
    steps: int = 40
    distinct: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "steps"):
            whole(f"{self.name}.{name}", getattr(self, name), 1)
        # The protocol knows which choices go together; any ids do for that.
        self.made(tuple(range(1, 1 + len(self.step_ends))), 0)

    def check(self, sampling: Sampling) -> Sampling:
        if self.width > 1:
            sampling.require_chance(f"the {self.width} candidates of each beam would be copies of one", 0.8)
        return sampling

    def protocol(self, codec: TextCodec) -> StepSearch:
        return self.made(codec.holding(f"{self.name}.step_ends", self.step_ends), self.end_id(codec))

    @abc.abstractmethod
    def made(self, step_ends: tuple[int, ...], end: int) -> StepSearch:
        """The protocol, once the ids of what ends steps, and that of the end, are known."""

    def choices(self, step_ends: tuple[int, ...], end: int) -> dict[str, Any]:
        """The fields that all these protocols have."""
        return dict(end=end, step_ends=step_ends, width=self.width, steps=self.steps, distinct=self.distinct)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        """The last threads of the beams that have a place in the end, the best first."""
        place = transcript.own["place"]
        kept = np.flatnonzero(place >= 0)
        return kept[np.argsort(place[kept])].tolist()


@dataclasses.dataclass(frozen=True)
class Beams(Steps):
    """See `apr_jax.protocols.beams`.

    Attributes:
        beams, subtrees, finished: the choices of the protocol.
    """

    beams: int = 4
    subtrees: int = 1
    finished: Finished = "compete"

    def __post_init__(self):
        super().__post_init__()
        for name in ("beams", "subtrees"):
            whole(f"{self.name}.{name}", getattr(self, name), 1)

    def choices(self, step_ends: tuple[int, ...], end: int) -> dict[str, Any]:
        names = ("beams", "subtrees", "finished")
        return super().choices(step_ends, end) | {name: getattr(self, name) for name in names}
