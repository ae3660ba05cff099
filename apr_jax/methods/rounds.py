"""Rounds of threads that read what the threads of the round before had to tell: PaCoRe, RSA, PDR."""

import dataclasses
from collections.abc import Sequence

from apr_jax import protocols
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.methods.method import Method, Sampling
from apr_jax.protocols.phrases import Phrases
from apr_jax.protocols.rounds import Round, most_read
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Template:
    """What is said around messages, in the user's turn; each text may be empty.

    Attributes:
        before: stands before the question. With it, a thread is fed the whole prompt again; without it, what follows the question.
        header: stands before each message; `{number}` is replaced by its number, from 1.
        after: stands after the last message.
    """

    before: str = ""
    header: str = "\n\nAnswer {number}:\n"
    after: str = "\n\nThese answers may be wrong. Answer the question yourself."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounds(Method):
    """See `apr_jax.protocols.rounds`. Its answers are those of the last round, in order.

    Attributes:
        rounds: the first of them reads nothing.
        templates: in which the others read, by number.
        reasoning: the text that ends a thread's reasoning, behind which its message stands; empty: all that it says is its message.
        shuffled: messages are read in an order by chance.
    """

    rounds: tuple[Round, ...] = (Round(4), Round(1))
    templates: tuple[Template, ...] = (Template(),)
    reasoning: str = ""
    shuffled: bool = True

    def __post_init__(self):
        super().__post_init__()
        most_read(self.rounds)
        for number, each in enumerate(self.rounds):
            if each.template >= len(self.templates):
                raise ValueError(
                    f"rounds.rounds: round {number + 1} has template {each.template}; there are {len(self.templates)}, from 0 on"
                )

    def check(self, sampling: Sampling) -> Sampling:
        if self.rounds[0].threads > 1:
            sampling.require_chance(f"the {self.rounds[0].threads} threads of the first round would say the same", 0.7)
        return sampling

    def protocol(self, codec: TextCodec) -> protocols.Rounds:
        say = lambda text: tuple(codec.encode(text, continues=True)) if text else ()
        headers = [
            each.header.replace("{number}", str(i + 1))
            for each in self.templates
            for i in range(most_read(self.rounds))
        ]
        phrases = Phrases.of_ids(
            before=[say(each.before) for each in self.templates],
            header=[say(text) for text in headers],
            after=[say(each.after) for each in self.templates],
        )
        ends = Recogniser.of(codec, [Phrase("reasoning", self.reasoning)]) if self.reasoning else None
        return protocols.Rounds(self.end_id(codec), self.rounds, phrases, ends, self.shuffled)

    def voices(self, transcript: Transcript) -> Sequence[int]:
        first = sum(each.threads for each in self.rounds[:-1])
        return [i for i, thread in enumerate(transcript.threads) if thread.path >= (first,)]
