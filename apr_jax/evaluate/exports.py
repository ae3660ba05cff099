"""Transcripts as chat messages, one conversation a thread, and as rows of a table.

Axes: E entries of a log.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apr_jax import record
from apr_jax.evaluate import metrics
from apr_jax.record import Transcript

ROWS = 256  # of a group of a Parquet file


def segments(transcript: Transcript, line: int) -> list[tuple[bool, np.ndarray]]:
    """The tokens of a line of threads in order, cut where generated and fed ones follow each other: whether generated, ids [E']."""
    own = np.flatnonzero(transcript.lines[transcript.log.thread] == line)
    sampled = transcript.log.sampled[own]
    cuts = np.flatnonzero(np.diff(sampled)) + 1
    return [
        (bool(transcript.log.sampled[run[0]]), transcript.log.token[run]) for run in np.split(own, cuts) if len(run)
    ]


def conversations(
    transcript: Transcript, line: Mapping[str, Any], decode: Callable[[Sequence[int]], str]
) -> Iterator[dict]:
    """Each line of threads as a conversation in the form of OpenAI's chat messages.

    What a thread is fed first is said by the user, what it is fed later (results of its children) by a tool, and what it generates
    by the assistant. Beside `messages` stand the path of the thread, why it ended, and the facts of the question.

    Args:
        line: of the transcript's file, see `apr_jax.record.read`.
        decode: function from ids to text.
    """
    about = {name: line[name] for name in ("question", "answer", "correct", "method") if name in line}
    for number in np.unique(transcript.lines).tolist():
        said, last = [], transcript.threads[np.flatnonzero(transcript.lines == number)[-1]]
        for generated, tokens in segments(transcript, number):
            role = "assistant" if generated else "tool" if said else "user"
            said.append({"role": role, "content": decode(tokens.tolist())})
        where = {"problem": transcript.problem, "sample": transcript.sample, "thread": list(last.path)}
        yield {**where, "stop": last.stop.name.lower(), **about, "messages": said}


def row(transcript: Transcript, line: Mapping[str, Any], file: str) -> dict[str, Any]:
    """A transcript as a row of a table: facts, counts, threads with their texts, and the columns of the log."""
    log = transcript.log
    threads = [{**thread, "path": list(thread["path"])} for thread in line["threads"]]
    columns = {
        "token": log.token,
        "thread": log.thread,
        "sampled": log.sampled,
        "clock": log.clock,
        "logprob": log.logprob,
    }
    told = {name: line.get(name) for name in ("question", "right", "method", "answer", "correct")}
    return {
        "file": file, "problem": transcript.problem, "sample": transcript.sample,
        **{name: value if value is None or isinstance(value, bool) else str(value) for name, value in told.items()},
        "stop": transcript.stop.name.lower(), "critical_path": metrics.critical_path(transcript),
        "generated": metrics.generated_tokens(transcript), "fed": metrics.fed_tokens(transcript),
        "threads": [{name: thread[name] for name in ("path", "parent", "stop", "text")} for thread in threads],
        **{f"log_{name}": np.asarray(column).tolist() for name, column in columns.items()},
    }  # fmt: skip


def write_messages(paths: Iterable[Path], output: Path, decode: Callable[[Sequence[int]], str]) -> int:
    """Write the conversations of files of transcripts as JSON lines to a new file; the number of conversations."""
    count = 0
    with output.open("x", encoding="utf-8") as file:
        for path in paths:
            for transcript, line in record.read(path):
                for each in conversations(transcript, line, decode):
                    file.write(json.dumps(each, ensure_ascii=False) + "\n")
                    count += 1
    return count


def write_parquet(paths: Iterable[Path], output: Path) -> int:
    """Write files of transcripts as one Parquet file, a row a transcript; the number of rows.

    Raises:
        ValueError: the package pyarrow is not installed.
    """
    try:
        import pyarrow  # optional, and slow to import
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError(
            "to: parquet needs the package pyarrow, which is not installed: pip install pyarrow"
        ) from error
    i, f, s, b = pyarrow.int64(), pyarrow.float32(), pyarrow.string(), pyarrow.bool_()
    thread = pyarrow.struct({"path": pyarrow.list_(i), "parent": i, "stop": s, "text": s})
    kinds = {
        "file": s, "problem": i, "sample": i, "question": s, "right": s, "method": s, "answer": s, "correct": b, "stop": s,
        "critical_path": i, "generated": i, "fed": i, "threads": pyarrow.list_(thread), "log_token": pyarrow.list_(i),
        "log_thread": pyarrow.list_(i), "log_sampled": pyarrow.list_(b), "log_clock": pyarrow.list_(i),
        "log_logprob": pyarrow.list_(f),
    }  # fmt: skip
    rows = (row(transcript, line, path.stem) for path in paths for transcript, line in record.read(path))
    count, schema = 0, pyarrow.schema(list(kinds.items()))
    with output.open("xb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while some := [each for _, each in zip(range(ROWS), rows, strict=False)]:
            writer.write_table(pyarrow.Table.from_pylist(some, schema))
            count += len(some)
    return count
