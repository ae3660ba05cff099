"""Packs transcripts into training rows of one length: many problems in a row, with the visibility of decoding.

A *component* is a set of threads connected by `sees`; an isolated thread is a component of its own. Components are
packed whole, first-fit. Inside, every visible entry stands earlier in the row, so that rows are causal; of the orders that allow
this, a row goes on with one thread as long as it can, so that long rows have blocks of attention that nobody sees (`_order`). A
sampled token is the *label* of its predictor, the entry whose logits it was drawn from. Sampled tokens
that were never fed (`<end>`, `<wait>`) are therefore trained on too.

Axes: B rows, S entries of a row, U threads of a row, E log entries, M threads of a transcript.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from apr_jax.record import Source, Transcript


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed rows; `apr_jax.model.attention.packed_attend` makes the attention mask from them.

    Key k is visible to query q iff `sees[owner_q, owner_k] & (clock_k < clock_q + (owner_q == owner_k))`.

    Attributes:
        token: id of the fed token; 0 in the padding.
        position: position to which the token's key is rotated.
        clock: causal time of the token.
        owner: number of the token's thread in the row, 0 to U - 1; -1 marks padding.
        branch: the branch that the token's thread wrote in, for models that tell branches apart; 0 in the padding.
        label: the token that was sampled from this entry's logits, -1 for none.
        weight: weight of the label in the loss, 0 without a label.
        sees: `sees[b, u, v]`: thread u of row b may see thread v.
    """

    token: Int[Array, "B S"]
    position: Int[Array, "B S"]
    clock: Int[Array, "B S"]
    owner: Int[Array, "B S"]
    branch: Int[Array, "B S"]
    label: Int[Array, "B S"]
    weight: Float[Array, "B S"]
    sees: Bool[Array, "B U U"]

    def __len__(self) -> int:
        return self.token.shape[0]

    def __getitem__(self, rows) -> "Rows":
        return jax.tree.map(lambda array: array[rows], self)


