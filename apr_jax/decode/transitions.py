"""What may happen to threads between steps: one table, in order of precedence, and the loop that applies it.

A step notes an event with the thread that it concerns (`threads.event`: the place of a transition in the table, from 1 on).
Whatever else may happen follows from the threads themselves: a join when nobody is waited for any more, decisions by clock.
Axes: P problems, M threads, K transitions.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import lines, races, schedule
from apr_jax.decode.book import READY, WAITING, Book
from apr_jax.decode.protocol import Protocol
from apr_jax.record import Stop

DRAINED, NOT_FINITE, BUDGET = "drained", "not finite", "budget"


@dataclasses.dataclass(frozen=True)
class Transition:
    """One thing that may happen to a thread.

    Attributes:
        name: what it is called.
        ready: whom it concerns now; from the books of all problems.
        apply: what it does; for one problem and one thread.
    """

    name: str
    ready: Callable[[Book], Bool[Array, "P M"]]
    apply: Callable[[Book, Int[Array, ""]], Book]


def transitions(protocol: Protocol) -> tuple[Transition, ...]:
    """All that may happen, in order of precedence.

    What was sampled comes first, then the joins that follow from it, then what is to be decided by clock. The events of one
    step commute.
    """
    by_step = {
        **{f"event {number}": handler for number, handler in enumerate(protocol.handlers, start=1)},
        DRAINED: lambda book, thread: lines.drain(book, thread, protocol.drained),
        NOT_FINITE: _break,
        BUDGET: lambda book, thread: books.close(book, thread, jnp.int32(Stop.LENGTH)),
    }
    noted = tuple(
        Transition(name, lambda held, number=number: held.threads.event == number, apply)
        for number, (name, apply) in enumerate(by_step.items(), start=1)
    )
    join = Transition("join", _joinable, lambda book, thread: lines.resume(protocol.joined(book, thread), thread))
    decisions = {
        races.WIN: ("first to end", races.win),
        races.EXHAUST: ("shared budget", races.exhaust),
        races.EVENT: ("deferred event", lambda book, thread: races.event(book, thread, protocol.decided)),
    }
    by_clock = (
        Transition(name, lambda held, kind=kind: _due(held, kind), apply) for kind, (name, apply) in decisions.items()
    )
    return (*noted, join, *(by_clock if protocol.needs.races else ()))


def event(protocol: Protocol, name: str) -> int:
    """The number by which a step notes an event."""
    return 1 + [transition.name for transition in transitions(protocol)].index(name)


def _break(book: Book, thread: Int[Array, ""]) -> Book:
    """The problem ends: what the other threads still do would be an answer of a model that is not sound."""
    return books.finish(book, thread, jnp.int32(Stop.NOT_FINITE)).halt(jnp.bool(True), Stop.NOT_FINITE)


def _joinable(held: Book) -> Bool[Array, "P M"]:
    live = held.active & (held.stop == Stop.RUNNING)
    return (held.threads.status == WAITING) & (held.threads.wait.pending == 0) & live[:, None]


def _due(held: Book, kind: int) -> Bool[Array, "P M"]:
    found, thread = jax.vmap(races.due)(held)
    return (found == kind)[:, None] & (jnp.arange(held.threads.status.shape[1])[None, :] == thread[:, None])


def decides(protocol: Protocol, held: Book) -> Bool[Array, ""]:
    """Something is to be decided by clock, which steps do not note."""
    return jnp.any(jax.vmap(races.due)(held)[0] > 0) if protocol.needs.races else jnp.bool(False)


def settle(protocol: Protocol, held: Book) -> Book:
    """Apply transitions, one a problem at a time, until none is ready. Never touches the pool."""
    table = transitions(protocol)
    budget, together = event(protocol, BUDGET), protocol.needs.together
    number = jnp.arange(held.threads.status.shape[1])[None, :]

    def first(held: Book) -> tuple[Int[Array, "P"], Int[Array, "P"]]:
        """Of each problem the first transition that is ready, its place from 1 on or 0, and the thread that it concerns."""
        ready = jnp.stack([transition.ready(held) for transition in table], axis=1)  # [P, K, M]
        place = jnp.argmax(ready.reshape(ready.shape[0], -1), axis=1).astype(jnp.int32)
        return jnp.where(jnp.any(ready, axis=(1, 2)), 1 + place // ready.shape[2], 0), place % ready.shape[2]

    def once(carry):
        held, kind, thread = carry
        noted = (number == thread[:, None]) & (kind > 0)[:, None]
        held = held.replace(threads=dataclasses.replace(held.threads, event=jnp.where(noted, 0, held.threads.event)))
        for place, transition in enumerate(table, start=1):
            held = _apply(transition.apply, kind == place, held, thread)
        if together:
            held = held.halt(schedule.crowded(held.threads, together), Stop.LANES_FULL)
        last = jax.vmap(lines.heir)(held, thread)
        spent = (kind > 0) & (kind != budget) & _spent(held, last)
        events = jnp.where(spent[:, None] & (number == last[:, None]), budget, held.threads.event)
        held = held.replace(threads=dataclasses.replace(held.threads, event=events))
        held = jax.vmap(lines.free_runs)(held)
        return held, *first(held)

    return jax.lax.while_loop(lambda carry: jnp.any(carry[1] > 0), once, (held, *first(held)))[0]


def _spent(held: Book, thread: Int[Array, "P"]) -> Bool[Array, "P"]:
    """Whether the thread of each problem could sample, had it not used up its budget."""
    row = jax.tree.map(lambda column: column[jnp.arange(thread.shape[0]), thread], held.threads)
    runs = (held.stop == Stop.RUNNING) & (row.status == READY) & row.samples
    return runs & (row.cursor.generated >= row.sampling.budget)


def _apply(apply: Callable, mask: Bool[Array, "P"], held: Book, thread: Int[Array, "P"]) -> Book:
    """Apply a transition to the masked problems; costs nothing where there are none."""

    def run(held):
        new = jax.vmap(apply)(held, thread)
        return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, held)

    return jax.lax.cond(jnp.any(mask), run, lambda held: held, held)
