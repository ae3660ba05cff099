"""The thread table of a problem, in parts by who writes them. Axis: M threads."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from apr_jax.record import Stop

# States of a thread.
EMPTY, OPENED, READY, WAITING, FINISHED, DECIDING = range(6)
NOBODY = -1


def pytree(cls):
    """A frozen dataclass whose fields are all arrays (or trees of them)."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def masked(mask: Bool[Array, "M"], old: Array, new: Any) -> Array:
    """A column [M, ...] with new values for the masked threads, broadcast over them, in its dtype."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (old.ndim - 1)), jnp.asarray(new).astype(old.dtype), old)


def collect(names: Int[Array, "M"], values: Int[Array, "M"], how: str, start: int = 0) -> Int[Array, "M"]:
    """For every number the sum ("add"), the least ("min") or the largest ("max") of the values of the threads that name it.

    Args:
        names: a number, or NOBODY, that each thread names.
        start: what the sum begins with, and the least or the largest where nobody names a number.
    """
    place = jnp.where(names == NOBODY, names.shape[0], names)
    return getattr(jnp.full(names.shape, start, values.dtype).at[place], how)(values, mode="drop")


@pytree
class Lineage:
    """Where a thread comes from. Written at its birth, but `opened`, and `parent` where the parent goes on as another thread.

    Attributes:
        parent: thread number, NOBODY for the root.
        ordinal: its place among all children that its line's parent ever opened.
        segment: how many threads of its line came before it.
        first: the first thread of its line.
        nesting: forks above it.
        opened: children it ever opened.
        follows: the thread whose reasoning it took over, where that is not its parent; NOBODY otherwise.
        split_at: of a thread that was split off: where it begins in its parent's log.
        key, draw_key: UInt32 [M, 2], of its path and of its draws.
    """

    parent: Int[Array, "M"] = NOBODY
    ordinal: Int[Array, "M"] = 0
    segment: Int[Array, "M"] = 0
    first: Int[Array, "M"] = 0
    nesting: Int[Array, "M"] = 0
    opened: Int[Array, "M"] = 0
    follows: Int[Array, "M"] = NOBODY
    split_at: Int[Array, "M"] = 0
    key: UInt32[Array, "M 2"] = dataclasses.field(default_factory=lambda: np.zeros(2, np.uint32))
    draw_key: UInt32[Array, "M 2"] = dataclasses.field(default_factory=lambda: np.zeros(2, np.uint32))


@pytree
class Bond:
    """How a line stands to its parent, the same for all threads of the line. Written by forks, waits, joins and decisions.

    A child is opened, then started; from then on it is *outstanding* until its parent joins it.

    Attributes:
        awaited: its parent waits for it.
        beside: its parent wrote while it ran.
        joined: its parent has joined it.
        flushes: its last token is fed at its end, because its parent will see it.
        held: its slots are kept until the protocol releases it.
        released: nobody will go on from it; its slots are freed when no unreleased thread can see it.
    """

    awaited: Bool[Array, "M"] = False
    beside: Bool[Array, "M"] = False
    joined: Bool[Array, "M"] = False
    flushes: Bool[Array, "M"] = False
    held: Bool[Array, "M"] = False
    released: Bool[Array, "M"] = False


@pytree
class Pace:
    """Whom a thread must keep pace with. Written by forks and decisions. A group's number is that of its first thread.

    Attributes:
        group: the live group it is a member of, NOBODY if it is not live.
        race: the race it is a member of, NOBODY if an event of another cannot end it.
        scope: the outermost group or race that it or a thread above it is a member of, NOBODY if there is none.
        enough: of the first thread of a race: ends that decide it, 0 if ends do not.
        kills: of the first thread of a race: those that have not ended when it is decided are killed; otherwise nobody waits for
            them any more.
        shared_budget: of the first thread of a race: tokens that its members may sample together, with all below them; 0 is any
            number.
    """

    group: Int[Array, "M"] = NOBODY
    race: Int[Array, "M"] = NOBODY
    scope: Int[Array, "M"] = NOBODY
    enough: Int[Array, "M"] = 0
    kills: Bool[Array, "M"] = False
    shared_budget: Int[Array, "M"] = 0


@pytree
class Cursor:
    """How far a thread has come. Written by every step in which it computes.

    Attributes:
        fed: tokens fed, the index of the next one.
        length: entries of its log.
        position: position of the next token.
        clock: largest clock that it wrote or must be later than.
        generated: tokens it sampled.
        critical_path: generated tokens on the longest chain that ends with it.
        critical_path_fed, critical_path_before: that count for the token it fed last, and for the one before.
        page, log_page: the page of slots, and of log entries, that it writes to.
        predictor: log entry of its last fed token, from whose logits it samples next.
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
    """The token that a thread sampled last, or was handed. Written by every step in which it samples.

    Attributes:
        token: its id.
        entry: its log entry.
        unfed: it has not been fed.
        handed: it is a copy of another thread's unfed token, and comes before the message in the inbox.
        drawn_at: clock of the row that it was sampled from.
        logprob: its log-probability under the model, nats.
        signals: of the last row that the thread computed, whether it sampled then or not; see `apr_jax.decode.signals`.
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
    """The message that waits to be fed to a thread. Written by `apr_jax.decode.messages` and as it is fed.

    Attributes:
        begin, end: its pieces, from and to.
        done: tokens of it that are fed.
        left: tokens of it that are not.
    """

    begin: Int[Array, "M"] = 0
    end: Int[Array, "M"] = 0
    done: Int[Array, "M"] = 0
    left: Int[Array, "M"] = 0


@pytree
class Sampling:
    """How a thread samples. Written at its birth.

    Attributes:
        temperature, top_k, top_p: see `apr_jax.decode.sampling`.
        budget: tokens that it may generate.
    """

    temperature: Float[Array, "M"] = np.float32(0)
    top_k: Int[Array, "M"] = 0
    top_p: Float[Array, "M"] = np.float32(1)
    budget: Int[Array, "M"] = 0


@pytree
class Threads:
    """The thread table, in parts by who writes them.

    Attributes:
        status: EMPTY, OPENED (its message is still being written), READY, WAITING, FINISHED or DECIDING (its event or its
            end awaits a decision, see `apr_jax.decode.races`).
        stop: a `Stop`; of a thread that has closed and not finished, why it will end.
        event: what the last step brought it, see `apr_jax.decode.transitions`; 0 for nothing.
        samples: it samples when its inbox is empty; otherwise it only reports that it is drained.
        own: the state that the protocol keeps of each thread, a tree of arrays with a leading axis M.
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

    def where(self, mask: Bool[Array, "M"], **columns: Any) -> "Threads":
        """A copy in which the named columns, of whatever part, have new values for the masked threads (broadcast over them)."""
        parts: dict[str, dict[str, Any]] = {}
        for name, value in columns.items():
            part = _PART_OF[name]
            old = getattr(getattr(self, part), name) if part else getattr(self, name)
            parts.setdefault(part, {})[name] = jax.tree.map(lambda old, new: masked(mask, old, new), old, value)
        whole = {part: dataclasses.replace(getattr(self, part), **new) for part, new in parts.items() if part}
        return dataclasses.replace(self, **whole, **parts.get("", {}))


def _parts() -> dict[str, str]:
    """The part of the thread table that each column stands in; "" for those that stand in none."""
    found = {}
    for field in dataclasses.fields(Threads):
        columns = dataclasses.fields(field.type) if dataclasses.is_dataclass(field.type) else ()
        found |= {column.name: field.name for column in columns} or {field.name: ""}
    return found


_PART_OF = _parts()


def empty(count: int, own: Any, signals: int = 0) -> Threads:
    """A table without threads; `own`: the protocol's state of a new one; `signals`: how many the protocol reads."""

    def column(value):
        whole = isinstance(value, int) and not isinstance(value, bool)
        value = jnp.asarray(value, jnp.int32 if whole else None)
        return jnp.broadcast_to(value, (count, *value.shape))

    drawn = LastDrawn(signals=np.zeros(signals, np.float32))
    return jax.tree.map(column, Threads(own=own, drawn=drawn))
