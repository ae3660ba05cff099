"""The record of a finished problem: one flat log of tokens and a table of threads.

Evaluation reads transcripts and training packs them: nothing about a rollout is kept anywhere else.
Axes: E log entries, M threads.
"""

import dataclasses
import enum
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apr_jax import files

SCHEMA = 1


class Source(enum.IntEnum):
    """The origin of a token."""

    SAMPLED = 0  # drawn from the model's distribution
    FED = 1  # prompt, spawn message, join message
    HANDED = 2  # a copy of the parent's unfed last token, given to a child forked without a header
    REWRITTEN = 3  # a rule of the protocol replaced the sampled token by this one


DRAWN = (Source.SAMPLED, Source.REWRITTEN)  # the sources of generated tokens
SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "budget",
)  # in 32 bits, as the engine computes; the budget is that of a thread's line


class Stop(enum.IntEnum):
    """The reason why a thread, or a whole problem, ended. RUNNING occurs only in transcripts cut off by the caller."""

    RUNNING = 0
    END = 1  # the model ended the thread
    LENGTH = 2  # the thread's budget of generated tokens is used up
    MALFORMED = 3  # a fork that the format does not allow
    KILLED = 4  # a decision killed the thread, or its problem ended first
    DROPPED = 5  # the thread's message was begun, but no wait started the thread
    POOL_FULL = 6  # no page of key/value slots was left
    LOG_FULL = 7  # no page of log entries was left
    THREADS_FULL = 8  # the thread table was full
    MESSAGES_FULL = 9  # the table of message pieces was full
    CONTINUED = 10  # the thread's line continued as the thread of the next segment
    SHARED = 11  # the budget that the thread shared with others is used up
    SPLIT = 12  # not a thread that ran: tokens that were split off from a thread, which is the parent in this record
    LANES_FULL = 13  # more live threads than can feed the same clock in one step
    NOT_FINITE = 14  # the model gave NaN or infinity
    CUT = 15  # others had done enough: it was ended where it stood, and what it wrote stays
    PRUNED = 16  # a rule of its method gave it up for its score, its confidence or its answers
    HOST_FULL = 17  # the store of what the host said was full


@dataclasses.dataclass(frozen=True)
class Log:
    """The tokens of a problem, thread by thread; each thread's entries in the order in which they were queued.

    Attributes (all of shape [E], but for the signals):
        token: token id.
        thread: number of the thread in `Transcript.threads`.
        index: index among the *fed* tokens of the thread, -1 for tokens that were never fed (end tokens, for example).
        position: the position to which the token's key was rotated, -1 if never fed.
        clock: causal time at which the token was fed, -1 if never fed.
        source: a `Source`.
        logprob: log-probability of `drawn` under the model (NaN for tokens that were not sampled), nats.
        behaviour_logprob: the same under the distribution drawn from (temperature, truncation), nats.
        predictor: number of the entry from whose logits the token was sampled, -1 for tokens that were not sampled.
        depth: critical-path count: generated tokens on the longest chain that ends with this token, itself included.
        drawn: the token that the model drew, -1 for tokens that were not sampled; differs from `token` if a rule of the protocol
            rewrote the token. By default the sampled tokens.
        signals: Float [E, n]: the signals of the row that the token was sampled from, if the protocol's needs say `logged` (NaN for
            tokens that were not sampled); else, and by default, n is 0.
    """

    token: np.ndarray
    thread: np.ndarray
    index: np.ndarray
    position: np.ndarray
    clock: np.ndarray
    source: np.ndarray
    logprob: np.ndarray
    behaviour_logprob: np.ndarray
    predictor: np.ndarray
    depth: np.ndarray
    drawn: np.ndarray | None = None
    signals: np.ndarray | None = None

    def __post_init__(self):
        if self.drawn is None:
            object.__setattr__(self, "drawn", np.where(self.sampled, self.token, -1))
        if self.signals is None:
            object.__setattr__(self, "signals", np.zeros((len(self), 0), np.float32))

    def __len__(self) -> int:
        return len(self.token)

    @property
    def sampled(self) -> np.ndarray:
        """Bool [E]: mask of the entries that the model generated, rewritten ones included."""
        return np.isin(self.source, DRAWN)


