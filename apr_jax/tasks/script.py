"""Demonstrations as trees of threads that share their parent's context, and the transcripts that decoding them would give.

    thread = Thread((Fed("3*4<go>"), Said("<spawn>1<wait>"), Fork((child,)), Fed("<go>"), Said("12<end>")))
    transcript = record(thread, codec.encode)

What a protocol would feed is written out (`Fed`), so that one recorder serves all of them: those that join by stitching, where the
parent sees its children as they stand, and those that re-encode, where it sees the first and is fed the others' text.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript, peak_context

Encode = Callable[[str], Sequence[int]]


@dataclasses.dataclass(frozen=True)
class Fed:
    """Text that a thread is fed: its prompt, its header, what follows a join."""

    text: str


@dataclasses.dataclass(frozen=True)
class Said:
    """Text that a thread samples."""

    text: str


@dataclasses.dataclass(frozen=True)
class Fork:
    """Children that see all that their parent has seen and written; the parent waits for all of them.

    Attributes:
        threads: the children, in order; each is fed its header first.
        seen: how many of them, from the first on, the parent sees afterwards.

    Raises:
        ValueError: there are fewer.
    """

    threads: "tuple[Thread, ...]"
    seen: int

    def __post_init__(self):
        if not self.threads or not 0 <= self.seen <= len(self.threads):
            raise ValueError(
                f"seen is {self.seen}; of {len(self.threads)} threads, at least 1, the parent sees 0 up to all"
            )


@dataclasses.dataclass(frozen=True)
class Thread:
    """One thread: what it is fed, samples and forks, in order.

    Attributes:
        parts: the first is what it is fed first; a fork is followed by what the join feeds.
        branch: the branch that it writes in, see `apr_jax.model.branches`.

    Raises:
        ValueError: nothing is fed first, or after a fork.
    """

    parts: tuple[Fed | Said | Fork, ...]
    branch: int = 0

    def __post_init__(self):
        for before, part in zip((None, *self.parts), (*self.parts, None), strict=True):
            if (before is None or isinstance(before, Fork)) and not (isinstance(part, Fed) and part.text):
                raise ValueError(
                    f"parts: {part!r} after {before!r}; a thread is fed something first, and after each fork"
                )


@dataclasses.dataclass
class _Line:
    """A thread that is being recorded. Entries are rows of token, index, position, clock, source, predictor and depth.

    Attributes:
        floor: a clock that its next token must exceed, beside its own.
        unfed: the token sampled last has not been fed.
    """

    path: tuple[int, ...]
    parent: int
    branch: int
    sees: set[int]
    position: int = 0
    floor: int = 0
    depth: int = 0
    clock: int = 0
    fed: int = 0
    last: int = -1
    unfed: bool = False
    children: int = 0
    rows: list[list[int]] = dataclasses.field(default_factory=list)

    def feed(self, row: int) -> None:
        """Feed an entry."""
        self.clock = 1 + max(self.clock, self.floor)
        self.rows[row][1:4] = self.fed, self.position, self.clock
        self.fed, self.position, self.last = self.fed + 1, self.position + 1, row
        self.unfed = False

    def flush(self) -> None:
        """Feed the token sampled last, if it has not been fed."""
        if self.unfed:
            self.feed(len(self.rows) - 1)

    def take(self, tokens: Sequence[int], sampled: bool) -> None:
        """Feed tokens, or sample them: a token is fed when the next one is sampled or fed."""
        for token in tokens:
            self.flush()
            self.depth += sampled
            source, predictor = (Source.SAMPLED, self.last) if sampled else (Source.FED, -1)
            self.rows.append([token, -1, -1, -1, source, predictor, self.depth])
            self.unfed = sampled
            if not sampled:
                self.feed(len(self.rows) - 1)


def record(thread: Thread, encode: Encode, problem: int = 0, sample: int = 0) -> Transcript:
    """The transcript that decoding would give if the model sampled what the threads say; log-probabilities are NaN.

    Clocks, positions and counts follow `docs/threads.md`: children start after their parent's last token was fed; a child that the
    parent will see has its last token fed too, that of another is never fed; the parent goes on at the position after the furthest
    child that it sees, with a clock after all their tokens.

    Args:
        thread: the root.
        encode: function from text to token ids; each part is encoded by itself.
        problem, sample: the numbers of the transcript.
    """
    lines = [_Line((), -1, thread.branch, {0})]
    _run(thread, 0, lines, encode)
    first = np.cumsum([0, *(len(line.rows) for line in lines)])
    rows = np.array([row for line in lines for row in line.rows], np.int32)
    owner = np.repeat(np.arange(len(lines), dtype=np.int32), np.diff(first))
    token, index, position, clock, source, predictor, depth = rows.T
    predictor = np.where(predictor < 0, -1, predictor + first[owner]).astype(np.int32)
    unknown = np.full(len(rows), np.nan, np.float32)
    log = Log(token, owner, index, position, clock, source, unknown, unknown, predictor, depth)
    sees = np.zeros((len(lines), len(lines)), bool)
    for number, line in enumerate(lines):
        sees[number, list(line.sees)] = True
    records = tuple(ThreadRecord(line.path, line.parent, Stop.END, branch=line.branch) for line in lines)
    return Transcript(problem, sample, Stop.END, records, sees, log, peak_context(sees, log))


def _run(thread: Thread, number: int, lines: list[_Line], encode: Encode) -> None:
    """Record a thread and all below it; a thread's descendants follow it in `lines`."""
    mine = lines[number]
    for part in thread.parts:
        if isinstance(part, Fork):
            _fork(part, number, lines, encode)
        else:
            mine.take(encode(part.text), isinstance(part, Said))


def _fork(fork: Fork, number: int, lines: list[_Line], encode: Encode) -> None:
    mine = lines[number]
    mine.flush()
    started = dict(position=mine.position, floor=mine.clock, depth=mine.depth)
    context, children = set(mine.sees), []
    for thread in fork.threads:
        child, path = len(lines), (*mine.path, mine.children)
        lines.append(_Line(path, number, thread.branch, {*context, child}, **started))
        mine.children += 1
        _run(thread, child, lines, encode)
        if len(children) < fork.seen:
            lines[child].flush()
            mine.sees |= lines[child].sees
            mine.position = max(mine.position, lines[child].position)
        children.append(lines[child])
    mine.floor = max(mine.floor, *(child.clock for child in children))
    mine.depth = max(mine.depth, *(child.depth for child in children))