@dataclasses.dataclass(frozen=True)
class Origin:
    """The log entries behind the places of packed rows, for losses that look up values in the logs; Int [B, S], -1 for none.

    Attributes:
        transcript: number of the transcript in the order given to `pack`.
        entry: number of the fed entry in the transcript's log.
        label_entry: number of the sampled entry that is the label.
    """

    transcript: np.ndarray
    entry: np.ndarray
    label_entry: np.ndarray


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts of transcripts, and of packed and left-out components, entries and labels. Padding is `rows * S - entries`."""

    transcripts: int = 0
    components: int = 0
    too_long: int = 0  # components with more than S entries or U threads, left out
    no_room: int = 0  # components that did not fit into the given number of rows, left out
    entries: int = 0  # packed entries
    labels: int = 0  # packed labels
    left_out: int = 0  # labels in left-out components
    rows: int = 0
    places: int = 0  # rows * S

    def __add__(self, other: "Count") -> "Count":
        return Count(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def padding(self) -> float:
        """Share of the places without a token."""
        return 1 - self.entries / self.places if self.places else 0.0


@dataclasses.dataclass(frozen=True)
class _Component:
    transcript: int
    entries: np.ndarray  # log entries in row order
    owner: np.ndarray  # thread of each entry, numbered within the component
    sees: np.ndarray  # Bool [threads, threads] of the component
    label_entry: np.ndarray


def groups(sees: Bool[np.ndarray, "M M"]) -> Int[np.ndarray, " M"]:
    """The component of every thread, named by its smallest member: connected components of `sees`, taken as undirected."""
    name = np.arange(len(sees))
    for a, b in np.argwhere(sees | sees.T):
        if name[a] != name[b]:
            low, high = sorted((name[a], name[b]))
            name[name == high] = low
    return name


def _labels(transcript: Transcript) -> np.ndarray:
    """For every log entry, the sampled entry that was drawn from its logits, -1 for none: Int [E].

    Raises:
        ValueError: a predictor was never fed, or two tokens were sampled from one entry.
    """
    log, name = transcript.log, f"transcript {transcript.problem}.{transcript.sample}"
    sampled = np.flatnonzero(log.sampled)
    predictor = log.predictor[sampled]
    if (predictor < 0).any() or (log.index[predictor] < 0).any():
        bad = sampled[(predictor < 0) | (log.index[predictor] < 0)][0]
        raise ValueError(f"{name}: entry {bad} was sampled from entry {log.predictor[bad]}, which was never fed")
    label = np.full(len(log), -1, np.int32)
    label[predictor] = sampled
    if (label >= 0).sum() != len(sampled):
        twice = np.flatnonzero(np.bincount(predictor) > 1)[0]
        raise ValueError(f"{name}: two tokens were sampled from the logits of entry {twice}; each needs its own")
    return label


def _components(transcript: Transcript, number: int) -> Iterable[_Component]:
    """The components of one transcript that contain fed entries, in the order of their first threads."""
    if transcript.together:
        raise ValueError(f"transcript {number}: its threads saw tokens of the same clock, which packed rows cannot say")
    log = transcript.log
    label_entry = _labels(transcript)
    fed = np.flatnonzero(log.index >= 0)
    fed = fed[np.lexsort((log.index[fed], log.thread[fed]))]
    late = (np.diff(log.thread[fed]) == 0) & (np.diff(log.clock[fed]) <= 0)
    if late.any():
        entry = fed[1:][late][0]
        raise ValueError(
            f"transcript {transcript.problem}.{transcript.sample}: entry {entry} has clock {log.clock[entry]}, not above that of "
            "the entry before it in its thread; clocks of a thread ascend"
        )
    group = groups(transcript.sees)[log.thread[fed]]
    for name in np.unique(group):
        entries = fed[group == name]
        threads, owner = np.unique(log.thread[entries], return_inverse=True)
        sees = transcript.sees[np.ix_(threads, threads)]
        order = _order(owner, log.clock[entries], sees, [transcript.threads[thread].path for thread in threads])
        yield _Component(number, entries[order], owner[order], sees, label_entry[entries[order]])


def _order(owner: np.ndarray, clock: np.ndarray, sees: np.ndarray, paths: Sequence[tuple[int, ...]]) -> np.ndarray:
    """The order of the entries of a component, Int [E].

    A thread goes on until its next entry would see one that has not been placed; then the first thread by path goes on that can.
    So threads stand whole where nobody sees them before they end, and by clock where live siblings see each other. The thread with
    the least clock can always go on.

    Args:
        owner: thread of each entry, ascending, and within a thread by index.
        clock: of each entry.
        sees: Bool [threads, threads].
        paths: of the threads; children come after their parent, and before its next child.
    """
    never = np.iinfo(np.int64).max
    first = np.searchsorted(owner, np.arange(len(sees) + 1))
    clocks = [np.append(clock[a:b].astype(np.int64), never) for a, b in itertools.pairwise(first)]
    by_path = np.array(sorted(range(len(sees)), key=lambda thread: (paths[thread], thread)))
    others = sees & ~np.eye(len(sees), dtype=bool)
    done, coming, order = np.zeros(len(sees), int), np.array([each[0] for each in clocks]), []
    while len(order) < len(owner):
        bound = np.where(others, coming, never).min(axis=1)  # entries up to this clock see only what has been placed
        thread = by_path[np.argmax(((coming <= bound) & (coming < never))[by_path])]
        stop = np.searchsorted(clocks[thread][:-1], bound[thread], "right")
        order.extend(range(first[thread] + done[thread], first[thread] + stop))
        done[thread], coming[thread] = stop, clocks[thread][stop]
    return np.array(order)


def pack(
    transcripts: Sequence[Transcript],
    length: int,
    threads: int,
    too_long: str = "error",
    weights: Sequence[np.ndarray] | None = None,
    rows: int | None = None,
) -> tuple[Rows, Origin, Count]:
    """Pack transcripts in rows.

    Args:
        transcripts: the transcripts; only fed entries take a place.
        length: S, entries of a row.
        threads: U, threads of a row.
        too_long: treatment of components that no row can hold: "error", or "drop" and count them.
        weights: per transcript the loss weight of each log entry, Float [E]; used for sampled entries. The label of a
            rewritten token is the drawn token. None: all 1.
        rows: B, the number of rows: rows that nothing needs are padding, and components without room are left out and counted.
            None: as many rows as needed.

    Returns:
        Rows of NumPy arrays, the log entries behind them, and counts.

    Raises:
        ValueError: a component is too long under "error", a log names impossible predictors, or threads saw each other's
            tokens of the same clock.
    """
    if too_long not in ("error", "drop"):
        raise ValueError(f'too_long is {too_long!r}; allowed are "error" and "drop"')
    parts, left_out = _first_fit(transcripts, length, threads, too_long, rows)
    parts += [[] for _ in range((rows or 0) - len(parts))]
    filled, origin = _fill(parts, transcripts, weights, length, threads)
    count = dataclasses.replace(
        left_out,
        transcripts=len(transcripts),
        components=sum(map(len, parts)) + left_out.too_long + left_out.no_room,
        entries=int((filled.owner >= 0).sum()),
        labels=int((filled.label >= 0).sum()),
        rows=len(parts),
        places=len(parts) * length,
    )
    return filled, origin, count


def _first_fit(
    transcripts, length: int, threads: int, too_long: str, most: int | None
) -> tuple[list[list[_Component]], Count]:
    """Assign each component to the first row with room, of at most `most` rows. Returns the rows and counts of what is left out."""
    rows: list[list[_Component]] = []
    room = np.zeros((0, 2), int)  # entries and threads still free in each row
    left_out = Count()
    for number, transcript in enumerate(transcripts):
        for part in _components(transcript, number):
            need = np.array([len(part.entries), len(part.sees)])
            if need[0] > length or need[1] > threads:
                if too_long == "error":
                    raise ValueError(
                        f"transcript {transcript.problem}.{transcript.sample}: a component has {need[0]} entries and "
                        f"{need[1]} threads, rows hold {length} and {threads}; use longer rows or too_long='drop'"
                    )
                left_out += Count(too_long=1, left_out=int((part.label_entry >= 0).sum()))
                continue
            fits = np.flatnonzero((room >= need).all(axis=1))
            if len(fits) == 0 and len(rows) == most:
                left_out += Count(no_room=1, left_out=int((part.label_entry >= 0).sum()))
                continue
            if len(fits) == 0:
                rows.append([])
                room = np.concatenate([room, [[length, threads]]])
                fits = [len(rows) - 1]
            rows[fits[0]].append(part)
            room[fits[0]] -= need
    return rows, left_out


def _fill(rows, transcripts, weights, length: int, threads: int) -> tuple[Rows, Origin]:
    """Write the components of each row one after the other."""
    count = len(rows)

    def blank(value, dtype=np.int32):
        return np.full((count, length), value, dtype)

    out = Rows(
        token=blank(0),
        position=blank(0),
        clock=blank(0),
        owner=blank(-1),
        branch=blank(0),
        label=blank(-1),
        weight=blank(0, np.float32),
        sees=np.zeros((count, threads, threads), bool),
    )
    origin = Origin(blank(-1), blank(-1), blank(-1))
    for row, parts in enumerate(rows):
        start = first = 0
        for part in parts:
            log, records = transcripts[part.transcript].log, transcripts[part.transcript].threads
            place = (row, slice(start, start + len(part.entries)))
            out.token[place] = log.token[part.entries]
            out.position[place] = log.position[part.entries]
            out.clock[place] = log.clock[part.entries]
            out.owner[place] = part.owner + first
            out.branch[place] = np.array([record.branch for record in records])[log.thread[part.entries]]
            labelled = part.label_entry >= 0
            weight = 1.0 if weights is None else weights[part.transcript][part.label_entry]
            chosen = (
                log.source[part.label_entry] != Source.REWRITTEN
            )  # else the model drew a token that a rule of the protocol rewrote
            out.label[place] = np.where(labelled, log.drawn[part.label_entry], -1)
            out.weight[place] = np.where(labelled & chosen, weight, 0.0)
            own = slice(first, first + len(part.sees))
            out.sees[row, own, own] = part.sees
            origin.transcript[place] = part.transcript
            origin.entry[place] = part.entries
            origin.label_entry[place] = part.label_entry
            start, first = start + len(part.entries), first + len(part.sees)
    return out, origin
