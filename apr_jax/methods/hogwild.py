"""Hogwild! Inference (Rodionov et al. 2025, arXiv 2504.06261): workers that write together on one memory."""

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

STOPS = ".?!。۔؟։।॥…‽¶"  # characters that end a sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hogwild(Method):
    """See `apr_jax.protocols.hogwild`. `child_max_tokens` is the budget of a worker, `max_tokens` that of the answer.

    Attributes:
        workers: their names.
        greetings: what each says first, in turn; `{name}` in it its name.
        answer, until: what stands before an answer, and the character after it.
        every: tokens of all workers after which one is asked whether its work is redundant; 0: never.
        banned: words that workers may not sample, beside the end of a text and `end`; those that are one id are banned.
        steps: further steps of a worker; one that has had so many ends.
    """

    end: str = ""
    workers: tuple[str, ...] = ("Alice", "Bob")
    greetings: tuple[str, ...] = ("Hi, I'm {name}. Here's how we can", "Hi, I'm {name}.")
    answer: str = "\\boxed{"
    until: str = "}"
    every: int = 256
    banned: tuple[str, ...] = ("#", "</think>")
    steps: int = 32

    def __post_init__(self):
        super().__post_init__()
        if len(self.workers) < 2 or not self.greetings:
            raise ValueError(
                f"hogwild has workers {self.workers} and greetings {self.greetings}; it needs at least two workers and one greeting"
            )
        whole("hogwild.every", self.every, 0)
        whole("hogwild.steps", self.steps, 1)

    def says(self) -> dict[str, str | Sequence[str]]:
        """The phrases that the protocol says."""
        greetings = [self.greetings[place % len(self.greetings)] for place in range(len(self.workers))]
        named = [text.replace("{name}", name) for name, text in zip(self.workers, greetings, strict=True)]
        return {
            "headers": ["\n\n### Work in progress (others)\n\n", "<...>\n\n### Work in progress (own)\n\n"],
            "openings": [f"**{name} [1]:** {text}" for name, text in zip(self.workers, named, strict=True)],
            "prefix": [f"**{name} [{number}]:** " for name in self.workers for number in range(2, 2 + self.steps)],
            "question": "Quick check: am I doing redundant work? (yes/no): ",
            "pivot": "<...>\n\n",
            "finish": "\n\nWait, given the limited time, I have to give an answer right now. Considering all my previous "
            f"attempts, I have to conclude that the final answer is {self.answer}",
        }

    def protocol(self, codec: TextCodec) -> protocols.Hogwild:
        ends = [Phrase(f"after {mark}", f"{mark}\n\n") for mark in STOPS]
        banned = [codec.encode(word, continues=True) for word in self.banned]
        ids = {codec.eos, self.end_id(codec), codec.bos, *(word[0] for word in banned if len(word) == 1)} - {None}
        return protocols.Hogwild(
            Recogniser.of(codec, [Phrase("answer", self.answer, self.until), *ends]),
            Phrases.of(codec, self.says()),
            workers=len(self.workers),
            end=self.end_id(codec),
            every=self.every,
            banned=tuple(sorted(ids)),
        )

    def voices(self, transcript: Transcript) -> Sequence[int]:
        return [0]

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """All that the workers wrote, the step that was written last at the end, and what follows the question for the answer."""
        log = transcript.log
        last = [log.clock[log.thread == i].max(initial=-1) for i in range(len(transcript.threads))]
        order = sorted(range(1, len(last)), key=lambda i: (last[i], i))
        asked = codec.encode(self.answer, continues=True) if len(transcript.generated(0)) else []
        return np.concatenate([*(transcript.generated(i) for i in order), asked, transcript.generated(0)]).astype(int)