@dataclasses.dataclass(frozen=True)
class ThreadRecord:
    """One thread of a problem.

    Attributes:
        path: the ordinals of the forks that lead to the thread; `()` is the root, `(0, 2)` the third child of the first child.
        parent: number of the parent thread, -1 for the root.
        stop: why the thread ended.
        segment: number of the thread within its line; all threads of a line have the same path.
        follows: number of the thread whose context this one continued if that is not the parent (in beams), else -1.
        branch: the branch in which all its tokens were written, see `apr_jax.model.branches`.
        joined: the clock of the parent's line when it joined that of the thread: tokens that it was fed later follow the join; -1:
            it never did. None: not known, as in files of earlier versions, and where children never run beside their parent.
    """

    path: tuple[int, ...]
    parent: int
    stop: Stop
    segment: int = 0
    follows: int = -1
    branch: int = 0
    joined: int | None = None


@dataclasses.dataclass(frozen=True)
class Transcript:
    """A finished problem.

    Attributes:
        problem: the caller's number of the problem.
        sample: the caller's number of the sample of that problem.
        stop: why the problem ended (the root's reason, or the capacity that ran out).
        threads: the threads, root first.
        sees: Bool [M, M]; `sees[a, b]`: rows of a see entries of b (a itself included) with smaller clocks, see `together`.
        log: the tokens.
        peak_context: the most slots that one thread ever saw at once.
        together: live siblings also saw each other's entries of the same clock (Hogwild! Inference).
        own: the protocol's state of each thread, if the protocol's needs say `recorded`: arrays [M, ...] by name.
        shared: the protocol's state of the problem, in the same case, by name.
        version: of the parameters that drew the tokens, see `Engine.update`. An engine takes no others while a problem is in
            flight, so that all tokens have one. None: not known, as in files of earlier versions and in demonstrations.
        sampling: what each thread drew with, arrays [M] by the names in SAMPLING; empty: not known.
        adjusts: if the protocol changes logits (`Needs.adjusts`), its class and its plain settings, such as a penalty; else empty.
    """

    problem: int
    sample: int
    stop: Stop
    threads: tuple[ThreadRecord, ...]
    sees: np.ndarray
    log: Log
    peak_context: int
    together: bool = False
    own: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shared: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    version: int | None = None
    sampling: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    adjusts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def lines(self) -> np.ndarray:
        """The line of each thread, named by the line's first thread: Int [M]."""
        line = np.arange(len(self.threads))
        for number, thread in enumerate(self.threads):  # the segments of a line are adjacent
            if thread.segment or thread.stop == Stop.SPLIT:
                line[number] = line[number - 1 if thread.segment else thread.parent]
        return line

    def tokens(self, thread: int) -> np.ndarray:
        """All tokens of one thread in order, fed and sampled: Int [E']."""
        return self.log.token[self.log.thread == thread]

    def generated(self, thread: int) -> np.ndarray:
        """The generated tokens of one thread in order: Int [E']."""
        return self.log.token[(self.log.thread == thread) & self.log.sampled]


def peak_context(sees: np.ndarray, log: Log, together: bool = False) -> int:
    """The most slots that one thread ever saw at once: those that its last fed token saw, itself included."""
    clocks = [np.sort(log.clock[(log.thread == i) & (log.clock >= 0)]) for i in range(len(sees))]
    context = np.array([len(own) for own in clocks])
    for viewer in np.flatnonzero(context):
        others = (w for w in np.flatnonzero(sees[viewer]) if w != viewer)
        context[viewer] += sum(np.searchsorted(clocks[writer], clocks[viewer][-1] + together) for writer in others)
    return int(context.max())


_FIELDS = tuple(field.name for field in dataclasses.fields(Log))


