"""Skeleton of thought: numbered points, each written out by a thread of its own."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Names, Recogniser
from apr_jax.methods.method import Method
from apr_jax.protocols.phrases import Phrases
from apr_jax.protocols.skeleton import LINE
from apr_jax.record import Source, Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skeleton(Method):
    """See `apr_jax.protocols.skeleton`. The prompt asks for a skeleton behind the question (`Prompt.wrap`); its `opening` is "1.".

    Attributes:
        skeleton: stands between question and skeleton, where a point is asked for; it ends with the prompt's opening.
        ask: what is asked about a point; `{number}` stands for its number.
        most: points of a skeleton, and the largest number of one.
    """

    skeleton: str = "\n\nThe skeleton of the answer:\n1."
    ask: str = "\n\nWrite point {number} of it, and nothing else, in one or two sentences."
    most: int = 10

    def __post_init__(self):
        super().__post_init__()
        whole("skeleton.most", self.most, 1)

    def protocol(self, codec: TextCodec) -> protocols.Skeleton:
        numbers = Names.numbers(self.most)
        asks = [self.ask.replace("{number}", text) for text in numbers.texts]
        headers = [f"{text}." for text in numbers.texts]
        phrases = Phrases.of(codec, {"skeleton": self.skeleton, "ask": asks, "header": headers})
        return protocols.Skeleton(self.end_id(codec), Recogniser.of(codec, [LINE]), numbers, phrases, self.most)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        """One answer, in the name of the first point; none if there are no points."""
        return self._points(transcript)[:1]

    def chain(self, transcript: Transcript, thread: int) -> Sequence[int]:
        return self._points(transcript)

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """The points, each with what was written to it, one a line."""
        line, log, texts = codec.encode("\n", continues=True), transcript.log, []
        for point in self._points(transcript):
            fed = np.sum((log.thread == point) & (log.source == Source.FED))
            start = fed - transcript.own["answers"][point]
            texts += [*(line if texts else ()), *transcript.tokens(point)[start:].tolist()]
        return texts

    def _points(self, transcript: Transcript) -> list[int]:
        return np.flatnonzero(transcript.own["answers"] > 0).tolist()
