"""Decisions by clock: what one thread of a group may do to another, whenever the scheduler ran which.

A group is the children of one fork with all their descendants, if something that one of them does may end another:

    first    the parent waits for the first child to end; the others are killed
    shared   the children may sample so many tokens together; when they have, those that run are ended where they stand
    decided  an event of the protocol that touches siblings (kills one, say)

In the outermost group that a thread stands in, its *scope*, a row of clock c runs only when no thread of the scope still has a row
below c to feed. So when a decision falls due at clock c, and everybody of the scope is past c, everything up to c has happened and
nothing beyond: it is taken then. Of several the least clock is first, then the outer group, then the child that was opened first;
the budget of a group comes after the decisions of its members.

A thread whose end or event awaits a decision is DECIDING; its clock is that of the row that sampled the event. A protocol that uses
any of this says `races = True`. Everything is written for one problem. Axes: M threads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from apr_jax.decode import book as books
from apr_jax.decode import lines
from apr_jax.decode.book import DECIDING, FINISHED, NOBODY, READY, WAITING, Book
from apr_jax.record import Stop

# What is decided; 0 is nothing.
WIN, EXHAUST, EVENT = range(1, 4)


def start(book: Book, parent: Int[Array, ""], first: bool = False, shared: Int[Array, ""] | int = 0) -> Book:
    """Make a group of the children that `parent` has just committed.

    Args:
        first: the first of them to end is the only one: the others are killed.
        shared: tokens that they and all below them may sample together, settled at whole clocks; 0 is any number.
    """
    scope = books.outermost(book, parent)
    born = books.children(book, parent) & lines.unfinished(book)
    return book.update(born, scope=scope).update(parent, first_wins=first, shared_budget=shared)


def defer(book: Book, thread: Int[Array, ""]) -> Book:
    """Let an event of `thread` wait: the protocol's `decided` is called when it may be acted on.

    That may touch the thread's siblings and what is below them, nobody else.
    """
    return book.update(thread, status=DECIDING)


def due(book: Book) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """What is to be decided now, once all events are handled: WIN, EXHAUST, EVENT or 0, and the thread concerned.

    That is the thread whose event waited, or the parent whose children have used their budget up.
    """
    threads, number = book.threads, books.numbers(book)
    sampled, latest = _below(book)
    exhausted = (threads.status == WAITING) & (threads.wait.shared_budget > 0) & (sampled >= threads.wait.shared_budget)
    clock = jnp.concatenate([threads.cursor.clock, latest])
    parent = jnp.concatenate([threads.line.parent, number])
    scope = jnp.concatenate([threads.bond.scope, jnp.where(threads.bond.scope == NOBODY, number, threads.bond.scope)])
    eldest = jnp.concatenate([threads.line.ordinal, jnp.full_like(number, jnp.iinfo(jnp.int32).max)])

    runs = (threads.status == READY) & (threads.inbox.left + threads.drawn.unfed > 0)
    behind = (
        runs[None, :]
        & (threads.bond.scope[None, :] == scope[:, None])
        & (threads.cursor.clock[None, :] < clock[:, None])
    )
    held = jnp.any(behind, axis=1) & (scope != NOBODY)
    left = jnp.concatenate([threads.status == DECIDING, exhausted]) & ~held
    any_left = jnp.any(left) & book.active & (book.stop == Stop.RUNNING)
    for key in (clock, threads.line.nesting[jnp.maximum(parent, 0)], eldest):
        left = left & (key == jnp.min(jnp.where(left, key, jnp.iinfo(jnp.int32).max)))
    place = jnp.argmax(left).astype(jnp.int32)
    thread = place % number.shape[0]
    ends = threads.stop[thread] != Stop.RUNNING
    kind = jnp.where(place >= number.shape[0], EXHAUST, jnp.where(ends, WIN, EVENT))
    return jnp.where(any_left, kind, 0), thread


def _below(book: Book) -> tuple[Int[Array, "M"], Int[Array, "M"]]:
    """Of the fork that each thread has open or waits for: the tokens sampled in it and below, and the largest clock there."""
    threads = book.threads
    own = jnp.where(threads.stop == Stop.CONTINUED, 0, threads.cursor.generated)  # the next of the line counts on
    child = threads.line.parent[None, :] == books.numbers(book)[:, None]
    waited = child & (threads.line.ordinal[None, :] >= threads.wait.fork[:, None])

    def gather(children, sampled, latest):
        sampled = jnp.sum(jnp.where(children, (own + sampled)[None, :], 0), axis=1, dtype=jnp.int32)
        return sampled, jnp.max(jnp.where(children, jnp.maximum(threads.cursor.clock, latest)[None, :], 0), axis=1)

    nothing = jnp.zeros_like(own)
    below = jax.lax.fori_loop(0, jnp.max(threads.line.nesting), lambda _, b: gather(child, *b), (nothing, nothing))
    return gather(waited, *below)


def win(book: Book, thread: Int[Array, ""]) -> Book:
    """The first to end: its siblings are killed, and it ends."""
    threads = book.threads
    parent = threads.line.parent[thread]
    rivals = books.children(book, parent) & lines.unfinished(book) & (books.numbers(book) != thread)
    over = book.update(parent, first_wins=False, shared_budget=0).update(thread, status=READY)
    return books.leave(lines.kill(over, rivals), thread, threads.stop[thread])


def exhaust(book: Book, parent: Int[Array, ""]) -> Book:
    """The children of `parent` have used their budget up: they are ended where they stand, or killed if they raced to be first.

    What is below them is killed. A child that had ended, and only feeds its last token, is let be.
    """
    threads, number = book.threads, books.numbers(book)
    _, latest = _below(book)
    clock, mine = latest[parent], number == parent
    members = books.children(book, parent)
    longest = jnp.max(jnp.where(members, threads.cursor.critical_path, 0))
    killed = members & lines.unfinished(book) & threads.wait.first_wins[parent]
    cut = members & lines.unfinished(book) & (threads.stop == Stop.RUNNING) & ~killed
    below = lines.with_descendants(book, cut) & ~cut
    book = book.update(
        mine,
        first_wins=False,
        shared_budget=0,
        clock=jnp.maximum(threads.cursor.clock, clock),
        critical_path=jnp.maximum(threads.cursor.critical_path, longest),
    )
    book = lines.kill(book, below | killed)
    threads = book.threads
    flush = cut & threads.bond.stitched & threads.drawn.unfed
    threads = threads.where(
        cut, stop=int(Stop.SHARED), left=0, pending=0, clock=jnp.maximum(threads.cursor.clock, clock)
    )
    threads = threads.where(flush, status=READY, samples=False)
    ended = cut & ~flush
    threads = threads.where(ended, status=FINISHED, released=~threads.bond.stitched, unfed=False)
    threads = threads.where(mine, pending=threads.wait.pending - jnp.sum(ended))
    return book.replace(threads=threads)


def event(book: Book, thread: Int[Array, ""], decided: Callable) -> Book:
    """Let the protocol act on an event that has waited; the thread goes on unless it is ended."""
    return decided(book.update(thread, status=READY), thread)
