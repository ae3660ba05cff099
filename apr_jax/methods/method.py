"""The interface of a method: its protocol for a given tokenizer, the threads that answer, and the tokens of their answers."""

import abc
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np

from apr_jax import settings
from apr_jax.decode.host import Host
from apr_jax.decode.problem import check_sampling
from apr_jax.decode.protocol import Protocol
from apr_jax.decode.sampling import COLDEST
from apr_jax.record import Stop, Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters and budgets.

    Attributes:
        temperature, top_k, top_p: temperature 0 is greedy; top_k 0 and top_p 1 mean off.
        max_tokens: tokens that one thread may generate.
        child_max_tokens: the same for all threads except the root; 0 means `max_tokens`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 512
    child_max_tokens: int = 0

    def __post_init__(self):
        check_sampling(self)

    def require_chance(self, copies: str, temperature: float) -> None:
        """Refuse greedy sampling, under which several threads would say the same.

        Args:
            copies: what would be copies of what, for the message.
            temperature: that it advises.

        Raises:
            ValueError: temperature or `top_k` leave nothing to chance.
        """
        if self.temperature < COLDEST or self.top_k == 1:
            greedy = "top_k is 1" if self.top_k == 1 else f"temperature is {self.temperature:g}"
            raise ValueError(
                f"{greedy}: {copies}; raise temperature ({temperature}, say) and top_k, or take the method Sequential"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A method; implementations are frozen dataclasses whose fields are its choices and, as text, its control words.

    Attributes:
        end: the word that ends a thread; empty: the tokenizer's own end of a text or of a turn.
        add: give every word of `words` that is not one id yet an id of its own, with a row initialised from the word's name
            (see `apr_jax.pretrained.with_control_words`).
        gain: of these rows; a model that is not trained further needs a little more than 1 to choose them.
        independent: its voices are samples of one distribution, so that what fewer of them would give can be read off them all.
    """

    end: str = "<end>"
    add: bool = False
    gain: float = 1.0
    independent: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 < self.gain < math.inf:
            raise ValueError(f"gain is {self.gain}; it must be above 0 and finite")
        if self.add and not self.words:
            raise ValueError(f"add is True; {self.name} has no control words to add, leave it out")

    @property
    def name(self) -> str:
        """The name of the class in snake case."""
        return settings.class_name(self)

    @property
    def words(self) -> tuple[str, ...]:
        """The control words with which the model forks and joins, without `end`; each must be one id."""
        return ()

    def spoken(self, codec: TextCodec) -> TextCodec:
        """The tokenizer with the method's words added, if `add` is set."""
        return codec.with_control_words(self.words) if self.add else codec

    def end_id(self, codec: TextCodec) -> int:
        """The id that ends a thread; ValueError if the word is not one id."""
        return codec.id(self.end) if self.end else codec.eos

    def check(self, sampling: Sampling) -> Sampling:
        """The sampling; raises ValueError if the method cannot work with it."""
        return sampling

    @abc.abstractmethod
    def protocol(self, codec: TextCodec) -> Protocol:
        """The protocol, with the control words as ids.

        Raises:
            ValueError: the tokenizer lacks one of the words.
        """

    def grouped(self, count: int) -> "Method":
        """The method whose problem holds `count` answers of this one to the same prompt, which is fed and stored once.

        Raises:
            ValueError: there is none.
        """
        raise ValueError(
            f"{self.name}: there is no form of it that holds {count} answers in one problem; let each answer be a problem"
        )

    def format_errors(self, transcript: Transcript) -> Mapping[str, int]:
        """How often the model broke the method's format, by kind; kinds that did not occur are left out."""
        return {}

    def kinds(self, transcript: Transcript) -> Sequence[str]:
        """The kind of each thread, where the method tells several apart; empty: it does not."""
        return ()

    def host(self, codec: TextCodec) -> Host | None:
        """Python's part of the method, for protocols that ask it (`apr_jax.decode.host`)."""
        return None

    def voices(self, transcript: Transcript) -> Sequence[int]:
        """The numbers of the threads that answer: the root, or its children if the root only reads the prompt."""
        line = transcript.lines
        speaks = np.any(transcript.log.sampled & (line[transcript.log.thread] == 0))
        return [0] if speaks else [i for i, thread in enumerate(transcript.threads) if thread.parent == 0]

    def weight(self, transcript: Transcript, thread: int) -> float | None:
        """What the vote of a voice weighs, where the method's own state says so; see `apr_jax.evaluate.select.Weighted`."""
        return None

    def confidences(self, transcript: Transcript, thread: int) -> tuple[float, ...] | None:
        """The confidence of each token that a voice generated, nats, where the method logs it; see `select.Confident`."""
        return None

    def chain(self, transcript: Transcript, thread: int) -> Sequence[int]:
        """The threads whose generated tokens, one after the other, are what a voice says.

        They are its line, after those that it follows, each of which comes after what its own line wrote before it.
        """
        line, threads = transcript.lines, transcript.threads
        found = [int(i) for i in np.flatnonzero(line == line[thread])]
        while (thread := threads[found[0]].follows) >= 0:
            found = [*(int(i) for i in np.flatnonzero(line == line[thread]) if i <= thread), *found]
        return [i for i in found if threads[i].stop != Stop.SPLIT]

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """Token ids in which the answer of a voice is looked for: all that its chain generated."""
        return np.concatenate([transcript.generated(one) for one in self.chain(transcript, thread)])


def outside(tokens: Sequence[int], begins: Collection[int], ends: Collection[int]) -> list[int]:
    """The tokens without those from one of `begins` up to the next of `ends`, which stays."""
    kept, inside = [], False
    for token in tokens:
        inside = (inside or token in begins) and token not in ends
        if not inside:
            kept.append(token)
    return kept
