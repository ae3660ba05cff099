"""Rewards: small configurations that give a number for each sample of a prompt, and are summed by weights.

A reward gets all samples of one prompt at once, because some compare them, and the number of the update, because some change with
it. Counts are those of `apr_jax.evaluate.metrics`: T tokens are generated, L of them on the critical path, by n threads (lines,
the root's included). "Right" means that the verifier accepts the answer, "well-formed" that no fork broke the format.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from apr_jax import settings
from apr_jax.decode.problem import one_of
from apr_jax.evaluate import metrics
from apr_jax.record import Stop, Transcript


@dataclasses.dataclass(frozen=True)
class Case:
    """The fields of a sample that rewards may read.

    Attributes:
        transcript: of this sample alone, see `apr_jax.rl.groups.Groups.alone`.
        correct: 1 if the verifier accepts the answer, 0 if not; of a task with several solutions the share found.
        kinds: by number of a thread its kind, as the method tells it (Parason's "subtask" and "trial"); empty: of no kind.
    """

    transcript: Transcript
    correct: float
    kinds: Sequence[str] = ()

    @property
    def right(self) -> bool:
        return self.correct >= 1

    @property
    def well_formed(self) -> bool:
        return all(thread.stop != Stop.MALFORMED for thread in self.transcript.threads)


class Reward(abc.ABC):
    """The interface of a reward; implementations are frozen dataclasses whose fields are its configuration."""

    @abc.abstractmethod
    def __call__(self, cases: Sequence[Case], step: int) -> Float[np.ndarray, " G"]:
        """The rewards of the samples of one prompt; `step` counts updates from 0."""


class Measure(Reward):
    """A reward that depends on nothing but the sample itself."""

    @abc.abstractmethod
    def of(self, case: Case) -> float:
        """The reward of one sample."""

    def __call__(self, cases: Sequence[Case], step: int) -> Float[np.ndarray, " G"]:
        return np.array([self.of(case) for case in cases], np.float64)


@dataclasses.dataclass(frozen=True)
class Part:
    """A term of a sum of rewards.

    Attributes:
        reward: the reward.
        weight: its factor.
        name: its name in reports; empty: the name of its class.
    """

    reward: Reward
    weight: float = 1.0
    name: str = ""

    @property
    def shown(self) -> str:
        return self.name or settings.class_name(self.reward)


def total(
    parts: Sequence[Part], cases: Sequence[Case], step: int
) -> tuple[Float[np.ndarray, " G"], dict[str, Float[np.ndarray, " G"]]]:
    """The weighted sum for each sample of one prompt, and the weighted parts by name.

    Raises:
        ValueError: two parts have one name, or a reward is not finite.
    """
    found: dict[str, np.ndarray] = {}
    for part in parts:
        if part.shown in found:
            raise ValueError(f"parts: two rewards are called {part.shown!r}; give one of them another name")
        found[part.shown] = part.weight * part.reward(cases, step)
        if not np.isfinite(found[part.shown]).all():
            raise ValueError(f"parts: {part.shown} gave {found[part.shown].tolist()} at step {step}; it must be finite")
    return sum(found.values(), np.zeros(len(cases))), found


@dataclasses.dataclass(frozen=True)
class Correctness(Measure):
    """wrong + (right - wrong) * correct. APR (arXiv 2504.15466): 1 and 0; Parallel-R1 and NPR: 1 and -1."""

    right: float = 1.0
    wrong: float = 0.0

    def of(self, case: Case) -> float:
        return self.wrong + (self.right - self.wrong) * case.correct


@dataclasses.dataclass(frozen=True)
class Acceleration(Measure):
    """ThreadWeaver's bonus of right answers (arXiv 2512.07843, P-GRPO), whose three published forms differ; 0 for wrong answers.

    With eta = 1 - L / T: "paper" min(factor * eta, clip), at most 0.2; "code" factor * min(eta, clip), at most 0.1; "readme"
    factor * min(T / L - 1, clip), which Parason (arXiv 2608.24658) uses too.
    """

    variant: Literal["paper", "code", "readme"] = "paper"
    factor: float = 0.5
    clip: float = 0.2

    def __post_init__(self):
        one_of("acceleration.variant", self.variant, ("paper", "code", "readme"))

    def of(self, case: Case) -> float:
        if not case.right:
            return 0.0
        eta = metrics.acceleration_ratio(case.transcript)
        if self.variant == "paper":
            return min(self.factor * eta, self.clip)
        gain = eta if self.variant == "code" else eta / (1 - eta) if eta < 1 else math.inf
        return self.factor * min(gain, self.clip)


@dataclasses.dataclass(frozen=True)
class ParallelStructure(Measure):
    """Parallel-R1 (arXiv 2509.07980): `parallel` for a right answer with a fork, `plain` for a right one without, both only if
    well-formed; `wrong` for anything else.

    1.2, 1 and -1 are the second term of its alternating reward (see `Alternating`); 1, -1 and -1 its reward on GSM8K.
    """

    parallel: float = 1.2
    plain: float = 1.0
    wrong: float = -1.0

    def of(self, case: Case) -> float:
        if not (case.right and case.well_formed):
            return self.wrong
        return self.parallel if metrics.forked(case.transcript) else self.plain


@dataclasses.dataclass(frozen=True)
class Forked(Measure):
    """1 for a well-formed sample that forks, right or wrong; Parallel-R1 adds half of it to the correctness of 1 or -1."""

    def of(self, case: Case) -> float:
        return float(case.well_formed and metrics.forked(case.transcript))


@dataclasses.dataclass(frozen=True)
class Alternating(Reward):
    """`first` for `share` of every `window` updates, then `then`. Parallel-R1: 8 of 10 updates reward correctness alone."""

    first: Reward = Correctness(1.0, -1.0)
    then: Reward = ParallelStructure()
    window: int = 10
    share: int = 8

    def __post_init__(self):
        if not 0 <= self.share <= self.window or self.window < 1:
            raise ValueError(f"alternating.share is {self.share}; it must lie in 0 .. window = {self.window}")

    def __call__(self, cases: Sequence[Case], step: int) -> Float[np.ndarray, " G"]:
        return (self.first if step % self.window < self.share else self.then)(cases, step)


@dataclasses.dataclass(frozen=True)
class Concurrency(Measure):
    """AsyncThink (arXiv 2510.26658): min(eta / agents, cap) / cap, with eta the mean number of active threads over the critical
    path, T / L, and `agents` the pool, the organizer included. The cap stands against forks that are not worth it.

    A sample that breaks the format gets nothing else there: wrap the sum in `WellFormed`.
    """

    agents: int = 4
    cap: float = 0.5

    def __post_init__(self):
        if self.agents < 1 or not 0 < self.cap <= 1:
            raise ValueError(f"concurrency: agents = {self.agents}, cap = {self.cap}; at least 1 agent, cap in (0, 1]")

    def of(self, case: Case) -> float:
        span = metrics.critical_path(case.transcript)
        eta = metrics.generated_tokens(case.transcript) / span if span else 0.0
        return min(eta / self.agents, self.cap) / self.cap


@dataclasses.dataclass(frozen=True)
class WellFormed(Reward):
    """`of` for well-formed samples, `otherwise` for others (the format penalty of AsyncThink and NPR)."""

    of: Reward = Correctness()
    otherwise: float = -1.0

    def __call__(self, cases: Sequence[Case], step: int) -> Float[np.ndarray, " G"]:
        return np.where([case.well_formed for case in cases], self.of(cases, step), self.otherwise)


@dataclasses.dataclass(frozen=True)
class Ratio(Measure):
    """A share of the work, mostly under `ZScored`: "parallel": of the generated tokens, those outside the root's line;
    "acceleration": 1 - L / T; otherwise, of the generated tokens, those in threads of this kind (Parason: "subtask", "trial").
    """

    kind: str = "parallel"

    def of(self, case: Case) -> float:
        transcript = case.transcript
        if self.kind == "parallel":
            return metrics.parallel_ratio(transcript)
        if self.kind == "acceleration":
            return metrics.acceleration_ratio(transcript)
        if len(case.kinds) != len(transcript.threads):
            raise ValueError(
                f"ratio.kind is {self.kind!r}; the kinds of {len(case.kinds)} threads are told and there are "
                f"{len(transcript.threads)}: this needs a method that tells them, others have 'parallel' and 'acceleration'"
            )
        log = transcript.log
        mine = np.array([kind == self.kind for kind in case.kinds])[log.thread]
        return float((log.sampled & mine).sum() / max(log.sampled.sum(), 1))


@dataclasses.dataclass(frozen=True)
class ZScored(Reward):
    """PA-GRPO of Parason (arXiv 2608.24658): for right answers (x - mean) / std of another reward x, 0 for wrong ones.

    Mean and (population) std are "over" the whole group, as its code has it, or over the "right" answers alone, so that wrong ones
    move nothing. A spread of at most `epsilon` gives 0. Nothing published bounds it: one odd sample of 8 reaches 2.6. `limit` does.
    """

    of: Reward = Ratio()
    over: Literal["group", "right"] = "right"
    epsilon: float = 1e-8
    limit: float = math.inf

    def __post_init__(self):
        one_of("zscored.over", self.over, ("group", "right"))

    def __call__(self, cases: Sequence[Case], step: int) -> Float[np.ndarray, " G"]:
        right, x = np.array([case.right for case in cases], bool), self.of(cases, step)
        among = x if self.over == "group" else x[right]
        if not len(among) or among.std() <= self.epsilon:
            return np.zeros(len(x))
        return np.where(right, np.clip((x - among.mean()) / among.std(), -self.limit, self.limit), 0.0)


@dataclasses.dataclass(frozen=True)
class Spawned(Measure):
    """min(n - 1, most) / most: against serial collapse. PARL (Kimi K2.5, arXiv 2602.02276) published no closed form; this is ours.
    It is meant to be `Annealed` to zero."""

    most: int = 4

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"spawned.most is {self.most}; it must be at least 1")

    def of(self, case: Case) -> float:
        return min(max(metrics.threads(case.transcript) - 1, 0), self.most) / self.most


@dataclasses.dataclass(frozen=True)
class Finished(Measure):
    """The share of the forked threads that ended by themselves, 0 without any: PARL's stand against spurious parallelism."""

    def of(self, case: Case) -> float:
        transcript = case.transcript
        last = dict(zip(transcript.lines.tolist(), transcript.threads, strict=True))  # the last thread of a line
        ends = [thread.stop == Stop.END for line, thread in last.items() if line > 0 and thread.stop != Stop.SPLIT]
        return sum(ends) / len(ends) if ends else 0.0


@dataclasses.dataclass(frozen=True)
class Annealed(Reward):
    """`of` times a factor that falls in a line from 1 at update `start` to 0 at update `start + steps`, and stays there (PARL)."""

    of: Reward = Spawned()
    steps: int = 100
    start: int = 0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"annealed.steps is {self.steps}; it must be at least 1")

    def __call__(self, cases: Sequence[Case], step: int) -> Float[np.ndarray, " G"]:
        factor = min(max(1 - (step - self.start) / self.steps, 0.0), 1.0)
        return factor * self.of(cases, step) if factor else np.zeros(len(cases))


