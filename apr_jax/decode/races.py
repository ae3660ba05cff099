"""Decisions by clock: what one thread of a race may do to another, whenever the scheduler ran which.

A race is children of one fork, with their descendants, if something that one of them does may end another:

    ends     as soon as enough of them have ended the others are killed, or nobody waits for them any more
    budget   the members may sample so many tokens together; when they have, those that run are ended where they stand
    events   of the protocol that touch other members (kill one, say)

In the outermost race or live group that a thread stands in, its *scope*, a row of clock c runs only when no thread of the scope
still has a row below c to feed. So when a decision falls due at clock c, and everybody of the scope is past c, everything up to c
has happened and nothing beyond: it is taken then. Of several the least clock is first, then the outer race, then the child that was
opened first; the budget of a race comes after the decisions of its members.

A thread whose end or event awaits a decision is DECIDING; its clock is that of the row that sampled the event. A protocol that uses
any of this says `races = True`. Everything is written for one problem. Axes: M threads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines, schedule
from apr_jax.decode.book import Book
from apr_jax.decode.threads import DECIDING, NOBODY, READY, collect
from apr_jax.record import Stop

# What is decided; 0 is nothing.
END, BUDGET, EVENT = range(1, 4)
_MOST = jnp.iinfo(jnp.int32).max


def start(
    book: Book,
    members: Bool[Array, "M"],
    *,
    enough: Int[Array, ""] | int = 0,
    kills: Bool[Array, ""] | bool = True,
    budget: Int[Array, ""] | int = 0,
) -> Book:
    """Make a race of children that were forked just now, none of whom is in another.

    Args:
        enough: so many ends decide it, or fewer if the protocol's `suffices` says so; 0: ends do not.
        kills: the others are killed then; otherwise they run on, and a parent that has waited since the fork does so no longer.
        budget: tokens that they and all below them may sample together, settled at whole clocks; 0 is any number.
    """
    pace, first = book.threads.pace, jnp.argmax(books.eldest(book, members)).astype(jnp.int32)
    book = book.update(members, race=first, scope=jnp.where(pace.scope == NOBODY, first, pace.scope))
    return book.update(first, enough=enough, kills=kills, shared_budget=budget)


def defer(book: Book, who: Bool[Array, "M"] | Int[Array, ""]) -> Book:
    """Let an event of a thread wait, or those of many: the protocol's `decided` is called when each may be acted on.

    That may touch the other members of its race and what is below them, the problem's shared state, and nobody else.
    """
    return book.update(who, status=DECIDING)


def flushing(book: Book) -> Bool[Array, "M"]:
    """Threads whose end is decided, and who only feed their last token."""
    return (book.threads.status == READY) & (book.threads.stop != Stop.RUNNING)


def rivals(book: Book, thread: Int[Array, ""]) -> Bool[Array, "M"]:
    """The other members of the race of `thread` that have not ended."""
    race = book.threads.pace.race
    others = (race == race[thread]) & (race != NOBODY) & (books.numbers(book) != thread)
    return others & books.unfinished(book)


def due(book: Book) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """What is to be decided now, once all events are handled: END, BUDGET, EVENT or 0, and the thread concerned.

    That is the thread whose end or event waited, or the first thread of the race whose budget is used up.
    """
    threads, number = book.threads, books.numbers(book)
    least = schedule.least_clock(threads, (threads.status == READY) & (schedule.waiting(threads) > 0))
    exhausted, latest = _exhausted(book)
    # Twice all threads: their own events, then the budgets of the races that they are the first of.
    clock = jnp.concatenate([threads.cursor.clock, latest])
    left = jnp.concatenate([threads.status == DECIDING, exhausted]) & ~(jnp.tile(least, 2) < clock)
    any_left = jnp.any(left) & book.active & (book.stop == Stop.RUNNING)
    eldest = jnp.concatenate([threads.line.ordinal, jnp.full_like(number, _MOST)])
    keys = (clock, jnp.tile(threads.line.nesting, 2), eldest, *(jnp.tile(word, 2) for word in threads.line.key.T))
    for key in keys:
        left = left & (key == jnp.min(jnp.where(left, key, key.dtype.type(jnp.iinfo(key.dtype).max))))
    place = jnp.argmax(left).astype(jnp.int32)
    thread = place % number.shape[0]
    kind = jnp.where(threads.stop[thread] != Stop.RUNNING, END, EVENT)
    return jnp.where(any_left, jnp.where(place >= number.shape[0], BUDGET, kind), 0), thread


def _exhausted(book: Book) -> tuple[Bool[Array, "M"], Int[Array, "M"]]:
    """For the first thread of every race: whether its budget is used up, and the last clock at which it was drawn upon.

    Clocks of threads may be later than that: of one that waited for others before it ended, say.
    """
    threads, parent, race = book.threads, book.threads.line.parent, book.threads.pace.race
    own = jnp.where(threads.stop == Stop.CONTINUED, 0, threads.cursor.generated)  # the next of the line counts on

    def climb(_, below):
        sampled, latest = below
        latest = jnp.maximum(latest, collect(parent, latest, "max"))
        return own + collect(parent, sampled, "add"), latest

    sampled, latest = jax.lax.fori_loop(0, jnp.max(threads.line.nesting), climb, (own, threads.drawn.drawn_at))
    going = collect(race, books.unfinished(book).astype(jnp.int32), "max") > 0
    budget = threads.pace.shared_budget
    return (budget > 0) & going & (collect(race, sampled, "add") >= budget), collect(race, latest, "max")


def arrive(book: Book, thread: Int[Array, ""], suffices: Callable) -> Book:
    """The end of a thread is decided: it is one of those that decide the race, or comes too late for that.

    Args:
        suffices: of the protocol.
    """
    race = book.threads.pace.race[thread]
    left = book.threads.pace.enough[race]
    over = (left == 1) | ((left > 1) & suffices(book, thread))
    book = book.update(race, enough=jnp.where(over, 0, jnp.maximum(left - 1, 0)))
    others = rivals(book, thread) & ~flushing(book)
    killed = lines.kill(book.update(race, shared_budget=0), others)
    # A parent that waits since the fork waits no longer; one that came to wait later may not have come to it yet.
    since_fork = books.lines_of(book, others & ~book.threads.bond.beside)
    let_go = book.update(since_fork, awaited=False, beside=True)
    decided = books.choose(book.threads.pace.kills[race], killed, let_go)
    return ends.leave(books.choose(over, decided, book), thread, book.threads.stop[thread])


def exhaust(book: Book, first: Int[Array, ""]) -> Book:
    """The members of a race have used their budget up: they are ended where they stand, or killed if ends were to kill them.

    What is below them is killed. A member that had ended, and only feeds its last token, is let be. Who waits for those that are
    ended waits for all members.
    """
    threads, clock = book.threads, _exhausted(book)[1][first]
    members = books.last_of_lines(book, threads.pace.race == first)
    longest = jnp.max(jnp.where(members, threads.cursor.critical_path, 0))
    running = members & books.unfinished(book) & ~flushing(book)
    killed = running & (threads.pace.enough[first] > 0) & threads.pace.kills[first]
    cut = running & ~killed
    below = lines.with_descendants(book, cut) & ~cut
    book = lines.kill(book.update(first, enough=0, shared_budget=0), below | killed)
    later = jnp.maximum(book.threads.cursor.clock, clock)
    book = book.update(cut | killed, left=0, handed=False, clock=later, critical_path=longest)
    return ends.leave(book, cut, jnp.int32(Stop.SHARED))


def event(book: Book, thread: Int[Array, ""], decided: Callable) -> Book:
    """Let the protocol act on an event that has waited; the thread goes on unless it is ended."""
    return decided(book.update(thread, status=READY), thread)
