"""Which generated token had to wait for which, read from a transcript alone.

The engine counts the critical path while it runs; this module finds the same order again from clocks, visibility and
parents, so that the count can be checked and so that other machines (k workers) can be asked how long they would take.
"""

import dataclasses

import numpy as np

from apr_jax.decode.transcript import Log, Transcript


@dataclasses.dataclass(frozen=True)
class Causality:
    """The partial order of a problem's generated tokens.

    Attributes:
        waits_for: per log entry the entries of the generated tokens it came directly after: those its row had to wait
            for if it was generated, those that it was fed after if not; `()` where there are none.
        forks: pairs (entry of the last token the parent generated before the fork or -1, child thread).
        joins: pairs (child thread, first entry that its parent was fed after it had waited for the child).
    """

    waits_for: tuple[tuple[int, ...], ...]
    forks: tuple[tuple[int, int], ...]
    joins: tuple[tuple[int, int], ...]


def causality(transcript: Transcript) -> Causality:
    """Recovers who waited for whom.

    A token is sampled from the row (a fed token) that its predictor names. The row follows what its thread generated
    before, what it sees of other threads (smaller clocks only), and, if it is the first of its thread, what the parent
    had generated when it forked. A gap in a thread's clocks is a wait: it follows the children that ended before.

    Raises:
        ValueError: a generated token without a predictor that was fed.
    """
    log, count = transcript.log, len(transcript.threads)
    drawn = _drawn_from(log)
    last_clock = [-1] * count
    for entry in np.flatnonzero(log.clock >= 0):
        last_clock[log.thread[entry]] = max(last_clock[log.thread[entry]], int(log.clock[entry]))
    children = [[b for b in range(count) if transcript.threads[b].parent == a] for a in range(count)]
    sees = [[b for b in range(count) if b != a and transcript.sees[a, b]] for a in range(count)]

    waits_for: list[tuple[int, ...]] = [()] * len(log)
    forks, joins = [], []
    known = [frozenset()] * count  # newest generated tokens of a thread, those it waited for included
    shown = [frozenset()] * count  # the same without what its last row sampled: what others can see
    before = [-1] * count  # clock of a thread's last row
    unjoined = [set(members) for members in children]
    for rows in _rows_by_clock(log):
        past = {}
        for row in rows:  # rows of one clock do not see each other
            thread, clock = int(log.thread[row]), int(log.clock[row])
            follows = set(known[thread])
            parent = transcript.threads[thread].parent
            if before[thread] < 0 and parent >= 0:
                follows |= known[parent]
                forks.append((max(known[parent], default=-1), thread))
            for other in sees[thread]:
                follows |= shown[other]
            if before[thread] >= 0 and clock > before[thread] + 1:
                done = [b for b in sorted(unjoined[thread]) if 0 <= last_clock[b] < clock]
                unjoined[thread].difference_update(done)
                for child in done:
                    joins.append((child, row))
                for ended in _with_unjoined(done, unjoined):
                    follows |= known[ended]
            past[row] = frozenset(follows)
        for row, follows in past.items():
            thread = int(log.thread[row])
            if not log.sampled[row]:
                waits_for[row] = tuple(sorted(follows))
            shown[thread] = known[thread] = follows
            before[thread] = int(log.clock[row])
        for row, follows in past.items():
            for entry in drawn.get(row, ()):
                waits_for[entry] = tuple(sorted(follows))
                known[int(log.thread[entry])] = frozenset([entry])
    return Causality(tuple(waits_for), tuple(forks), tuple(joins))


def _with_unjoined(threads: list[int], unjoined: list[set[int]]) -> list[int]:
    """`threads` and below them those that their own parents waited for without being fed anything afterwards."""
    found = list(threads)
    for thread in found:  # grows while it is read
        found.extend(sorted(unjoined[thread]))
    return found


def depths(order: Causality, sampled: np.ndarray) -> np.ndarray:
    """The critical-path count of every token: Int [E]; a generated token counts itself, a fed one does not.

    Args:
        order: of `causality`.
        sampled: Bool [E], which entries were generated.
    """
    result = np.zeros(len(sampled), np.int64)
    for entry in topological(order, sampled):
        result[entry] = 1 + max((result[other] for other in order.waits_for[entry]), default=0)
    for entry in np.flatnonzero(~sampled):
        result[entry] = max((result[other] for other in order.waits_for[entry]), default=0)
    return result


def topological(order: Causality, sampled: np.ndarray) -> list[int]:
    """The generated tokens, each after all that it waited for."""
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
    """Per log entry, the generated tokens that waited for it directly."""
    followers: list[list[int]] = [[] for _ in order.waits_for]
    for entry in np.flatnonzero(sampled).tolist():
        for other in order.waits_for[entry]:
            followers[other].append(entry)
    return followers


def _rows_by_clock(log: Log) -> list[list[int]]:
    """The fed entries, those of one clock together, in order of clock."""
    fed = np.flatnonzero(log.clock >= 0)
    fed = fed[np.lexsort((log.index[fed], log.thread[fed], log.clock[fed]))]
    starts = np.flatnonzero(np.diff(log.clock[fed], prepend=-1))
    return [part.tolist() for part in np.split(fed, starts[1:])] if len(fed) else []


def _drawn_from(log: Log) -> dict[int, list[int]]:
    """Row -> the entries that were sampled from its logits."""
    drawn: dict[int, list[int]] = {}
    for entry in np.flatnonzero(log.sampled).tolist():
        row = int(log.predictor[entry])
        if row < 0 or log.clock[row] < 0:
            raise ValueError(f"log entry {entry} was sampled, but its predictor {row} is not an entry that was fed")
        drawn.setdefault(row, []).append(entry)
    return drawn