@dataclasses.dataclass(frozen=True)
class ThreadPenalty(Measure):
    """-each * max(0, n - most): APR's code (tinyrl), which has it off."""

    most: int = 10
    each: float = 0.1

    def of(self, case: Case) -> float:
        return -self.each * max(0, metrics.threads(case.transcript) - self.most)


@dataclasses.dataclass(frozen=True)
class TokenPenalty(Measure):
    """-T / budget: the price of all computation, wherever it was done."""

    budget: int = 10_000

    def of(self, case: Case) -> float:
        return -metrics.generated_tokens(case.transcript) / self.budget


@dataclasses.dataclass(frozen=True)
class LengthPenalty(Measure):
    """DAPO's soft penalty of overlong answers (arXiv 2503.14476, 3.4), on the critical path: 0 up to longest - margin, then falling
    in a line to -1 at `longest`, and -1 beyond it."""

    longest: int = 1024
    margin: int = 256

    def __post_init__(self):
        if not 0 < self.margin <= self.longest:
            raise ValueError(f"length_penalty.margin is {self.margin}; it must lie in 1 .. longest = {self.longest}")

    def of(self, case: Case) -> float:
        over = metrics.critical_path(case.transcript) - (self.longest - self.margin)
        return -min(max(over / self.margin, 0.0), 1.0)


@dataclasses.dataclass(frozen=True)
class Makespan(Measure):
    """max(0, 1 - makespan(k) / budget) for right answers, 0 for wrong ones; makespan(k): steps in which k workers generate the same
    tokens. Ours: `workers` = 1 prices all tokens, inf the critical path, and k the machine that there is, so that forks wider than
    it earn nothing.
    """

    workers: float = 4
    budget: int = 1024

    def __post_init__(self):
        if self.workers < 1 or self.budget < 1:
            raise ValueError(f"makespan: workers = {self.workers}, budget = {self.budget}; both must be at least 1")

    def of(self, case: Case) -> float:
        if not case.right:
            return 0.0
        return max(0.0, 1 - metrics.makespans(case.transcript, [self.workers])[0] / self.budget)
