"""Groups of samples: the transcripts of a step, sorted, checked and divided into trajectories.

A *trajectory* is one sample of a prompt: a whole transcript, or one answer of a transcript whose root only reads the prompt (a
sample, a beam with all that it took over). The trajectories of one problem are its *group*.

Axes: n trajectories, M threads of a transcript, K threads of all transcripts, one after the other, E log entries.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from apr_jax.decode.needs import Needs
from apr_jax.decode.problem import one_of, whole
from apr_jax.decode.sampling import COLDEST
from apr_jax.methods import Sampling
from apr_jax.record import Source, Stop, Transcript
from apr_jax.train.logs import only, rooted

MACHINE = (Stop.POOL_FULL, Stop.LOG_FULL, Stop.THREADS_FULL, Stop.MESSAGES_FULL, Stop.LANES_FULL)
"""Stops that say something of the machine and nothing of the model. LENGTH and SHARED are budgets that the model knows."""
_ROUNDING = 1e-3  # between two log-probabilities that one row of logits gave, nats


class NotFinite(FloatingPointError):
    """The model gave NaN or infinity.

    Attributes:
        transcripts: all that were drawn with it.
    """

    def __init__(self, transcripts: Sequence[Transcript]):
        bad = next(each for each in transcripts if each.stop == Stop.NOT_FINITE)
        super().__init__(f"problem {bad.problem}, sample {bad.sample}: the model gave NaN or infinity")
        self.transcripts = tuple(transcripts)


def require_finite(transcripts: Sequence[Transcript]) -> None:
    """Raises `NotFinite` if the model gave NaN or infinity while one of these was drawn."""
    if any(each.stop == Stop.NOT_FINITE for each in transcripts):
        raise NotFinite(transcripts)


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """How transcripts become rows.

    Attributes:
        each: a trajectory is a whole "transcript", or each "answer" of a transcript whose root only reads the prompt.
        length: S, entries of a row.
        threads: U, threads of a row.
        rows: B, rows of a batch: those that nothing needs are padding, so that training is compiled once.
        share_from: a prompt of at least so many tokens is packed once for as many of its answers as a row holds; a shorter one is
            repeated, because sharing would join all samples of a group in one long row.
        masked: largest share of the samples that the machine may have stopped; they are left out of loss and baseline.
        left_out: largest share of the labels that may find no room in the rows.
    """

    each: Literal["transcript", "answer"] = "transcript"
    length: int = 1024
    threads: int = 64
    rows: int = 32
    share_from: int = 64
    masked: float = 0.01
    left_out: float = 0.01

    @property
    def judged(self) -> "GroupConfig":
        """The same for samples of which it is known that the machine did not stop too many."""
        return dataclasses.replace(self, masked=1.0)

    def __post_init__(self):
        one_of("groups.each", self.each, ("transcript", "answer"))
        for name in ("length", "threads", "rows"):
            whole(f"groups.{name}", getattr(self, name), 1)
        for name in ("masked", "left_out"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"groups.{name} is {getattr(self, name)}; it is a share, 0 to 1")


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One sample of a prompt.

    Attributes:
        transcript: its number in `Groups.transcripts`.
        group: the caller's number of the problem.
        answer: the number of the thread that answers: the root, or the last thread of the answer's chain.
        threads: Bool [M], the threads of the transcript that belong to it; a root that only reads the prompt belongs to all.
    """

    transcript: int
    group: int
    answer: int
    threads: np.ndarray


