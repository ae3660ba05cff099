"""Judges as configurations name them; see `apr_jax.protocols.judges`. Their words are text; those of `says` must be one id each."""

import abc
import dataclasses

from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.protocols import judges, votes
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


class Judge(abc.ABC):
    """Implementations are frozen dataclasses."""

    @abc.abstractmethod
    def made(self, codec: TextCodec) -> judges.Judge:
        """The protocol's judge; ValueError if a word of `says` is not one id, or no token is asked."""

    def format_errors(self, transcript: Transcript) -> dict[str, int]:
        """How often threads of the judge did not say what they were asked for, by kind."""
        return {}


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

    def format_errors(self, transcript: Transcript) -> dict[str, int]:
        return {"judge without a label": count} if (count := _silent(transcript)) else {}


@dataclasses.dataclass(frozen=True)
class Vote(Judge):
    """Voters read all candidates of a round, and name the best; only for `TreeOfThoughts`.

    Attributes:
        header: stands before each candidate; {} is its number, from 1 on.
        ask: the question after the last candidate.
        says: what names the best; {} is its number.
        choices: candidates of a round, at most: beams x width of the search, or more.
        threads: voters.
        tokens: that each of them may say.
    """

    header: str = "\n\nChoice {}:\n"
    ask: str = "\n\nWhich choice is the best? Think, then say: The best choice is its number.\n"
    says: str = "best choice is {}"
    choices: int = 9
    threads: int = 5
    tokens: int = 64

    def __post_init__(self):
        for name in ("choices", "threads", "tokens"):
            whole(f"vote.{name}", getattr(self, name), 1)
        for name in ("header", "says"):
            if "{}" not in getattr(self, name):
                raise ValueError(f"vote.{name} is {getattr(self, name)!r}; it must hold {{}}, where the number stands")
        if self.choices > 9 and self.says.endswith("{}"):
            raise ValueError(
                f"vote.says is {self.says!r}; of {self.choices} choices 1 begins 10, so let the text go on after {{}}"
            )

    def made(self, codec: TextCodec) -> votes.Vote:
        headers, names = (
            [text.replace("{}", str(1 + i)) for i in range(self.choices)] for text in (self.header, self.says)
        )
        numbers = Recogniser.of(codec, [Phrase(name, name) for name in names])
        phrases = Phrases.of(codec, {"header": headers, "ask": self.ask})
        return votes.Vote(numbers, phrases, self.threads, self.tokens)

    def format_errors(self, transcript: Transcript) -> dict[str, int]:
        own, silent = transcript.own, _silent(transcript)
        lost = int((own["judges"] & (own["value"] == 0)).sum()) - silent
        kinds = {"vote without a number": silent, "vote for no candidate": lost}
        return {kind: count for kind, count in kinds.items() if count}


def _silent(transcript: Transcript) -> int:
    """Threads of a judge that said no label."""
    return int((transcript.own["judges"] & (transcript.own["note.label"] < 0)).sum())


@dataclasses.dataclass(frozen=True)
class Rollout(Judge):
    """An answer that is sampled from the thought on.

    Attributes:
        says: an answer that ended is worth 1 if one of these words, each one id, is in it, else 0; none: the mean log-probability.
    """

    says: tuple[str, ...] = ()

    def made(self, codec: TextCodec) -> judges.Rollout:
        return judges.Rollout(tuple(map(codec.id, self.says)))
