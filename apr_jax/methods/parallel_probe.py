"""Samples that are probed while they run, pruned by disagreement and ended by consensus."""

import dataclasses
from collections.abc import Callable, Sequence

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.samples import Samples
from apr_jax.record import Source, Stop, Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class ParallelProbe(Samples):
    """See `apr_jax.protocols.parallel_probe`.

    Attributes:
        answer: the word after which an answer stands, up to the end; one id.
        close: the text that makes a branch name its answer.
        every, answer_tokens, warmup, share, patience, least, stable: the choices of the protocol.
    """

    count: int = 64
    answer: str = "<goal>"
    close: str = "<goal>"
    every: int = 500
    answer_tokens: int = 16
    warmup: int = 10
    share: float = 0.5
    patience: int = 3
    least: int = 3
    stable: int = 18
    independent = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("every", "answer_tokens", "patience", "least", "stable"):
            whole(f"{self.name}.{name}", getattr(self, name), 1)
        whole(f"{self.name}.warmup", self.warmup, 0)
        self._protocol(lambda word: 0, lambda text: [0] if text else [], 0)

    def protocol(self, codec: TextCodec) -> protocols.ParallelProbe:
        return self._protocol(codec.id, lambda text: codec.encode(text, continues=True), self.end_id(codec))

    def _protocol(
        self, word: Callable[[str], int], encode: Callable[[str], list[int]], end: int
    ) -> protocols.ParallelProbe:
        names = ("every", "answer_tokens", "warmup", "share", "patience", "least", "stable")
        choices = {name: getattr(self, name) for name in names}
        return protocols.ParallelProbe(self.count, end, word(self.answer), tuple(encode(self.close)), **choices)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        """The branches that have ended, and of others that are not pruned the last probe."""
        branches = [i for i, thread in enumerate(transcript.threads) if thread.parent == 0]
        return [self._voice(transcript, i) for i in branches if transcript.threads[i].stop != Stop.PRUNED]

    def _voice(self, transcript: Transcript, branch: int) -> int:
        if transcript.threads[branch].stop == Stop.END:
            return branch
        return max([branch, *(i for i, thread in enumerate(transcript.threads) if thread.parent == branch)])

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """What a branch generated; of a probe the closing phrase too, after which its answer stands."""
        if transcript.threads[thread].parent == 0:
            return super().said(transcript, thread, codec)
        log = transcript.log
        return log.token[(log.thread == thread) & (log.source != Source.HANDED)]
