"""Makes transcripts from the arrays of finished problems, on the host."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from apr_jax.decode import state as states
from apr_jax.decode.program import Program
from apr_jax.decode.protocol import Protocol
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.threads import FINISHED, OPENED
from apr_jax.record import DRAWN, SAMPLING, Log, Stop, ThreadRecord, Transcript, peak_context


def transcript(
    books: states.Kept, logs: states.LogArrays, place: tuple[int, int], program: Program, version: int
) -> Transcript:
    """The transcript of the problem at `place` (shard, row): threads in the order of their paths, entries thread by thread."""
    sizes, needs = program.sizes, program.protocol.needs
    book = jax.tree.map(lambda value: value[place], books)
    log = jax.tree.map(lambda x: x[place], logs)
    used = int(book.used)
    paths = [path(book, i) for i in range(used)]
    order = sorted(range(used), key=lambda i: (paths[i], book.threads.line.segment[i]))
    renamed = {old: new for new, old in enumerate(order)}

    entries = np.concatenate([entries_of(book, i, sizes) for i in order])
    number = np.full(sizes.log + 1, -1)
    number[entries] = np.arange(len(entries))
    queued, fed = log.queued[:, entries], log.fed[:, entries]
    numbers = np.where(np.isin(queued[1], DRAWN), log.numbers[:, entries], np.nan)
    thread = np.concatenate([np.full(book.threads.length[i], renamed[i]) for i in order])
    words = book.sees[order]
    sees = (words[:, [i // 32 for i in order]] >> np.array([i % 32 for i in order], np.uint32)) & 1
    records = tuple(
        ThreadRecord(
            paths[i],
            renamed.get(int(book.threads.line.parent[i]), -1),
            _stop(book, i),
            int(book.threads.line.segment[i]),
            renamed.get(int(book.threads.line.follows[i]), -1),
            int(book.threads.line.branch[i]) if needs.branches else 0,
            int(book.threads.line.joined_at[i]) if needs.beside else None,
        )
        for i in order
    )
    sees = sees.astype(bool)
    log = Log(
        token=queued[0],
        thread=thread,
        index=fed[0],
        position=fed[1],
        clock=fed[2],
        source=queued[1],
        logprob=numbers[0],
        behaviour_logprob=numbers[1],
        predictor=number[queued[2]],
        depth=queued[3],
        drawn=queued[4],
        signals=numbers[2:].T,
    )
    problem, sample, stop = int(book.problem), int(book.sample), Stop(int(book.stop))
    peak, together = peak_context(sees, log, needs.together > 0), needs.together > 0
    own, shared = (named(book.own, np.array(order)), named(book.shared)) if needs.recorded else ({}, {})
    sampling = {name: np.asarray(getattr(book.threads.sampling, name))[order] for name in SAMPLING}
    given = own, shared, version, sampling, adjusts(program.protocol)
    return Transcript(problem, sample, stop, records, sees, log, peak, together, *given)


def adjusts(protocol: Protocol) -> Mapping[str, Any]:
    """The class and the plain settings (numbers, words, lists of them) of a protocol that changes logits; else empty."""
    if not protocol.needs.adjusts:
        return {}
    fields = dataclasses.fields(protocol) if dataclasses.is_dataclass(protocol) else ()
    settings = {field.name: getattr(protocol, field.name) for field in fields}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    told = {name: value for name, value in plain.items() if _plain(value)}
    return {"protocol": type(protocol).__name__, **told}


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if isinstance(value, list) else isinstance(value, bool | int | float | str)


def named(tree: Any, rows: Any = ...) -> dict[str, np.ndarray]:
    """The leaves of a protocol's state by dotted name, with their `rows` in the given order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)[rows] for path, leaf in leaves}


def path(book: states.Kept, thread: int) -> tuple[int, ...]:
    """The ordinals of the forks that lead to a thread."""
    parent = int(book.threads.line.parent[thread])
    return () if parent < 0 else (*path(book, parent), int(book.threads.line.ordinal[thread]))


def entries_of(book: states.Kept, thread: int, sizes: Sizes) -> np.ndarray:
    """Log entries of a thread in order; the entries of a split-off thread lie in its parent's log."""
    split_off = book.threads.stop[thread] == Stop.SPLIT
    writer, start = (book.threads.line.parent[thread], book.threads.line.split_at[thread]) if split_off else (thread, 0)
    pages = np.flatnonzero(book.log_owner == writer)
    pages = pages[np.argsort(book.log_first[pages])]
    entries = (pages[:, None] * sizes.log_page_size + np.arange(sizes.log_page_size)).reshape(-1)
    return entries[start : start + book.threads.length[thread]]


def _stop(book: states.Kept, thread: int) -> Stop:
    """Why a thread ended. A thread that had not ended when its problem ended counts as killed, or dropped if never started."""
    status = book.threads.status[thread]
    if status == FINISHED:
        return Stop(int(book.threads.stop[thread]))
    if book.stop == Stop.RUNNING:
        return Stop.RUNNING
    return Stop.DROPPED if status == OPENED else Stop.KILLED
