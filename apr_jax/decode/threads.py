"""The thread table of a problem, in parts according to the code that writes them. Axis: M threads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.record import Stop

# States of a thread.
EMPTY, OPENED, READY, WAITING, FINISHED, DECIDING, ASKING = range(7)
NOBODY = -1


def pytree(cls):
    """A frozen dataclass whose fields are all arrays (or trees of them)."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def masked(mask: Bool[Array, "M"], old: Array, new: Any) -> Array:
    """The column `old` [M, ...] with `new` for the masked threads, broadcast over them and cast to the column's dtype."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (old.ndim - 1)), jnp.asarray(new).astype(old.dtype), old)


def collect(names: Int[Array, "M"], values: Int[Array, "M"], how: str, start: int = 0) -> Int[Array, "M"]:
    """For each thread number, reduce the values of the threads that name this number.

    Args:
        names: the thread number that each thread names, or NOBODY.
        values: one value per naming thread.
        how: the reduction: "add", "min" or "max".
        start: initial value of the reduction, and the result for numbers that no thread names.
    """
    place = jnp.where(names == NOBODY, names.shape[0], names)
    return getattr(jnp.full(names.shape, start, values.dtype).at[place], how)(values, mode="drop")


@pytree
class Lineage:
    """The origin of a thread. Written at its birth; only `opened`, `joined_at`, and `parent` when the parent continues as a new
    thread, change.

    Attributes:
        parent: thread number of the parent, NOBODY for the root.
        ordinal: index among all children that the parent's line has opened.
        segment: number of earlier threads of the same line.
        first: the first thread of the line.
        nesting: number of forks above the thread.
        opened: number of children that the thread's line has opened.
        follows: the held thread whose context this one continues, if that is not its parent; else NOBODY.
        split_at: for a thread made by a split, the index of its first token in its parent's log.
        branch: the branch that the thread writes in, 0 if none, for `needs.branches`; None without these. Given to `fork`.
        joined_at: the clock of the parent when it joined the line, behind which it goes on; -1 before that. For `needs.beside`;
            None without it, where a parent joins all that it waits for.
        key, draw_key: UInt32 [M, 2], random keys of the thread's path and of its draws.
    """

    parent: Int[Array, "M"] = NOBODY
    ordinal: Int[Array, "M"] = 0
    segment: Int[Array, "M"] = 0
    first: Int[Array, "M"] = 0
    nesting: Int[Array, "M"] = 0
    opened: Int[Array, "M"] = 0
    follows: Int[Array, "M"] = NOBODY
    split_at: Int[Array, "M"] = 0
    branch: Int[Array, "M"] | None = None
    joined_at: Int[Array, "M"] | None = None
    key: UInt32[Array, "M 2"] = dataclasses.field(default_factory=lambda: np.zeros(2, np.uint32))
    draw_key: UInt32[Array, "M 2"] = dataclasses.field(default_factory=lambda: np.zeros(2, np.uint32))


@pytree
class Bond:
    """The relation of a line to its parent, equal for all threads of the line. Written by forks, waits, joins and decisions.

    A child is opened, then started; a started child is *outstanding* until its parent joins it.

    Attributes:
        awaited: the parent waits for the line.
        beside: the parent wrote while the line ran.
        joined: the parent has joined the line.
        flushes: the line's last token is fed at its end, because the parent will see it.
        held: the line's slots are kept until the protocol releases the line.
        released: nobody will continue from the thread; its slots are freed when no unreleased thread can see it.
    """

    awaited: Bool[Array, "M"] = False
    beside: Bool[Array, "M"] = False
    joined: Bool[Array, "M"] = False
    flushes: Bool[Array, "M"] = False
    held: Bool[Array, "M"] = False
    released: Bool[Array, "M"] = False


@pytree
class Pace:
    """The groups and races of a thread. Written by forks and decisions. Groups and races are numbered by their first thread.

    Attributes:
        group: the live group of the thread, NOBODY if it is not live.
        race: the race of the thread, NOBODY if no event of another thread can end it.
        scope: the outermost group or race of the thread or of a thread above it, NOBODY if there is none.
        enough: in the row of a race's first thread: number of ends that decide the race, 0 if ends do not decide it.
        kills: in the row of a race's first thread: the decision kills the members that still run; otherwise their parent stops
            waiting for them.
        shared_budget: in the row of a race's first thread: tokens that the members and their descendants may sample together;
            0 means no limit.
    """

    group: Int[Array, "M"] = NOBODY
    race: Int[Array, "M"] = NOBODY
    scope: Int[Array, "M"] = NOBODY
    enough: Int[Array, "M"] = 0
    kills: Bool[Array, "M"] = False
    shared_budget: Int[Array, "M"] = 0


@pytree
class Cursor:
    """The progress of a thread. Written by every step in which the thread computes.

    Attributes:
        fed: number of tokens fed, which is the index of the next token.
        length: number of log entries.
        position: position (for RoPE) of the next token.
        clock: largest clock of the thread's tokens and of all tokens that its next token must follow.
        generated: number of tokens that the line has sampled.
        critical_path: generated tokens on the longest chain that ends with this thread.
        critical_path_fed, critical_path_before: the same count at the token fed last, and at the token before that.
        page, log_page: the current page of slots, and the current page of log entries.
        predictor: log entry of the token fed last; the next token is sampled from its logits.
    """

    fed: Int[Array, "M"] = 0
    length: Int[Array, "M"] = 0
    position: Int[Array, "M"] = 0
    clock: Int[Array, "M"] = 0
    generated: Int[Array, "M"] = 0
    critical_path: Int[Array, "M"] = 0
    critical_path_fed: Int[Array, "M"] = 0
    critical_path_before: Int[Array, "M"] = 0
    page: Int[Array, "M"] = 0
    log_page: Int[Array, "M"] = 0
    predictor: Int[Array, "M"] = -1


@pytree
class LastDrawn:
    """The token that a thread sampled last or was handed. Written by every step in which the thread computes.

    Attributes:
        token: token id.
        entry: log entry of the token.
        unfed: the token has not been fed.
        handed: the token is a copy of another thread's unfed token, to be fed before the message in the inbox.
        drawn_at: clock of the row that the token was sampled from.
        logprob: log-probability of the token under the model, nats.
        signals: signals of the last row that the thread computed, sampled or not; see `apr_jax.decode.signals`.
    """

    token: Int[Array, "M"] = 0
    entry: Int[Array, "M"] = 0
    unfed: Bool[Array, "M"] = False
    handed: Bool[Array, "M"] = False
    drawn_at: Int[Array, "M"] = 0
    logprob: Float[Array, "M"] = np.float32(0)
    signals: Float[Array, "M n"] = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))


@pytree
class Inbox:
    """The message that waits to be fed to a thread. Written by `apr_jax.decode.messages` and by the steps that feed the message.

    Attributes:
        begin, end: range of the message's pieces in `Pieces`.
        done: tokens of the message that are fed.
        left: tokens of the message that are not fed yet.
    """

    begin: Int[Array, "M"] = 0
    end: Int[Array, "M"] = 0
    done: Int[Array, "M"] = 0
    left: Int[Array, "M"] = 0


@pytree
class Sampling:
    """Sampling parameters of a thread. Written at its birth.

    Attributes:
        temperature, top_k, top_p: see `apr_jax.decode.sampling`.
        budget: tokens that the thread's line may generate.
    """

    temperature: Float[Array, "M"] = np.float32(0)
    top_k: Int[Array, "M"] = 0
    top_p: Float[Array, "M"] = np.float32(1)
    budget: Int[Array, "M"] = 0


@pytree
class Threads:
    """The thread table, in parts according to the code that writes them.

    Attributes:
        status: EMPTY, OPENED (its message is still being written), READY, WAITING, FINISHED, DECIDING (an event or an end
            of the thread awaits a decision, see `apr_jax.decode.races`) or ASKING (it waits for the host, see
            `apr_jax.decode.replies`).
        stop: a `Stop`; for a thread that is closed and not finished, the reason with which it will end.
        event: number of the event of the last step, see `apr_jax.decode.transitions`; 0 for none.
        samples: the thread samples when its inbox is empty; otherwise an empty inbox makes it drained.
        line, bond, pace, cursor, drawn, inbox, sampling: the parts of the table.
        own: the protocol's state of each thread, a tree of arrays with a leading axis M.
        reply: the host's last reply to each thread, a `replies.Reply`; () if the protocol does not ask.
    """

    status: Int[Array, "M"] = EMPTY
    stop: Int[Array, "M"] = int(Stop.RUNNING)
    event: Int[Array, "M"] = 0
    samples: Bool[Array, "M"] = False
    line: Lineage = dataclasses.field(default_factory=Lineage)
    bond: Bond = dataclasses.field(default_factory=Bond)
    pace: Pace = dataclasses.field(default_factory=Pace)
    cursor: Cursor = dataclasses.field(default_factory=Cursor)
    drawn: LastDrawn = dataclasses.field(default_factory=LastDrawn)
    inbox: Inbox = dataclasses.field(default_factory=Inbox)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    own: Any = ()
    reply: Any = ()

    def where(self, mask: Bool[Array, "M"], **columns: Any) -> "Threads":
        """A copy in which the named columns, of any part, have new values for the masked threads (broadcast over them)."""
        parts: dict[str, dict[str, Any]] = {}
        for name, value in columns.items():
            part = _PART_OF[name]
            old = getattr(getattr(self, part), name) if part else getattr(self, name)
            parts.setdefault(part, {})[name] = jax.tree.map(lambda old, new: masked(mask, old, new), old, value)
        whole = {part: dataclasses.replace(getattr(self, part), **new) for part, new in parts.items() if part}
        return dataclasses.replace(self, **whole, **parts.get("", {}))


def _parts() -> dict[str, str]:
    """The part of the thread table that holds each column; "" for columns of `Threads` itself."""
    found = {}
    for field in dataclasses.fields(Threads):
        columns = dataclasses.fields(field.type) if dataclasses.is_dataclass(field.type) else ()
        found |= {column.name: field.name for column in columns} or {field.name: ""}
    return found


_PART_OF = _parts()


def empty(
    count: int, own: Any, signals: int = 0, branches: bool = False, reply: Any = (), beside: bool = False
) -> Threads:
    """A table without threads.

    Args:
        count: M, rows of the table.
        own: the protocol's state of a new thread, without the axis M.
        signals: number of signals that the protocol reads.
        branches: the threads have branches.
        reply: the reply of a new thread, without the axis M.
        beside: children may run while their parent writes.
    """

    def column(value):
        whole = isinstance(value, int) and not isinstance(value, bool)
        value = jnp.asarray(value, jnp.int32 if whole else None)
        return jnp.broadcast_to(value, (count, *value.shape))

    drawn = LastDrawn(signals=np.zeros(signals, np.float32))
    line = Lineage(branch=0 if branches else None, joined_at=-1 if beside else None)
    return jax.tree.map(column, Threads(line=line, own=own, drawn=drawn, reply=reply))
