"""The transitions of threads between steps: one table, in order of precedence, and the loop that applies it.

A step notes events in the column `threads.event`: the place of a transition in the table, from 1 on. All other transitions follow
from the thread table itself: a join when all awaited lines have ended, and decisions by clock.
Axes: P problems, M threads, K transitions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines, races, replies, schedule
from apr_jax.decode.book import ASKING, READY, WAITING, Book
from apr_jax.decode.protocol import ForAll, Protocol
from apr_jax.record import Stop

DRAINED, NOT_FINITE, SPENT = "drained", "not finite", "budget"


@dataclasses.dataclass(frozen=True)
class Transition:
    """A change that may happen to a thread between steps.

    Attributes:
        name: unique name in the table.
        ready: maps the books of all problems to the threads for which the transition is ready.
        apply: maps the book of one problem and one ready thread, or for a `ForAll` the mask of all ready threads, to the new
            book.
    """

    name: str
    ready: Callable[[Book], Bool[Array, "P M"]]
    apply: Callable[[Book, Int[Array, ""]], Book] | ForAll


def transitions(protocol: Protocol) -> tuple[Transition, ...]:
    """All transitions in order of precedence: events of the last step, replies of the host, joins, decisions by clock.

    The events of one step commute.
    """
    by_step = {
        **{f"event {number}": handler for number, handler in enumerate(protocol.handlers, start=1)},
        DRAINED: protocol.drained,
        NOT_FINITE: ForAll(_break),
        SPENT: ForAll(protocol.spent),
    }
    drained = 1 + list(by_step).index(DRAINED)
    closed = lambda held: (held.threads.event == drained) & (held.threads.stop != Stop.RUNNING)
    flushed = Transition("flushed", closed, ForAll(lambda book, mask: ends.finish(book, mask, book.threads.stop)))

    def has(number: int) -> Callable:
        return lambda held: (held.threads.event == number) & ~((number == drained) & closed(held))

    noted = tuple(Transition(name, has(number), apply) for number, (name, apply) in enumerate(by_step.items(), start=1))
    joins = (
        Transition("join", lambda held: _joinable(held, False), lambda book, at: lines.join(book, at, protocol.joined)),
        Transition("end", lambda held: _joinable(held, True), lines.end),
    )
    decisions = {
        races.END: ("decisive end", lambda book, thread: races.arrive(book, thread, protocol.suffices)),
        races.BUDGET: ("shared budget", races.exhaust),
        races.EVENT: ("deferred event", lambda book, thread: races.event(book, thread, protocol.decided)),
    }
    by_clock = (
        Transition(name, lambda held, kind=kind: _due(held, kind), apply) for kind, (name, apply) in decisions.items()
    )
    replied = Transition("replied", _replied, lambda book, at: protocol.replied(replies.take(book, at), at))
    needs = protocol.needs
    asking = (replied,) if needs.asks else ()
    return (*noted, flushed, *asking, *joins[: 1 + needs.beside], *(by_clock if needs.races else ()))


def event(protocol: Protocol, name: str) -> int:
    """The number with which a step notes the event `name`."""
    return 1 + [transition.name for transition in transitions(protocol)].index(name)


def _break(book: Book, mask: Bool[Array, "M"]) -> Book:
    """End the problem: a model that gives NaN or infinity for one thread is not sound for the others."""
    return ends.finish(book, mask, jnp.int32(Stop.NOT_FINITE)).halt(jnp.bool(True), Stop.NOT_FINITE)


def _joinable(held: Book, closed: bool) -> Bool[Array, "P M"]:
    """Waiting threads whose awaited lines have all ended; `closed`: those that then end, otherwise those that then join."""
    live = held.active & (held.stop == Stop.RUNNING)
    waits = (held.threads.status == WAITING) & ((held.threads.stop != Stop.RUNNING) == closed) & live[:, None]
    running = jax.vmap(
        lambda book: books.by_parent(book, (book.threads.bond.awaited & books.unfinished(book)).astype(jnp.int32))
    )
    return waits & (running(held) == 0)


def _replied(held: Book) -> Bool[Array, "P M"]:
    """Asking threads that have got their replies."""
    live = held.active & (held.stop == Stop.RUNNING)
    return (held.threads.status == ASKING) & held.threads.reply.given & live[:, None]


def _due(held: Book, kind: int) -> Bool[Array, "P M"]:
    found, thread = jax.vmap(races.due)(held)
    return (found == kind)[:, None] & (jnp.arange(held.threads.status.shape[1])[None, :] == thread[:, None])


def decides(protocol: Protocol, held: Book) -> Bool[Array, ""]:
    """Whether a decision by clock is due; steps do not note decisions as events."""
    return jnp.any(jax.vmap(races.due)(held)[0] > 0) if protocol.needs.races else jnp.bool(False)


def settle(protocol: Protocol, held: Book) -> Book:
    """Apply transitions, one per problem at a time, until none is ready. Never touches the pool."""
    table = transitions(protocol)
    spent_event, together = event(protocol, SPENT), protocol.needs.together
    number = jnp.arange(held.threads.status.shape[1])[None, :]
    whole = [place for place, transition in enumerate(table, start=1) if isinstance(transition.apply, ForAll)]
    by_all = lambda kind: jnp.any(kind[:, None] == jnp.array(whole)[None, :], axis=1)

    def first(held: Book) -> tuple[Int[Array, "P"], Bool[Array, "P M"]]:
        """For each problem, the place (from 1 on, 0 for none) of the first ready transition, and the threads to apply it to."""
        ready = jnp.stack([transition.ready(held) for transition in table], axis=1)  # [P, K, M]
        place = jnp.argmax(ready.reshape(ready.shape[0], -1), axis=1).astype(jnp.int32)
        kind = jnp.where(jnp.any(ready, axis=(1, 2)), 1 + place // ready.shape[2], 0)
        mine = jnp.arange(1, 1 + len(table))[None, :] == kind[:, None]
        alone = number == (place % ready.shape[2])[:, None]
        return kind, jnp.any(ready & mine[:, :, None], axis=1) & (alone | by_all(kind)[:, None])

    def once(carry):
        held, kind, mask = carry
        thread = jnp.argmax(mask, axis=1).astype(jnp.int32)
        noted = mask & (kind > 0)[:, None]
        held = held.replace(threads=dataclasses.replace(held.threads, event=jnp.where(noted, 0, held.threads.event)))
        for place, transition in enumerate(table, start=1):
            held = _apply(transition.apply, kind == place, held, thread, mask)
        if together:
            held = held.halt(schedule.crowded(held.threads, together), Stop.LANES_FULL)
        last = jax.vmap(lines.successor)(held, thread)
        spent = (kind > 0) & ~by_all(kind) & _spent(held, last)
        events = jnp.where(spent[:, None] & (number == last[:, None]), spent_event, held.threads.event)
        held = held.replace(threads=dataclasses.replace(held.threads, event=events))
        held = jax.vmap(lines.free_pages)(held)
        return held, *first(held)

    return jax.lax.while_loop(lambda carry: jnp.any(carry[1] > 0), once, (held, *first(held)))[0]


def _spent(held: Book, thread: Int[Array, "P"]) -> Bool[Array, "P"]:
    """Whether the given thread of each problem would sample but has used up its budget."""
    row = jax.tree.map(lambda column: column[jnp.arange(thread.shape[0]), thread], held.threads)
    runs = (held.stop == Stop.RUNNING) & (row.status == READY) & row.samples
    return runs & (row.cursor.generated >= row.sampling.budget)


def _apply(
    apply: Callable | ForAll, chosen: Bool[Array, "P"], held: Book, thread: Int[Array, "P"], mask: Bool[Array, "P M"]
) -> Book:
    """Apply a transition to the chosen problems; skipped if no problem is chosen."""
    whom = mask if isinstance(apply, ForAll) else thread

    def run(held):
        new = jax.vmap(apply)(held, whom)
        return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, held)

    return jax.lax.cond(jnp.any(chosen), run, lambda held: held, held)