def write(path: Path, transcripts: Sequence[Transcript], text, extra: Iterable[dict] = ()) -> None:
    """Write transcripts as JSON lines to `path`, and their arrays to an `.npz` of the same name beside it.

    Args:
        path: the `.jsonl` file.
        transcripts: the transcripts.
        text: function from token ids to text.
        extra: one dict per transcript with further fields (answer, correct, nums ...), or nothing.
    """
    path = files.local(path, "path")
    extra = list(extra) or [{} for _ in transcripts]
    with path.open("w") as file:
        for transcript, more in zip(transcripts, extra, strict=True):
            threads = [
                {
                    "path": list(t.path),
                    "parent": t.parent,
                    "stop": t.stop.name.lower(),
                    "text": text(transcript.tokens(i)),
                    **({"segment": t.segment} if t.segment else {}),
                    **({"follows": t.follows} if t.follows >= 0 else {}),
                    **({"branch": t.branch} if t.branch else {}),
                    **({"joined": t.joined} if t.joined is not None else {}),
                }
                for i, t in enumerate(transcript.threads)
            ]
            line = {"schema": SCHEMA, "problem": transcript.problem, "sample": transcript.sample, **more}
            line |= {"together": True} if transcript.together else {}
            line |= {"version": transcript.version} if transcript.version is not None else {}
            line |= {"adjusts": dict(transcript.adjusts)} if transcript.adjusts else {}
            line |= {"sampling": True} if transcript.sampling else {}
            line |= {"stop": transcript.stop.name.lower(), "peak_context": transcript.peak_context, "threads": threads}
            file.write(json.dumps(line) + "\n")
    arrays = (
        {name: np.concatenate([getattr(t.log, name) for t in transcripts]) for name in _FIELDS} if transcripts else {}
    )
    arrays["entries"] = np.array([len(t.log) for t in transcripts], np.int64)
    arrays["sees"] = np.concatenate([t.sees.reshape(-1) for t in transcripts]) if transcripts else np.zeros(0, bool)
    told = [t.sampling for t in transcripts if t.sampling]
    arrays |= {f"sampling/{name}": np.concatenate([each[name] for each in told]) for name in SAMPLING if told}
    for number, transcript in enumerate(transcripts):
        for kind in ("own", "shared"):
            arrays |= {f"{kind}/{number}/{name}": value for name, value in getattr(transcript, kind).items()}
    np.savez_compressed(path.with_suffix(".npz"), **arrays)


def read(path: Path) -> Iterator[tuple[Transcript, dict]]:
    """Read files written by `write`: pairs of a transcript and its JSON line.

    Raises:
        ValueError: a line has another schema version.
    """
    path = files.local(path, "path")
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = {name: archive[name] for name in archive.files}
    entry = seen = told = 0
    for number, raw in enumerate(path.read_text().splitlines()):
        line = json.loads(raw)
        if line["schema"] != SCHEMA:
            raise ValueError(f"{path}:{number + 1}: schema {line['schema']}, this version reads {SCHEMA}")
        count, threads = int(arrays["entries"][number]), len(line["threads"])
        log = Log(**{name: arrays[name][entry : entry + count] for name in _FIELDS if name in arrays})
        own, shared = (_states(arrays, f"{kind}/{number}/") for kind in ("own", "shared"))
        sees = arrays["sees"][seen : seen + threads**2].reshape(threads, threads)
        records = tuple(
            ThreadRecord(
                tuple(t["path"]),
                t["parent"],
                Stop[t["stop"].upper()],
                t.get("segment", 0),
                t.get("follows", -1),
                t.get("branch", 0),
                t.get("joined"),
            )
            for t in line["threads"]
        )
        stop, sampling = Stop[line["stop"].upper()], {}
        peak, together = line["peak_context"], line.get("together", False)
        if line.get("sampling"):
            sampling = {name: arrays[f"sampling/{name}"][told : told + threads] for name in SAMPLING}
            told += threads
        given = own, shared, line.get("version"), sampling, line.get("adjusts", {})
        yield Transcript(line["problem"], line["sample"], stop, records, sees, log, peak, together, *given), line
        entry, seen = entry + count, seen + threads**2


def _states(arrays: Mapping[str, np.ndarray], begin: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(begin): value for name, value in arrays.items() if name.startswith(begin)}
