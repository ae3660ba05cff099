"""Tree of thoughts, breadth first, valued by the model itself."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from apr_jax import protocols
from apr_jax.methods.judges import Asked, Judge
from apr_jax.methods.steps import Beams
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class TreeOfThoughts(Beams):
    """See `apr_jax.protocols.tree_of_thoughts`.

    Attributes:
        judge: that values thoughts.
        propose: what asks for thoughts, one a line: those of a beam are the first `width` lines of one text, see
            `apr_jax.protocols.proposals`. Empty: they are sampled one by one.
    """

    judge: Judge = Asked()
    propose: str = ""

    def made(self, step_ends: tuple[int, ...], end: int) -> protocols.TreeOfThoughts:
        return protocols.TreeOfThoughts(**self.choices(step_ends, end))

    def protocol(self, codec: TextCodec) -> protocols.TreeOfThoughts:
        sampled = dataclasses.replace(super().protocol(codec), judge=self.judge.made(codec))
        if not self.propose:
            return sampled
        return protocols.Proposals(**vars(sampled), propose=tuple(codec.encode(self.propose, continues=True)))

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """Token ids of a beam, sampled or proposed."""
        count = transcript.own["step_count"]
        return np.concatenate([transcript.tokens(i)[-count[i] :] for i in self.chain(transcript, thread)])

    def format_errors(self, transcript: Transcript) -> Mapping[str, int]:
        errors = self.judge.format_errors(transcript)
        if not self.propose:
            return errors
        silent = int((transcript.own["proposes"] & (transcript.own["lines"] == 0)).sum())
        return errors | ({"nothing proposed": silent} if silent else {})
