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


@pytree
class Lineage:
    """Where a thread comes from. Written at its birth, but `opened`, and `parent` where the parent continues as another thread.

    Attributes:
        parent: thread number, NOBODY for the root.
        ordinal: its place among all children that its parent ever opened.
        segment: how many threads of its line came before it.
        nesting: forks above it.
        opened: children it ever opened.
        split_at: of a thread that was split off: where it begins in its parent's log.
        key, draw_key: UInt32 [M, 2], of its path and of its draws.
    """

    parent: Int[Array, "M"] = NOBODY
    ordinal: Int[Array, "M"] = 0
    segment: Int[Array, "M"] = 0
    nesting: Int[Array, "M"] = 0
    opened: Int[Array, "M"] = 0
    split_at: Int[Array, "M"] = 0
    key: UInt32[Array, "M 2"] = dataclasses.field(default_factory=lambda: np.zeros(2, np.uint32))
    draw_key: UInt32[Array, "M 2"] = dataclasses.field(default_factory=lambda: np.zeros(2, np.uint32))


@pytree
class Wait:
    """What a thread waits for. Written by forks, joins and the ends of children.

    Attributes:
        fork: ordinal of the first child of the fork that is open or waited for.
        pending: children waited for that have not ended.
        first_wins: the first child to end is the only one: the others are killed.
        shared_budget: tokens that the children may sample together, with all below them; 0 is any number.
    """

    fork: Int[Array, "M"] = 0
    pending: Int[Array, "M"] = 0
    first_wins: Bool[Array, "M"] = False
    shared_budget: Int[Array, "M"] = 0


@pytree
class Bond:
    """How a thread is bound to others. Written by forks and joins.

    Attributes:
        group: number of the parent whose live children it and its siblings are, NOBODY if it is not live.
        scope: number of the parent of the outermost group, live or racing, that it stands in; NOBODY if there is none.
        stitched: its parent will see it: its last token is fed at its end, and its slots are held until the join.
        released: no join will read it any more; its slots are freed when no unreleased thread can see it.
    """

    group: Int[Array, "M"] = NOBODY
    scope: Int[Array, "M"] = NOBODY
    stitched: Bool[Array, "M"] = False
    released: Bool[Array, "M"] = False


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
    """The token that a thread sampled last. Written by every step in which it samples.

    Attributes:
        token: its id.
        entry: its log entry.
        unfed: it has not been fed.
    """

    token: Int[Array, "M"] = 0
    entry: Int[Array, "M"] = 0
    unfed: Bool[Array, "M"] = False


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
        stop: a `Stop`.
        event: what the last step brought it, see `apr_jax.decode.transitions`; 0 for nothing.
        samples: it samples when its inbox is empty; otherwise it only reports that it is drained.
        own: the state that the protocol keeps of each thread, a tree of arrays with a leading axis M.
    """

    status: Int[Array, "M"] = EMPTY
    stop: Int[Array, "M"] = int(Stop.RUNNING)
    event: Int[Array, "M"] = 0
    samples: Bool[Array, "M"] = False
    line: Lineage = dataclasses.field(default_factory=Lineage)
    wait: Wait = dataclasses.field(default_factory=Wait)
    bond: Bond = dataclasses.field(default_factory=Bond)
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


def empty(count: int, own: Any) -> Threads:
    """A table without threads; `own`: the protocol's state of a new one."""

    def column(value):
        whole = isinstance(value, int) and not isinstance(value, bool)
        value = jnp.asarray(value, jnp.int32 if whole else None)
        return jnp.broadcast_to(value, (count, *value.shape))

    return jax.tree.map(column, Threads(own=own))
