"""Batches: the groups of a step as packed rows of a fixed count, with what the loss needs of their labels; token in, token out.

    found = gather(transcripts, sampling, config)          of apr_jax.rl.groups
    credit = advantages(estimator, rewards, found.group)   of apr_jax.rl.estimators; one reward for each of found.trajectories
    batch = pack(found, credit, estimator, config)

Every sampled token is a label once, unfed control tokens included; a token that several trajectories hold carries the sum of their
advantages. Tokens that were fed, handed or rewritten carry none. Threads that a decision killed keep theirs, so that it is never
winners only.

Axes: n trajectories, K threads of all transcripts, one after the other, B rows, S entries of a row.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from apr_jax.record import Transcript
from apr_jax.rl.estimators import Estimator, Labels, denominator
from apr_jax.rl.groups import GroupConfig, Groups, part, trained
from apr_jax.train import packing
from apr_jax.train.packing import Origin, Rows


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the samples of a step; nothing is left out without standing here.

    Attributes:
        samples: trajectories that count.
        masked: trajectories that the machine stopped.
        groups, silent_groups: problems, and those of them whose samples all have one reward, so that their advantages are 0.
        labels: sampled tokens of the trajectories.
        silent_labels: labels that were not packed, because their advantages are 0 and the loss has no other term.
        packed: what packing counted; `packed.left_out` labels found no room.
    """

    samples: int
    masked: int
    groups: int
    silent_groups: int
    labels: int
    silent_labels: int
    packed: packing.Count


@dataclasses.dataclass(frozen=True)
class Batch:
    """An update's rows; micro-batches are cut from `rows` and `labels` alike.

    Attributes:
        rows, labels: NumPy arrays, [B, S].
        denominator: of the loss, over the whole update.
        trajectories: n, see `Labels.trajectory`.
        counts: what became of the samples.
        origin: the log entries behind the places, in `transcripts`.
        transcripts: the transcripts as they were packed.
    """

    rows: Rows
    labels: Labels
    denominator: float
    trajectories: int
    counts: Counts
    origin: Origin
    transcripts: tuple[Transcript, ...]

    def name(self, row: int, place: int) -> str:
        """Where a label stands in the rollout, for messages."""
        transcript, entry = (
            self.transcripts[self.origin.transcript[row, place]],
            self.origin.label_entry[row, place],
        )
        path = transcript.threads[transcript.log.thread[entry]].path
        return f"problem {transcript.problem}, sample {transcript.sample}, thread {path}, log entry {entry}"


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A transcript to be packed, and its labels' fields by log entry, [E] each; see `Labels`."""

    transcript: Transcript
    weight: np.ndarray
    advantage: np.ndarray
    version: np.ndarray
    trajectory: np.ndarray


def pack(groups: Groups, advantages: Float[np.ndarray, "n _"], estimator: Estimator, config: GroupConfig) -> Batch:
    """Pack the samples of a step.

    Args:
        advantages: of the trajectories, [n, 1], or [n, K] where they differ by thread, see `estimators.advantages`.
        config: that `gather` was given.

    Raises:
        ValueError: too many labels find no room, trajectories share sampled tokens under a ratio of whole trajectories, or there is
            no tree for an estimator that needs one.
    """
    if estimator.tree != "none" and config.each != "answer":
        raise ValueError(
            f"estimator.tree is {estimator.tree!r} and groups.each {config.each!r}; whole transcripts share no prefix: take "
            "'answer', or no tree"
        )
    pieces = _pieces(groups, advantages, estimator, config)
    labels = sum(int((piece.weight > 0).sum()) for piece in pieces)
    if not estimator.kl and not estimator.entropy:
        pieces = [piece for piece in pieces if piece.advantage[piece.weight > 0].any()]
    kept = sum(int((piece.weight > 0).sum()) for piece in pieces)
    transcripts, weights = tuple(piece.transcript for piece in pieces), [piece.weight for piece in pieces]
    rows, origin, packed = packing.pack(transcripts, config.length, config.threads, "drop", weights, config.rows)
    if packed.left_out > config.left_out * labels:
        raise ValueError(
            f"groups.left_out is {config.left_out:g}; {packed.left_out:,} of {labels:,} labels find no room in {config.rows} rows "
            f"of {config.length} entries and {config.threads} threads ({packed.no_room} components without room, {packed.too_long} "
            "too long): raise groups.rows, length or threads, or allow more"
        )
    problems = np.unique(groups.group)
    silent = [problem for problem in problems if not advantages[groups.group == problem].any()]
    count = len(groups.trajectories)
    counts = Counts(count, sum(groups.masked.values()), len(problems), len(silent), labels, labels - kept, packed)
    made = _labels(rows, origin, pieces, groups.temperature)
    return Batch(rows, made, denominator(estimator, labels, count), count, counts, origin, transcripts)


