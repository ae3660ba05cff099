"""Races and their decisions by clock: the effects of one thread on another, independent of the schedule.

A race is a set of children of one fork, with their descendants, in which one thread may end another. Three things decide races:

    ends     when enough members have ended, the others are killed, or their parent stops waiting for them
    budget   the members share a number of tokens; when these are sampled, the running members are ended where they stand
    events   of the protocol, if they affect other members (kill one, for example)

The *scope* of a thread is its outermost race or live group. A row of clock c runs only when no thread of the scope still has a row
below c to feed. A decision that falls due at clock c is taken when all threads of the scope are past c: then all rows up to c have
run and none beyond. Decisions are taken in the order of clock, then nesting (outer race first), then order of opening; the budget
of a race is decided after the ends and events of its members.

A thread whose end or event awaits a decision is DECIDING; its clock is that of the row that sampled the event. A protocol with
races must declare `needs.races`. All functions are written for one problem. Axes: M threads.
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

# The kinds of decisions; 0 is none.
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
    """Make a race of newly forked children, none of which is in another race.

    Args:
        enough: number of ends that decide the race, or fewer if the protocol's `suffices` says so; 0: ends do not decide it.
        kills: the decision kills the other members; otherwise they run on, and a parent that has waited since the fork stops
            waiting for them.
        budget: tokens that the members and their descendants may sample together, counted at whole clocks; 0 means no limit.
    """
    pace, first = book.threads.pace, jnp.argmax(books.eldest(book, members)).astype(jnp.int32)
    book = book.update(members, race=first, scope=jnp.where(pace.scope == NOBODY, first, pace.scope))
    return book.update(first, enough=enough, kills=kills, shared_budget=budget)


def enter(book: Book, born: Bool[Array, "M"], race: Int[Array, ""]) -> Book:
    """Let newly forked children take part in a running race; to be called by a decision of it, whose clock they begin at.

    Args:
        race: the race of one of its members.
    """
    return book.update(born, race=race, scope=book.threads.pace.scope[race])


def defer(book: Book, who: Bool[Array, "M"] | Int[Array, ""]) -> Book:
    """Let an event of a thread wait, or those of many: the protocol's `decided` is called when each may be acted on.

    `decided` may change the other members of the thread's race, their descendants and the problem's shared state, nothing else.
    """
    return book.update(who, status=DECIDING)


def flushing(book: Book) -> Bool[Array, "M"]:
    """Threads whose end is decided and that still feed their last token."""
    return (book.threads.status == READY) & (book.threads.stop != Stop.RUNNING)


def rivals(book: Book, thread: Int[Array, ""]) -> Bool[Array, "M"]:
    """The other members of the race of `thread` that have not ended."""
    race = book.threads.pace.race
    others = (race == race[thread]) & (race != NOBODY) & (books.numbers(book) != thread)
    return others & books.unfinished(book)


def due(book: Book) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """The next decision that is due after all events are handled: its kind (END, BUDGET, EVENT or 0) and its thread.

    The thread is the one whose end or event waits, or the first thread of the race whose budget is used up.
    """
    threads, number = book.threads, books.numbers(book)
    least = schedule.least_clock(threads, (threads.status == READY) & (schedule.waiting(threads) > 0))
    exhausted, latest = _exhausted(book)
    # Two entries per thread, [2 M]: its own end or event, then the budget of the race whose first thread it is.
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
    """In the row of every race's first thread: whether the race's budget is used up, and the last clock that drew on the budget.

    A thread's own clock may be later, if it waited for others before it ended, for example.
    """
    threads, parent, race = book.threads, book.threads.line.parent, book.threads.pace.race
    # The next thread of a line inherits the count of a continued one.
    own = jnp.where(threads.stop == Stop.CONTINUED, 0, threads.cursor.generated)

    def climb(_, below):
        sampled, latest = below
        latest = jnp.maximum(latest, collect(parent, latest, "max"))
        return own + collect(parent, sampled, "add"), latest

    sampled, latest = jax.lax.fori_loop(0, jnp.max(threads.line.nesting), climb, (own, threads.drawn.drawn_at))
    going = collect(race, books.unfinished(book).astype(jnp.int32), "max") > 0
    budget = threads.pace.shared_budget
    return (budget > 0) & going & (collect(race, sampled, "add") >= budget), collect(race, latest, "max")


def arrive(book: Book, thread: Int[Array, ""], suffices: Callable) -> Book:
    """Take the decision on the end of a thread, which counts towards its race's `enough` unless the race is decided already.

    Args:
        suffices: the protocol's `suffices`.
    """
    race = book.threads.pace.race[thread]
    left = book.threads.pace.enough[race]
    over = (left == 1) | ((left > 1) & suffices(book, thread))
    book = book.update(race, enough=jnp.where(over, 0, jnp.maximum(left - 1, 0)))
    others = rivals(book, thread) & ~flushing(book)
    killed = lines.kill(book.update(race, shared_budget=0), others)
    # Only a parent that has waited since the fork stops waiting; whether a later wait has begun would depend on the schedule.
    since_fork = books.lines_of(book, others & ~book.threads.bond.beside)
    let_go = book.update(since_fork, awaited=False, beside=True)
    decided = books.choose(book.threads.pace.kills[race], killed, let_go)
    return ends.leave(books.choose(over, decided, book), thread, book.threads.stop[thread])


def exhaust(book: Book, first: Int[Array, ""]) -> Book:
    """End the running members of a race that has used up its budget; kill them instead if ends would have killed them.

    Descendants of the ended members are killed. Members that already feed their last token are left alone. The ended members get
    the race's last clock and longest critical path, so that a parent that waits for one of them waits for all.

    Args:
        first: the first thread of the race.
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
    """Let the protocol's `decided` handle a deferred event; the thread continues unless `decided` ends it."""
    return decided(book.update(thread, status=READY), thread)
