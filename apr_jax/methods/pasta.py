"""PASTA: promises that are kept beside the writer."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.methods.method import Method
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec

TAGS = {"promise": "<promise", "close": "/>", "sync": "<sync/>", "async_end": "</async>"}


@dataclasses.dataclass(frozen=True)
class Pasta(Method):
    """See `apr_jax.protocols.promises`. Its tags may be ids of their own or ordinary text: both are found.

    Attributes:
        unit: positions that are reserved for each unit of a predicted length; 10 as published.
        largest: predicted length, in units.
    """

    end: str = ""
    unit: int = 10
    largest: int = 100

    def __post_init__(self):
        super().__post_init__()
        for name in ("unit", "largest"):
            whole(f"pasta.{name}", getattr(self, name), 1)

    @property
    def words(self) -> tuple[str, ...]:
        return (*TAGS.values(), "<async>")

    def protocol(self, codec: TextCodec) -> protocols.Promises:
        phrases = [*(Phrase(name, text) for name, text in TAGS.items()), Phrase("tokens", 'tokens="', '"')]
        says = Phrases.of(codec, {"async": "<async>", "async_end": TAGS["async_end"]})
        return protocols.Promises(
            Recogniser.of(codec, phrases), says, self.end_id(codec), unit=self.unit, largest=self.largest
        )

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """What the writer generated, with what was promised in its place: after its tag, before the token that forked it."""
        line, told = transcript.lines, []
        kept = {}
        for number, other in enumerate(transcript.threads):
            if other.path and transcript.log.sampled[transcript.log.thread == number].any():
                seen = np.flatnonzero(transcript.sees[number] & (line == line[thread]))
                kept[int(seen.max())] = transcript.generated(number).tolist()
        for segment in self.chain(transcript, thread):
            generated = transcript.generated(segment).tolist()
            told += [*generated[:-1], *kept[segment], *generated[-1:]] if segment in kept else generated
        return told