@dataclasses.dataclass(frozen=True)
class Groups:
    """The samples of a step, sorted by problem and sample.

    Attributes:
        transcripts: the transcripts.
        temperature: at which tokens were drawn.
        trajectories: the samples that count.
        masked: number of samples that the machine stopped, by the name of the stop.
    """

    transcripts: tuple[Transcript, ...]
    temperature: float
    trajectories: tuple[Trajectory, ...]
    masked: Mapping[str, int]

    @property
    def group(self) -> Int[np.ndarray, " n"]:
        """The problem of each trajectory."""
        return np.array([each.group for each in self.trajectories], np.int64)

    def alone(self, number: int) -> Transcript:
        """A trajectory as a transcript of its own, for rewards; see `rooted`."""
        each = self.trajectories[number]
        return rooted(part(self.transcripts[each.transcript], each.threads)[0])

    def tree(self) -> tuple[Bool[np.ndarray, "K n"], Int[np.ndarray, " K"]]:
        """The threads that sampled, as nodes of a tree with trajectories as leaves: which trajectories hold each, and the node
        before it (-1: none). A thread that sampled nothing is held by nobody."""
        first = self.first
        holds, parent = np.zeros((first[-1], len(self.trajectories)), bool), np.full(first[-1], -1)
        for number, each in enumerate(self.trajectories):
            holds[first[each.transcript] : first[each.transcript + 1], number] = each.threads
        for start, transcript in zip(first, self.transcripts, strict=False):
            speaks = np.bincount(transcript.log.thread[trained(transcript)], minlength=len(transcript.threads)) > 0
            holds[start : start + len(speaks)] &= speaks[:, None]
            for thread in np.flatnonzero(speaks):
                above = _before(transcript, thread)
                while above >= 0 and not speaks[above]:
                    above = _before(transcript, above)
                parent[start + thread] = start + above if above >= 0 else -1
        return holds, parent

    @property
    def first(self) -> Int[np.ndarray, " _"]:
        """The node of each transcript's root, and the number of nodes."""
        return np.cumsum([0, *(len(transcript.threads) for transcript in self.transcripts)])


def refuse(sampling: Sampling, needs: Needs) -> None:
    """Refuse rollouts whose distribution the training forward pass does not compute, before anything is decoded.

    Args:
        sampling: of the rollouts.
        needs: of their protocol.

    Raises:
        ValueError: the message names the field.
    """
    if sampling.temperature < COLDEST:
        raise ValueError(
            f"temperature is {sampling.temperature:g}, greedy: nothing is drawn, so nothing is learnt; take 1"
        )
    for name, off in (("top_k", 0), ("top_p", 1.0)):
        value = getattr(sampling, name)
        if value != off:
            raise ValueError(
                f"{name} is {value}; training computes log-probabilities without truncation, leave it at {off} (off)"
            )
    if needs.adjusts:
        raise ValueError(
            "needs.adjusts is True: the protocol bans tokens or penalises them, and training computes log-probabilities of the "
            "unchanged logits; take a protocol without them"
        )
    if needs.together:
        raise ValueError(
            f"needs.together is {needs.together}: threads that see each other's tokens of the same clock cannot be packed in rows; "
            "take live threads"
        )


def trained(transcript: Transcript) -> Bool[np.ndarray, " E"]:
    """The log entries that carry loss: those that the model sampled and no rule rewrote, fed or not."""
    return transcript.log.source == Source.SAMPLED


def gather(
    transcripts: Sequence[Transcript],
    sampling: Sampling,
    config: GroupConfig,
) -> Groups:
    """The samples of a step: sorted, so that nothing depends on the order in which they ended, and checked.

    Args:
        transcripts: all of the step, in any order; samples of one prompt have one `problem`.
        sampling: that they were drawn with, see `refuse`.

    Raises:
        ValueError: two have one number, one was cut off, drawn otherwise than `sampling` says, or by parameters of an unknown
            version; `together`; or the machine stopped too many.
        NotFinite: the model gave NaN or infinity.
    """
    refuse(sampling, Needs())
    require_finite(transcripts)
    ordered = tuple(sorted(transcripts, key=lambda each: (each.problem, each.sample)))
    for a, b in zip(ordered, ordered[1:], strict=False):
        if (a.problem, a.sample) == (b.problem, b.sample):
            raise ValueError(f"transcripts: two are sample {a.sample} of problem {a.problem}; number them apart")
    found, masked = [], collections.Counter()
    for number, transcript in enumerate(ordered):
        _check(transcript, sampling)
        for each in _trajectories(transcript, number, config.each):
            stop = _machine(transcript, each.answer)
            if stop is None:
                found.append(each)
            else:
                masked[stop.name.lower()] += 1
    lost, total = masked.total(), len(found) + masked.total()
    if lost > config.masked * total:
        raise ValueError(
            f"groups.masked is {config.masked:g}; the machine stopped {lost} of {total} samples "
            f"({', '.join(f'{count} {stop}' for stop, count in masked.items())}): raise sizes.slots, log or threads, lower "
            "sampling.max_tokens, or allow more"
        )
    return Groups(ordered, sampling.temperature, tuple(found), dict(masked))


