"""How threads end, many at once: from the event that says so to the moment when nothing more is heard of them.

    close     a line that has outstanding children waits for all of them first
    conclude  an end that decides a race waits for its clock (`apr_jax.decode.races`)
    leave     a thread that its parent will see feeds its last token
    finish    it has ended

Everything is written for one problem, from and to its book. `who` is a mask of threads [M], or the number of one; `stop` is one
reason, or one for each thread [M]. Axes: M threads.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode.book import Book
from apr_jax.decode.threads import DECIDING, FINISHED, NOBODY, OPENED, READY, WAITING
from apr_jax.record import Stop

Who = Bool[Array, "M"] | Int[Array, ""]
Reason = Int[Array, ""] | Int[Array, "M"]


def close(book: Book, who: Who, stop: Reason) -> Book:
    """End threads. Children that they opened and never started are dropped; others they wait for."""
    mask, parent = book.mask(who), book.threads.line.parent
    mine = (parent != NOBODY) & mask[jnp.maximum(parent, 0)]
    unstarted = mine & (book.threads.status == OPENED)
    book = book.update(unstarted, status=FINISHED, stop=int(Stop.DROPPED), released=True)
    if not book.protocol.needs.beside:
        return conclude(book, mask, stop)
    left = mine & books.is_outstanding(book)
    waits = mask & (books.by_parent(book, left.astype(jnp.int32)) > 0)
    book = book.update(left, awaited=True).update(waits, status=WAITING, stop=stop)
    return conclude(book, mask & ~waits, stop)


def conclude(book: Book, who: Who, stop: Reason) -> Book:
    """End threads that wait for nobody; if ends decide the race that one of them is in, when that is decided."""
    mask, race = book.mask(who), book.threads.pace.race
    if not book.protocol.needs.races:
        return leave(book, mask, stop)
    contests = mask & (race != NOBODY) & (book.threads.pace.enough[jnp.maximum(race, 0)] > 0)
    return leave(book.update(contests, status=DECIDING, stop=stop), mask & ~contests, stop)


def leave(book: Book, who: Who, stop: Reason) -> Book:
    """End threads whose end is decided; those that are to be seen when their last token is fed (they are drained then)."""
    mask = book.mask(who)
    flush = mask & book.threads.bond.flushes & book.threads.drawn.unfed
    flushing = book.update(flush, status=READY, samples=False, stop=stop, left=0)
    return finish(flushing, mask & ~flush, stop)


def finish(book: Book, who: Who, stop: Reason) -> Book:
    """End threads at once. A held one keeps an unfed token, which may be handed on. The root's end is the problem's."""
    mask, threads = book.mask(who), book.threads
    book = book.update(
        mask,
        status=FINISHED,
        stop=stop,
        released=~threads.bond.held,
        unfed=threads.drawn.unfed & threads.bond.held,
        handed=False,
        left=0,
    )
    root = mask & (threads.line.parent == NOBODY)
    ended = jnp.max(jnp.where(root, stop, 0))
    return book.replace(stop=jnp.where(jnp.any(root) & (book.stop == Stop.RUNNING), ended, book.stop))


def release(book: Book, who: Who) -> Book:
    """Say that nobody will go on from these lines any more: their slots are freed when no unreleased thread can see them."""
    return book.update(who, released=True)
