"""Judges as configurations name them; see `apr_jax.protocols.judges`. Their words are text; those of `says` must be one id each."""

import abc
import dataclasses

from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.protocols import judges
from apr_jax.tokenizer import TextCodec


class Judge(abc.ABC):
    """Implementations are frozen dataclasses."""

    @abc.abstractmethod
    def made(self, codec: TextCodec) -> judges.Judge:
        """The protocol's judge; ValueError if a word of `says` is not one id, or no token is asked."""


@dataclasses.dataclass(frozen=True)
class Likelihood(Judge):
    """The mean log-probability of a beam's tokens."""

    def made(self, codec: TextCodec) -> judges.Likelihood:
        return judges.Likelihood()


@dataclasses.dataclass(frozen=True)
class Asked(Judge):
    """The log-probability of a word after a question.

    Attributes:
        ask: the question.
        says: the words of which one speaks for a thought, each one id; none: the likeliest, whichever it is.
        quotes: the step token that ended the thought stands before the question.
    """

    ask: str = "<goal>"
    says: tuple[str, ...] = ()
    quotes: bool = True

    def made(self, codec: TextCodec) -> judges.Asked:
        return judges.Asked(tuple(codec.encode(self.ask, continues=True)), tuple(map(codec.id, self.says)), self.quotes)


@dataclasses.dataclass(frozen=True)
class Labelled(Judge):
    """What the model says of a thought in words, several times.

    Attributes:
        ask: the question.
        labels: words and the numbers that they stand for.
        threads: how often it is asked.
        tokens: that each time it may say.
        quotes: the step token that ended the thought stands before the question.
    """

    ask: str = "\nCan this lead to the answer (sure, likely or impossible)?"
    labels: tuple[tuple[str, float], ...] = (("sure", 20.0), ("likely", 1.0), ("impossible", 0.001))
    threads: int = 3
    tokens: int = 16
    quotes: bool = True

    def __post_init__(self):
        if not self.labels:
            raise ValueError("labelled.labels is empty; at least 1 word is needed")
        for name in ("threads", "tokens"):
            whole(f"labelled.{name}", getattr(self, name), 1)

    def made(self, codec: TextCodec) -> judges.Labelled:
        labels = Recogniser.of(codec, [Phrase(word, word) for word, _ in self.labels])
        ask = tuple(codec.encode(self.ask, continues=True))
        return judges.Labelled(
            labels, tuple(number for _, number in self.labels), ask, self.threads, self.tokens, self.quotes
        )


@dataclasses.dataclass(frozen=True)
class Rollout(Judge):
    """An answer that is sampled from the thought on.

    Attributes:
        says: an answer that ended is worth 1 if one of these words, each one id, is in it, else 0; none: the mean log-probability.
    """

    says: tuple[str, ...] = ()

    def made(self, codec: TextCodec) -> judges.Rollout:
        return judges.Rollout(tuple(map(codec.id, self.says)))
