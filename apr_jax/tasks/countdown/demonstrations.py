"""Demonstrations as training data: a seeded stream of threads, and their transcripts."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript
from apr_jax.tasks.countdown import compact, problems, search
from apr_jax.tasks.countdown.problems import Problem, Setting

Method = Literal["apr", "sos"]


@dataclasses.dataclass(frozen=True)
class DemonstrationConfig:
    """Settings with which demonstrations are drawn.

    Attributes:
        setting: the family of problems.
        beam: least and largest beam of the outermost search, drawn uniformly (published: (1, 10) for apr, (1, 5) for sos).
        sub_beam: the same for inner searches, drawn at least as large as the beam (published for apr: up to 15);
            None: the beam of the outermost search (published for sos).
        promising: see `SearchConfig` (published: 0.9 for apr, 0.5 for sos).
        order, largest, width, waves: see `SearchConfig`.
        solved_only: draw further problems of the same sample until the demonstrator succeeds.
    """

    setting: Setting = problems.PRESETS["four"]
    beam: tuple[int, int] = (1, 10)
    sub_beam: tuple[int, int] | None = (1, 15)
    promising: float = 0.9
    order: search.Order = "shuffled"
    largest: int = 0
    width: tuple[int, int] | None = None
    waves: int = 1
    solved_only: bool = False

    def __post_init__(self):
        for name, (low, high) in {"beam": self.beam, "sub_beam": self.sub_beam or self.beam}.items():
            if not 1 <= low <= high:
                raise ValueError(f"{name}: ({low}, {high}) must satisfy 1 <= low <= high")
        if self.sub_beam is not None and self.sub_beam[1] < self.beam[1]:
            raise ValueError(
                f"sub_beam: its largest value {self.sub_beam[1]} is below that of beam, {self.beam[1]}; raise it"
            )
        self.searching(self.beam[0], self.beam[0])  # checks the rest

    def searching(self, beam: int, sub_beam: int) -> search.SearchConfig:
        """The settings of the demonstrator with these beams."""
        return search.SearchConfig(beam, sub_beam, self.promising, self.order, self.largest, self.width, self.waves)


def trace(problem: Problem, method: Method, config: DemonstrationConfig, rng: random.Random) -> search.Search:
    """Demonstrate one problem with beams drawn from the ranges of `config`.

    Raises:
        ValueError: the method is unknown.
    """
    if method not in ("apr", "sos"):
        raise ValueError(f"method: {method!r} is not one of apr, sos")
    beam = rng.randint(*config.beam)
    sub_beam = beam if config.sub_beam is None else rng.randint(max(beam, config.sub_beam[0]), config.sub_beam[1])
    return {"apr": search.apr, "sos": search.sos}[method](problem, config.searching(beam, sub_beam), rng)


def demonstration(
    problem: Problem, method: Method, config: DemonstrationConfig, rng: random.Random
) -> tuple[compact.ThreadText, ...]:
    """The threads of one demonstration in compact text, root first."""
    return compact.render(problem, trace(problem, method, config, rng))


def sample(
    method: Method, config: DemonstrationConfig, seed: int, index: int, split: problems.Split = "train"
) -> tuple[Problem, tuple[compact.ThreadText, ...]]:
    """Sample `index` of a stream of demonstrations, independent of earlier draws from the stream."""
    rng = problems.generator(seed, f"{split}/demonstration", index)
    while True:
        problem = problems.draw(config.setting, split, rng)
        found = trace(problem, method, config, rng)
        if found.goal is not None or not config.solved_only:
            return problem, compact.render(problem, found)


def stream(
    method: Method, config: DemonstrationConfig, seed: int, start: int = 0, split: problems.Split = "train"
) -> Iterator[tuple[Problem, tuple[compact.ThreadText, ...]]]:
    """The endless stream from sample `start` on."""
    index = start
    while True:
        yield sample(method, config, seed, index, split)
        index += 1


def to_transcript(
    threads: Sequence[compact.ThreadText], encode: Callable[[str], Sequence[int]], problem: int = 0, number: int = 0
) -> Transcript:
    """The transcript that decoding would give if the model sampled these tokens.

    Children are isolated. A child's clocks start after the row that sampled its fork (the entry before `<wait>`). The
    `<wait>` itself is fed at the join, before the results, with a clock after all tokens of the children. The last token of
    a thread is never fed. Log-probabilities are NaN.

    Args:
        threads: a demonstration, root first.
        encode: function from compact text to token ids.
        problem: number of the problem in the transcript.
        number: number of the sample in the transcript.
    """
    tokens = [[np.asarray(encode(segment.text), np.int32) for segment in thread.segments] for thread in threads]
    clocks: list = [None] * len(threads)
    depths: list = [None] * len(threads)
    _run(threads, [[len(part) for part in row] for row in tokens], 0, 0, 0, clocks, depths)
    columns, first = [], 0
    for thread, row in enumerate(tokens):
        columns.append(_columns(thread, threads[thread], row, clocks[thread], depths[thread], first))
        first += len(columns[-1]["token"])
    log = Log(**{name: np.concatenate([column[name] for column in columns]) for name in columns[0]})
    records = tuple(ThreadRecord(thread.path, thread.parent, Stop.END) for thread in threads)
    context = max(int(column["index"].max()) + 1 for column in columns)
    return Transcript(problem, number, Stop.END, records, np.eye(len(threads), dtype=bool), log, context)


def _run(threads, lengths, number: int, clock: int, depth: int, clocks: list, depths: list) -> tuple[int, int]:
    """Fill in clocks and depths of a thread that starts at `clock` with count `depth`, and of its descendants.

    Returns:
        The next clock after all tokens fed by the thread and by its awaited children, and the thread's final count.
    """
    segments, row = threads[number].segments, lengths[number]
    own_clocks, own_depths = [], []
    for place, (segment, length) in enumerate(zip(segments, row, strict=True)):
        if segment.generated:
            # The last token of a generated part (<wait> or <end>) is not fed with the part.
            own_clocks += range(clock, clock + length - 1)
            own_depths += range(depth + 1, depth + length + 1)
            clock, depth = clock + length - 1, depth + length
            continue
        for child, thread in enumerate(threads):
            if thread.parent == number and thread.forked_after == place:
                ended = _run(threads, lengths, child, own_clocks[-1] + 1, own_depths[-1], clocks, depths)
                clock, depth = max(clock, ended[0]), max(depth, ended[1])
        waiting = 1 if place else 0  # the unfed token of the part before
        own_clocks += range(clock, clock + waiting + length)
        own_depths += [depth] * length
        clock += waiting + length
    clocks[number], depths[number] = [*own_clocks, -1], own_depths
    return clock, depth


def _columns(number: int, thread: compact.ThreadText, parts: list, clock: list, depth: list, first: int) -> dict:
    """The log columns of one thread whose first entry has number `first`."""
    token = np.concatenate(parts)
    count = len(token)
    sampled = np.repeat([segment.generated for segment in thread.segments], [len(part) for part in parts])
    index = np.arange(count, dtype=np.int32)
    fed_index = np.where(index == count - 1, -1, index).astype(np.int32)
    unknown = np.full(count, np.nan, np.float32)
    return {
        "token": token,
        "thread": np.full(count, number, np.int32),
        "index": fed_index,
        "position": fed_index,
        "clock": np.array(clock, np.int32),
        "source": np.where(sampled, Source.SAMPLED, Source.FED).astype(np.int32),
        "logprob": unknown,
        "behaviour_logprob": unknown,
        "predictor": np.where(sampled, first + index - 1, -1).astype(np.int32),
        "depth": np.array(depth, np.int32),
    }
