"""The order in which generated tokens had to wait for each other, recovered from a transcript alone.

The engine counts the critical path while it runs. This module recovers the same order from clocks, visibility and parents, to
check the count and to compute how long other machines (k workers) would take.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from apr_jax.record import Log, Source, Stop, Transcript


@dataclasses.dataclass(frozen=True)
class Causality:
    """The partial order of a problem's generated tokens.

    Attributes:
        waits_for: per log entry, the entries of the generated tokens that directly precede it: the row of a generated token
            had to wait for them, a fed token was fed after them; `()` if there are none.
        forks: pairs (entry of the parent's last generated token before the fork, or -1; child thread).
        joins: pairs (child thread; first entry that the parent was fed after waiting for the child).
        end: entries of the generated tokens that directly precede the end of the problem.
    """

    waits_for: tuple[tuple[int, ...], ...]
    forks: tuple[tuple[int, int], ...]
    joins: tuple[tuple[int, int], ...]
    end: tuple[int, ...]


def causality(transcript: Transcript) -> Causality:
    """Recovers the partial order.

    A token is sampled from the row (a fed token) that its predictor names. The row follows what its line generated before, what it
    sees of other threads (smaller clocks only), and, if it is the first of its line, what the parent had generated when it forked.
    A join is where the record marks it (`ThreadRecord.joined`). Without marks, a gap in a line's clocks, up to its next row or to
    the first one of children that it forks next, is a wait for the children that ended before. A join follows no child that was
    killed. A thread that goes on as another, or is split, leaves its line as it is.

    A record does not tell whether the members of a race were ended by one of them or by their shared budget (the parent then
    waited for them all), nor the state of a line's own wait when such a budget ended it, nor, without marks, for whom a wait by
    name was: that follows all children that have ended, so that counts are bounds from above where children run beside.

    Raises:
        ValueError: the predictor of a generated token was never fed.
    """
    log, threads, line = transcript.log, transcript.threads, transcript.lines.tolist()
    drawn, sampled, count = _drawn_from(log), log.sampled, len(threads)
    # All lists are per line, named by the line's first thread; only `sees` and `shown` are per thread.
    last_clock, (stop, unjoined, sees) = _last_clocks(log, line), _relations(transcript, line)
    marks = {line[number]: thread.joined for number, thread in enumerate(threads) if thread.joined is not None}
    waits_for: list[tuple[int, ...]] = [()] * len(log)
    forks, joins, runs = [], [], {}  # runs: the thread that each line ran as last
    known = [frozenset()] * count  # newest generated tokens of a line, those it waited for included
    shown = [frozenset()] * count  # of a thread, the same without what its last row sampled: what others can see
    before = [0, *[-1] * (count - 1)]  # clock of the last row of a line, or up to which it waited
    for rows in _rows_by_clock(log):
        past = {}
        for row in rows:  # rows of one clock do not see each other
            thread, clock = int(log.thread[row]), int(log.clock[row])
            # A thread begins where its parent stood, which may have waited without being fed anything after that.
            mine, begins = line[thread], before[line[thread]] < 0
            stood = line[threads[thread].parent] if begins else mine
            cut_off = not begins and clock == last_clock[mine] and _cut_off(mine, unjoined, stop)
            if marks or (clock > before[stood] + 1 and not cut_off):
                over = marks or last_clock
                done = [b for b in sorted(unjoined[stood]) if 0 <= over[b] < clock]
                unjoined[stood].difference_update(done)
                waited = _waited_for(done, unjoined, stop)
                joins += [(runs[child], row) for child in done if child in waited and not begins]
                known[stood] = known[stood].union(*(known[ended] for ended in waited))
                before[stood] = clock - 1
            if begins:
                forks.append((max(known[stood], default=-1), thread))
            past[row] = known[stood].union(*(shown[other] for other in sees[thread]), _copied(transcript, row, known))
        for row, follows in past.items():
            thread = int(log.thread[row])
            if not sampled[row]:
                waits_for[row] = tuple(sorted(follows))
            shown[thread] = known[line[thread]] = follows
            before[line[thread]] = int(log.clock[row])
            runs[line[thread]] = thread
        for row, follows in past.items():
            for entry in drawn.get(row, ()):
                waits_for[entry] = tuple(sorted(follows))
                known[line[log.thread[entry]]] = frozenset([entry])
    end = frozenset().union(*(known[each] for each in _waited_for([0], unjoined, stop)))
    return Causality(tuple(waits_for), tuple(forks), tuple(joins), tuple(sorted(end)))


def _relations(transcript: Transcript, line: list[int]) -> tuple[dict[int, Stop], list[set[int]], list[list[int]]]:
    """Why each line stopped (its last thread); the children of each line; the threads of other lines that each thread sees."""
    threads, every = transcript.threads, range(len(transcript.threads))
    stop = {line[b]: thread.stop for b, thread in enumerate(threads) if thread.stop != Stop.SPLIT}
    children = [{b for b in stop if threads[b].parent >= 0 and line[threads[b].parent] == a} for a in every]
    return stop, children, [[b for b in every if line[b] != line[a] and transcript.sees[a, b]] for a in every]


def _copied(transcript: Transcript, row: int, known: list[frozenset]) -> frozenset:
    """What a row follows that is fed a copy of the last token of the thread whose reasoning it takes over; that may run on.

    Args:
        known: by line, its newest generated tokens.
    """
    log, thread = transcript.log, transcript.threads[transcript.log.thread[row]]
    begins = thread.follows >= 0 and not thread.segment and log.index[row] == 0
    return known[transcript.lines[thread.follows]] if begins and log.source[row] == Source.HANDED else frozenset()


def _last_clocks(log: Log, line: list[int]) -> list[int]:
    """The clock of the last token that each line fed, by the line's first thread; -1 for none."""
    last = [-1] * len(line)
    for entry in np.flatnonzero(log.clock >= 0):
        last[line[log.thread[entry]]] = max(last[line[log.thread[entry]]], int(log.clock[entry]))
    return last


def _waited_for(lines: list[int], unjoined: list[set[int]], stop: Mapping[int, Stop]) -> list[int]:
    """`lines` without killed ones, and the descendants for which their parents waited without being fed anything afterwards."""
    found = [line for line in lines if stop[line] != Stop.KILLED]
    for line in found:  # grows while it is read
        below = [] if _cut_off(line, unjoined, stop) else sorted(unjoined[line])
        found.extend(each for each in below if stop[each] != Stop.KILLED)
    return found


def _cut_off(line: int, unjoined: list[set[int]], stop: Mapping[int, Stop]) -> bool:
    """Whether a shared budget ended the line while it waited for others, which were then killed."""
    return stop[line] == Stop.SHARED and any(stop[below] == Stop.KILLED for below in unjoined[line])


def depths(order: Causality, sampled: np.ndarray) -> np.ndarray:
    """The critical-path count of every token: Int [E]; a generated token counts itself, a fed one does not.

    Args:
        order: the result of `causality`.
        sampled: Bool [E], mask of the generated entries.
    """
    result = np.zeros(len(sampled), np.int64)
    for entry in topological(order, sampled):
        result[entry] = 1 + max((result[other] for other in order.waits_for[entry]), default=0)
    for entry in np.flatnonzero(~sampled):
        result[entry] = max((result[other] for other in order.waits_for[entry]), default=0)
    return result


def topological(order: Causality, sampled: np.ndarray) -> list[int]:
    """The generated tokens, each after all tokens that it waited for."""
    open_ = {int(entry): len(order.waits_for[entry]) for entry in np.flatnonzero(sampled)}
    followers = followers_of(order, sampled)
    ready = [entry for entry, missing in open_.items() if missing == 0]
    for entry in ready:  # grows while it is read
        for follower in followers[entry]:
            open_[follower] -= 1
            if open_[follower] == 0:
                ready.append(follower)
    return ready


def followers_of(order: Causality, sampled: np.ndarray) -> list[list[int]]:
    """Per log entry, the generated tokens that directly waited for it."""
    followers: list[list[int]] = [[] for _ in order.waits_for]
    for entry in np.flatnonzero(sampled).tolist():
        for other in order.waits_for[entry]:
            followers[other].append(entry)
    return followers


def _rows_by_clock(log: Log) -> list[list[int]]:
    """The fed entries in order of clock, grouped by clock."""
    fed = np.flatnonzero(log.clock >= 0)
    fed = fed[np.lexsort((log.index[fed], log.thread[fed], log.clock[fed]))]
    starts = np.flatnonzero(np.diff(log.clock[fed], prepend=-1))
    return [part.tolist() for part in np.split(fed, starts[1:])] if len(fed) else []


def _drawn_from(log: Log) -> dict[int, list[int]]:
    """The entries that were sampled from the logits of each row, by row."""
    drawn: dict[int, list[int]] = {}
    for entry in np.flatnonzero(log.sampled).tolist():
        row = int(log.predictor[entry])
        if row < 0 or log.clock[row] < 0:
            raise ValueError(f"log entry {entry} was sampled, but its predictor {row} is not an entry that was fed")
        drawn.setdefault(row, []).append(entry)
    return drawn
