"""Parason (Zhang et al., August 2026): ThreadWeaver with outlines of two kinds, see `apr_jax.protocols.trials`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import get_args

from apr_jax import protocols
from apr_jax.decode.problem import one_of
from apr_jax.methods.threadweaver import ThreadWeaver
from apr_jax.protocols.trials import Read
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parason(ThreadWeaver):
    """See `apr_jax.protocols.trials`.

    Attributes:
        read: what the parent reads of the trials; `all` is as released.
        answer: the word after which a trial names its answer; empty: a trial succeeds when it closes in good order.
        answer_end: the character that ends an answer.
    """

    tag_names = ("Think", "Parallel", "Outlines", "Outline", "Subtask", "Trial", "Thread", "Conclusion")
    read: Read = "all"
    answer: str = "\\boxed{"
    answer_end: str = "}"

    def __post_init__(self):
        super().__post_init__()
        one_of("parason.read", self.read, get_args(Read))
        if self.read == "vote" and not self.answer:
            raise ValueError("parason.answer is empty; trials vote for what stands after it, name a word")

    def tags(self) -> Mapping[str, str]:
        answer = {"answer": self.answer} if self.answer else {}
        return {**super().tags(), "subtask": "<Subtask>", "trial": "<Trial>", **answer}

    def until(self, name: str) -> str:
        if name == "answer":
            return self.answer_end
        return ":" if name in protocols.Trials.ITEMS else ""

    def kinds(self, transcript: Transcript) -> Sequence[str]:
        """ "trial" or "subtask" for the threads of a list's items, "" for the root."""
        trial = transcript.own["trial"]
        return ["" if not t.path else "trial" if trial[i] else "subtask" for i, t in enumerate(transcript.threads)]

    def protocol(self, codec: TextCodec) -> protocols.Trials:
        return self._protocol(codec, protocols.Trials, join="reencode", response=self.response, read=self.read)