def _check(transcript: Transcript, sampling: Sampling) -> None:
    """Refuse a transcript that cannot be trained on, see `gather`."""
    name = f"problem {transcript.problem}, sample {transcript.sample}"
    if transcript.together:
        raise ValueError(f"{name}: its threads ran together, which packed rows cannot say; take live threads")
    if transcript.stop == Stop.RUNNING:
        raise ValueError(f"{name}: it was cut off while it ran; give finished transcripts only")
    if transcript.version is None:
        raise ValueError(
            f"{name}: the version of the parameters that drew it is not known; its file is of an earlier version, or it was "
            "not drawn by an engine: draw it again"
        )
    if transcript.adjusts:
        raise ValueError(
            f"{name}: {transcript.adjusts['protocol']} changed the logits that it was drawn from; draw it without"
        )
    log = transcript.log
    speaks = np.unique(log.thread[log.sampled])
    for field in ("temperature", "top_k", "top_p") if transcript.sampling else ():
        drawn, given = transcript.sampling[field][speaks], getattr(sampling, field)
        if (other := drawn != np.asarray(given, drawn.dtype)).any():
            path = transcript.threads[speaks[np.argmax(other)]].path
            raise ValueError(
                f"{name}: thread {path} was drawn with {field} {drawn[other][0]:g}, and sampling.{field} is {given:g}; give that "
                "which it was drawn with"
            )
    gap = np.abs(log.logprob - log.behaviour_logprob)[log.sampled]
    if sampling.temperature == 1 and len(gap) and not gap.max() <= _ROUNDING:
        raise ValueError(
            f"{name}: log-probabilities under the model and under the distribution drawn from differ by {gap.max():.3g}; at "
            "temperature 1 they differ if it was drawn with truncation, penalties or bans, or at another temperature"
        )


def _before(transcript: Transcript, thread: int) -> int:
    """The thread that a thread goes on from: that which it follows, the one before it in its line, or its parent."""
    record = transcript.threads[thread]
    return record.follows if record.follows >= 0 else thread - 1 if record.segment else record.parent


def _trajectories(transcript: Transcript, number: int, each: str) -> list[Trajectory]:
    """The samples in a transcript, see `GroupConfig.each`."""
    threads = transcript.threads
    if each == "transcript":
        return [Trajectory(number, transcript.problem, 0, np.ones(len(threads), bool))]
    speaks = {int(i) for i in np.unique(transcript.log.thread[transcript.log.sampled])}
    if 0 in speaks:
        raise ValueError(
            f"problem {transcript.problem}: its root generates tokens, so that its children are no answers of their own; "
            "groups.each = 'answer' is for samples and beams, take 'transcript'"
        )
    # A line of answers is named by its path; probes, which say nothing, are no answers.
    spoken = {threads[i].path[:1] for i in speaks}
    earlier = {t.path: threads[t.follows].path[:1] for t in threads if len(t.path) == 1 and t.follows >= 0}
    found = []
    for path in sorted(spoken - {earlier[p] for p in spoken if p in earlier}):
        chain = [path]
        while chain[-1] in earlier:
            chain.append(earlier[chain[-1]])
        mine = np.array([not t.path or t.path[:1] in chain for t in threads])
        answer = max(i for i, t in enumerate(threads) if t.path == path and t.stop != Stop.SPLIT)
        found.append(Trajectory(number, transcript.problem, answer, mine))
    return found


def _machine(transcript: Transcript, answer: int) -> Stop | None:
    """The stop of the machine that cut a sample short, if one did. An answer that had ended before stays: one sample's full pool
    does not spoil its group."""
    if transcript.stop not in MACHINE:
        return None
    ended = transcript.threads[answer].stop not in (*MACHINE, Stop.KILLED, Stop.DROPPED, Stop.RUNNING)
    return None if answer and ended else transcript.stop


def part(transcript: Transcript, threads: Bool[np.ndarray, " M"]) -> tuple[Transcript, Bool[np.ndarray, " E"]]:
    """A transcript with some of the root's children and their descendants only, and the log entries that it has."""
    if threads.all():
        return transcript, np.ones(len(transcript.log), bool)
    children = [i for i in np.flatnonzero(threads).tolist() if transcript.threads[i].path]
    name = f"problem {transcript.problem}, sample {transcript.sample}"
    return only(transcript, children, name), threads[transcript.log.thread]
