"""Transcripts as a Chrome trace, which ui.perfetto.dev opens: threads as tracks by causal clock, forks and joins as flows.

Format: "Trace Event Format" of the Chromium project. One step of the clock is one microsecond of the trace.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from apr_jax import files, record
from apr_jax.evaluate.causality import causality
from apr_jax.record import Transcript


def sources(path: str | Path) -> list[Path]:
    """The transcripts to read: the file itself, or the `.jsonl` files of a folder that have their `.npz` beside them.

    Raises:
        ValueError: the path is remote, or there are no transcripts.
    """
    path = files.local(path, "transcripts")
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = [file for file in found if file.is_file() and file.with_suffix(".npz").is_file()]
    if not found:
        raise ValueError(
            f"transcripts: {path} holds no .jsonl with its .npz beside it; give a file, or a folder that holds them itself "
            "(of a reinforcement-learning run, its folder rollouts)"
        )
    return found


def trace(transcripts: Iterable[tuple[str, Transcript]]) -> dict:
    """The trace of named transcripts, each one process whose tracks are the lines of its threads.

    Raises:
        ValueError: the predictor of a generated token was never fed.
    """
    return {"traceEvents": [e for n, (name, each) in enumerate(transcripts) for e in events(each, n, name)]}


def read(paths: Iterable[Path]) -> Iterator[tuple[str, Transcript]]:
    """The transcripts of files, each with a name made of the file, the problem and the sample."""
    for path in paths:
        for transcript, _ in record.read(path):
            yield f"{path.stem}: problem {transcript.problem}, sample {transcript.sample}", transcript


def events(transcript: Transcript, process: int, name: str) -> list[dict]:
    """The events of one transcript.

    A track says in its name why its thread ended, and in `never_fed` how many of its tokens have no clock (such as an end
    token). A fork or join is drawn only between tracks that were both fed something.

    Args:
        transcript: the transcript.
        process: number of the process in the trace.
        name: name of the process.
    """
    log, lines = transcript.log, transcript.lines
    track, found = lines[log.thread], [_named("process_name", process, 0, {"name": name})]
    rows = {}
    for line in np.unique(lines).tolist():
        last = transcript.threads[np.flatnonzero(lines == line)[-1]]
        own = np.flatnonzero(track == line)
        label = f"thread {'.'.join(map(str, last.path)) or 'root'}: {last.stop.name.lower()}"
        unfed = int((log.clock[own] < 0).sum())
        found.append(_named("thread_name", process, line, {"name": label, "never_fed": unfed}))
        own = own[log.clock[own] >= 0]
        rows[line] = own[np.argsort(log.clock[own], kind="stable")]
        found += _slices(transcript, rows[line], process, line)
    order, number = causality(transcript), 0
    for child in (child for _, child in order.forks if len(rows[child])):
        begin, parent = int(log.clock[rows[child][0]]), int(lines[transcript.threads[child].parent])
        before = log.clock[rows[parent]]
        before = before[before < begin]
        if len(before):
            found += _flow("fork", process, number, (parent, int(before[-1])), (child, begin))
            number += 1
    for child, entry in order.joins:
        if len(rows[child]):
            ends = child, int(log.clock[rows[child][-1]])
            found += _flow("join", process, number, ends, (int(track[entry]), int(log.clock[entry])))
            number += 1
    return found


def _slices(transcript: Transcript, rows: np.ndarray, process: int, line: int) -> list[dict]:
    """One slice for each run of rows at consecutive clocks that were all generated, or all fed from outside."""
    if not len(rows):
        return []
    clock, drawn = transcript.log.clock[rows], transcript.log.sampled[rows]
    cuts = np.flatnonzero((np.diff(clock) != 1) | (drawn[1:] != drawn[:-1])) + 1
    return [
        {
            "ph": "X",
            "name": "generated" if transcript.log.sampled[run[0]] else "fed",
            "pid": process,
            "tid": line,
            "ts": int(transcript.log.clock[run[0]]),
            "dur": len(run),
            "args": {"tokens": transcript.log.token[run].tolist()},
        }
        for run in np.split(rows, cuts)
    ]


def _named(kind: str, process: int, line: int, args: dict) -> dict:
    return {"ph": "M", "name": kind, "pid": process, "tid": line, "args": args}


def _flow(kind: str, process: int, number: int, begin: tuple[int, int], end: tuple[int, int]) -> list[dict]:
    """An arrow between two points, each a track and a clock."""
    common = {"name": kind, "cat": kind, "id": f"{process}.{number}", "pid": process}
    start = {**common, "ph": "s", "tid": begin[0], "ts": begin[1]}
    return [start, {**common, "ph": "f", "bp": "e", "tid": end[0], "ts": end[1]}]
