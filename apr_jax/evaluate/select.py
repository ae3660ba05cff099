"""Choosing one of several samples of a problem. Samples without a valid answer are never chosen."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Sample:
    """The fields of a sample that selection rules may use.

    Attributes:
        answer: the answer in its normal form, None if the text holds no answer of valid format.
        correct: whether the verifier accepts the answer; only `by_verifier` reads it.
        logprob: mean log-probability of the generated tokens, nats.
        failure: why the verifier failed, which counts as a wrong answer; empty if it did not.
    """

    answer: str | None
    correct: bool
    logprob: float
    failure: str = ""


def majority(samples: Sequence[Sample]) -> int | None:
    """Number of the first sample that gave the most frequent answer (self-consistency), None if none has a valid one.

    Of equally frequent answers that one is taken which occurs first in the order of samples.
    """
    votes = Counter(sample.answer for sample in samples if sample.answer is not None)
    valid = _valid(samples)
    return max(valid, key=lambda i: (votes[samples[i].answer], -i)) if valid else None


def by_logprob(samples: Sequence[Sample]) -> int | None:
    """Number of the sample whose tokens were likeliest on average (best-of-N), None if none has a valid answer.

    A mean that is NaN (no tokens, or log-probabilities that are not finite) ranks below all others.
    """
    likelihood = lambda i: -math.inf if math.isnan(samples[i].logprob) else samples[i].logprob
    valid = _valid(samples)
    return max(valid, key=lambda i: (likelihood(i), -i)) if valid else None


def by_verifier(samples: Sequence[Sample]) -> int | None:
    """Number of the first correct sample, else of the first valid one, None if there is none.

    An oracle: it knows the truth, so its accuracy is pass@N, and must be reported as such.
    """
    valid = _valid(samples)
    return max(valid, key=lambda i: (samples[i].correct, -i)) if valid else None


def _valid(samples: Sequence[Sample]) -> list[int]:
    return [i for i, sample in enumerate(samples) if sample.answer is not None]
