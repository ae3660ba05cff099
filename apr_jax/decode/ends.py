"""The four stages in which threads end, many at once.

    close     a line that has outstanding children waits for all of them first
    conclude  an end that decides a race waits for the decision (`apr_jax.decode.races`)
    leave     a thread that its parent will see feeds its last token
    finish    the thread has ended

All functions map the book of one problem to its new book. `who` is a mask of threads [M] or one thread number []; `stop` is a
`Stop` for all of them [] or for each thread [M]. Axes: M threads.
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
    """End threads. Their opened children that never started are dropped; the threads wait for all other children."""
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
    """End threads that wait for nobody. A thread in a race that ends decide becomes DECIDING instead."""
    mask, race = book.mask(who), book.threads.pace.race
    if not book.protocol.needs.races:
        return leave(book, mask, stop)
    contests = mask & (race != NOBODY) & (book.threads.pace.enough[jnp.maximum(race, 0)] > 0)
    return leave(book.update(contests, status=DECIDING, stop=stop), mask & ~contests, stop)


def leave(book: Book, who: Who, stop: Reason) -> Book:
    """End threads whose end is decided. Threads with `flushes` feed their last token first, and end when they are drained."""
    mask = book.mask(who)
    flush = mask & book.threads.bond.flushes & book.threads.drawn.unfed
    flushing = book.update(flush, status=READY, samples=False, stop=stop, left=0)
    return finish(flushing, mask & ~flush, stop)


def finish(book: Book, who: Who, stop: Reason) -> Book:
    """End threads at once. A held thread keeps its unfed token, which may be handed on. The end of the root ends the problem."""
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
    """Declare that nobody will continue from these lines: their slots are freed when no unreleased thread can see them."""
    return book.update(who, released=True)
