"""Selectors: rules that select one of several candidates as the answer to a question. Candidates without a valid answer are never
selected. In a configuration a selector is an object, like a method.
"""

import abc
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from apr_jax import settings
from apr_jax.decode.problem import one_of, whole

Measure = Literal["mean", "tail", "lowest", "bottom"]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """The fields of a sample that selectors may use.

    Attributes:
        answer: the answer in its normal form, None if the text holds no answer of valid format.
        correct: whether the verifier accepts the answer; only oracles read this field.
        logprob: mean log-probability of the generated tokens, nats.
        failure: reason why the verifier failed, which counts as a wrong answer; empty if it did not fail.
        weight: what the method lets its vote weigh, at least 0; None where the method has no weights.
        confidences: of each generated token, nats; None where the method does not log them.
    """

    answer: str | None
    correct: bool
    logprob: float
    failure: str = ""
    weight: float | None = None
    confidences: tuple[float, ...] | None = None


class Selector(abc.ABC):
    """A selection rule; implementations are frozen dataclasses whose fields are its configuration.

    Attributes:
        oracle: the selector knows the truth, so its accuracy must be reported as that of an oracle.
    """

    oracle = False

    @property
    def name(self) -> str:
        """The NAME in the summary's key `accuracy_NAME`."""
        return settings.class_name(self)

    @abc.abstractmethod
    def choose(self, candidates: Sequence[Candidate]) -> int | None:
        """Number of the selected candidate, None if no candidate has a valid answer."""


@dataclasses.dataclass(frozen=True)
class Only(Selector):
    """The first candidate, if there is one."""

    def choose(self, candidates: Sequence[Candidate]) -> int | None:
        return 0 if 0 in _valid(candidates) else None


@dataclasses.dataclass(frozen=True)
class Majority(Selector):
    """The first candidate with the most frequent answer (self-consistency).

    Among equally frequent answers, the one that occurs first wins.
    """

    def choose(self, candidates: Sequence[Candidate]) -> int | None:
        votes = Counter(candidate.answer for candidate in candidates if candidate.answer is not None)
        return _best(candidates, lambda candidate: votes[candidate.answer])


@dataclasses.dataclass(frozen=True)
class Weighted(Selector):
    """The first candidate that gave the answer of the greatest weight.

    A vote weighs what the method says (`Method.weight`), or else its tokens' geometric mean probability: e to the mean
    log-probability, of 0 .. 1. What is NaN weighs nothing. Of answers of equal weight that one is taken which occurs first.
    """

    def choose(self, candidates: Sequence[Candidate]) -> int | None:
        votes: dict[str | None, list[float]] = {}
        for candidate in candidates:
            votes.setdefault(candidate.answer, []).append(_weight(candidate))
        # The exact sum: which answers weigh the same does not depend on the order of their votes.
        return _best(candidates, lambda candidate: math.fsum(votes[candidate.answer]))


@dataclasses.dataclass(frozen=True)
class Confident(Selector):
    """A vote among the most confident candidates, weighted by their confidence.

    Source: DeepConf offline, Fu et al. 2025, arXiv 2508.15260, section 3; facebookresearch/deepconf, `deepconf/utils.py`. Of the
    candidates with a valid answer those vote that reach the percentile 100 (1 - `keep`) of their confidences, interpolated. Among
    answers of equal weight that one is taken which occurs first. Unlike there, confidences are not rounded to 0.001. What is NaN
    does not vote.

    Attributes:
        keep: share of the candidates that vote, above 0, up to 1: 0.1 and 0.9 in the paper.
        measure: the confidence of a candidate: the mean over its tokens, over the last `window` of them ("tail"), over the least
            confident `window` tokens in a row ("lowest"), or the mean of the lowest tenth of all such groups ("bottom"; rounded
            down, at least one). A candidate of fewer tokens is one group.
        window: tokens of a group.
    """

    keep: float = 0.1
    measure: Measure = "tail"
    window: int = 2048

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise ValueError(f"confident.keep is {self.keep}; it must be above 0 and at most 1")
        one_of("confident.measure", self.measure, get_args(Measure))
        whole("confident.window", self.window, 1)

    @property
    def name(self) -> str:
        return f"confident_{self.measure}_{self.keep:g}"

    def choose(self, candidates: Sequence[Candidate]) -> int | None:
        """See `Selector.choose`.

        Raises:
            ValueError: a candidate has no confidences.
        """
        weights = {i: self._confidence(candidates[i]) for i in _valid(candidates)}
        weights = {i: weight for i, weight in weights.items() if not math.isnan(weight)}
        if not weights:
            return None
        bar = np.percentile(list(weights.values()), 100 * (1 - self.keep))
        voters = [i for i, weight in weights.items() if weight >= bar]
        return voters[Weighted().choose([dataclasses.replace(candidates[i], weight=weights[i]) for i in voters])]

    def _confidence(self, candidate: Candidate) -> float:
        if not candidate.confidences:
            raise ValueError(
                "confident: a candidate has no confidences; take a method that logs them, such as DeepConf"
            )
        tokens = np.array(candidate.confidences)
        if self.measure == "mean":
            return float(tokens.mean())
        width = min(self.window, len(tokens))
        if self.measure == "tail":
            return float(tokens[-width:].mean())
        sums = np.cumsum(np.append(0.0, tokens))
        groups = np.sort(sums[width:] - sums[:-width]) / width
        return float(groups[: max(1, len(groups) // 10) if self.measure == "bottom" else 1].mean())


@dataclasses.dataclass(frozen=True)
class First(Selector):
    """Another rule, given the first `count` candidates only: smaller budgets, read off one pool of samples.

    Attributes:
        count: how many.
        rule: the rule.
    """

    count: int
    rule: Selector

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"first.count is {self.count}; at least 1 candidate is needed")

    @property
    def name(self) -> str:
        return f"{self.rule.name}_of_{self.count}"

    @property
    def oracle(self) -> bool:
        return self.rule.oracle

    def choose(self, candidates: Sequence[Candidate]) -> int | None:
        return self.rule.choose(candidates[: self.count])


@dataclasses.dataclass(frozen=True)
class Likeliest(Selector):
    """The candidate with the largest mean log-probability (best-of-N).

    A NaN mean (no tokens, or log-probabilities that are not finite) ranks below all others.
    """

    name = "logprob"

    def choose(self, candidates: Sequence[Candidate]) -> int | None:
        return _best(candidates, _known)


@dataclasses.dataclass(frozen=True)
class Verifier(Selector):
    """The first correct candidate, else the first valid one: its accuracy is pass@N."""

    oracle = True

    def choose(self, candidates: Sequence[Candidate]) -> int | None:
        return _best(candidates, lambda candidate: candidate.correct)


def _known(candidate: Candidate) -> float:
    """The mean log-probability, -inf where that is NaN."""
    return -math.inf if math.isnan(candidate.logprob) else candidate.logprob


def _weight(candidate: Candidate) -> float:
    """What its vote weighs."""
    if candidate.weight is None:
        return math.exp(_known(candidate))
    return 0.0 if math.isnan(candidate.weight) else candidate.weight


def _valid(candidates: Sequence[Candidate]) -> list[int]:
    return [i for i, candidate in enumerate(candidates) if candidate.answer is not None]


def _best(candidates: Sequence[Candidate], merit: Callable[[Candidate], float]) -> int | None:
    """The first of the valid candidates with the greatest merit."""
    return max(_valid(candidates), key=lambda i: (merit(candidates[i]), -i), default=None)