def _pieces(groups: Groups, advantages: np.ndarray, estimator: Estimator, config: GroupConfig) -> list[_Piece]:
    """All samples as transcripts to be packed."""
    weight, credit, holder = _by_thread(groups, advantages, estimator)
    start, pieces = groups.first, []
    for number, transcript in enumerate(groups.transcripts):
        for threads in _shares(groups, number, config):
            chosen, entries = part(transcript, threads)
            at = start[number] + transcript.log.thread[entries]
            version = np.full(len(at), transcript.version)
            pieces.append(_Piece(chosen, np.where(trained(chosen), weight[at], 0), credit[at], version, holder[at]))
    return pieces


def _by_thread(
    groups: Groups, advantages: np.ndarray, estimator: Estimator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each thread: the weight of its labels, their advantage, and the first trajectory that holds them; [K] each.

    Weight times advantage is the sum over the trajectories that hold a label of what each gives it.
    """
    holds, _ = groups.tree()
    count = holds.sum(axis=1)
    if estimator.ratio == "trajectory" and (count > 1).any():
        a, b = np.flatnonzero(holds[np.argmax(count > 1)])[:2]
        raise ValueError(
            f"estimator.ratio is 'trajectory'; trajectories {a} and {b} share sampled tokens, whose ratio would be that of both: "
            "take 'label'"
        )
    share = np.ones(len(groups.trajectories))
    if estimator.mean == "trajectories":
        share = np.array([1 / max(_length(groups, number), 1) for number in range(len(share))])
    weight = holds @ share / np.maximum(count, 1)
    given = (holds * (share[:, None] * advantages).T).sum(axis=1)
    return weight, given / np.where(weight > 0, weight, 1), np.where(count > 0, np.argmax(holds, axis=1), -1)


def _length(groups: Groups, number: int) -> int:
    """The labels of a trajectory."""
    each = groups.trajectories[number]
    transcript = groups.transcripts[each.transcript]
    return int((trained(transcript) & each.threads[transcript.log.thread]).sum())


def _shares(groups: Groups, number: int, config: GroupConfig) -> list[Bool[np.ndarray, " M"]]:
    """The parts in which the trajectories of a transcript are packed, by their threads; see `GroupConfig.share_from`.

    Trajectories that share sampled tokens stay together.
    """
    log = groups.transcripts[number].log
    fed = np.bincount(log.thread[log.index >= 0], minlength=len(groups.transcripts[number].threads))
    speaks = np.zeros(len(fed), bool)
    speaks[log.thread[log.sampled]] = True
    whole: list[np.ndarray] = []
    for each in groups.trajectories:
        if each.transcript == number:
            joined = [one for one in whole if (one & each.threads & speaks).any()]
            whole = [one for one in whole if not (one & each.threads & speaks).any()]
            whole.append(np.logical_or.reduce([each.threads, *joined]))
    prompt = ~speaks & np.logical_and.reduce([np.ones(len(fed), bool), *whole])
    if fed[prompt].sum() < config.share_from:
        return whole
    shares: list[np.ndarray] = []
    for one in whole:
        fits = [fed[share | one].sum() <= config.length and (share | one).sum() <= config.threads for share in shares]
        if any(fits):
            shares[fits.index(True)] |= one
        else:
            shares.append(one.copy())
    return shares


def _labels(rows: Rows, origin: Origin, pieces: list[_Piece], temperature: float) -> Labels:
    """The fields of the labels of packed rows."""
    first = np.cumsum([0, *(len(piece.transcript.log) for piece in pieces)])
    labelled = rows.label >= 0
    place = np.where(labelled, first[origin.transcript] + origin.label_entry, 0)

    def of(arrays: list[np.ndarray], otherwise: float, dtype: type) -> np.ndarray:
        return np.where(labelled, np.concatenate([*arrays, [otherwise]])[place], otherwise).astype(dtype)

    return Labels(
        weight=rows.weight,
        advantage=of([piece.advantage for piece in pieces], 0, np.float32),
        engine=of([piece.transcript.log.behaviour_logprob for piece in pieces], 0, np.float32),
        temperature=np.where(labelled, temperature, 1).astype(np.float32),
        version=of([piece.version for piece in pieces], 0, np.int32),
        trajectory=of([piece.trajectory for piece in pieces], -1, np.int32),
    )
