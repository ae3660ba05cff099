"""Lines of reasoning: a thread and those that continue it. They are joined, killed, go on as another thread, and leave slots.

Everything is written for one problem, from and to its book. Axes: M threads.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode.book import DECIDING, FINISHED, NOBODY, OPENED, READY, WAITING, Book, Threads
from apr_jax.record import Stop


def unfinished(book: Book) -> Bool[Array, "M"]:
    """Threads that were started and have not ended."""
    status = book.threads.status
    return (status == READY) | (status == WAITING) | (status == DECIDING)


def joined_row(book: Book, parent: Int[Array, ""], chosen: Bool[Array, "M"]) -> UInt32[Array, "words"]:
    """What `parent` sees with the chosen children's lines: them and what was stitched into them, but not their live siblings.

    What a line forgot stays forgotten, though a live sibling has seen it.
    """
    threads = book.threads
    live = books.family(book, parent) & (threads.bond.group == parent)
    sees = books.has(book.sees, books.numbers(book))  # [child, thread]
    same = threads.line.ordinal[:, None] == threads.line.ordinal[None, :]
    kept = jnp.any(chosen[:, None] & same & sees, axis=0)
    return book.sees[parent] | (books.union(book.sees, chosen) & ~books.bits(book, live & ~kept))


def stitch(book: Book, parent: Int[Array, ""], chosen: Bool[Array, "M"]) -> Book:
    """Let `parent` see the chosen children's lines; its positions go on from the furthest.

    It must not have written since they began: else it goes on as a new thread that sees their `joined_row`.
    """
    mine = books.numbers(book) == parent
    furthest = jnp.max(jnp.where(chosen | mine, book.threads.cursor.position, 0))
    sees = jnp.where(mine[:, None], joined_row(book, parent, chosen), book.sees)
    return book.update(mine, position=furthest).replace(sees=sees)


def drain(book: Book, thread: Int[Array, ""], drained: Callable) -> Book:
    """A thread that does not sample has fed all it had: it ends if it was closed, else the protocol says what is next."""
    stop = book.threads.stop[thread]
    return books.choose(stop != Stop.RUNNING, books.finish(book, thread, stop), drained(book, thread))


def resume(book: Book, parent: Int[Array, ""]) -> Book:
    """Let `parent` run again, later than everything its children wrote, and close the fork; nothing if it is finished.

    If `parent` went on as a new thread at this join, that one runs.
    """
    threads = book.threads
    waited = books.children(book, parent) & (threads.stop != Stop.DROPPED)
    last = heir(book, parent)
    is_last = (books.numbers(book) == last) & (threads.status != FINISHED)
    return book.replace(
        threads=threads.where(waited, released=True)
        .where(books.family(book, parent), group=NOBODY)  # its next live children are another group
        .where(
            is_last,
            status=jnp.where(threads.status == WAITING, READY, threads.status),  # its end may await a decision already
            fork=threads.line.opened[last],
            first_wins=False,
            shared_budget=0,
            clock=jnp.maximum(threads.cursor.clock[last], jnp.max(jnp.where(waited, threads.cursor.clock, 0))),
            critical_path=jnp.maximum(
                threads.cursor.critical_path[last], jnp.max(jnp.where(waited, threads.cursor.critical_path, 0))
            ),
        )
    )


def with_descendants(book: Book, chosen: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """The chosen threads and all below them."""
    number = books.numbers(book)
    above = jnp.where(book.threads.line.parent == NOBODY, number, book.threads.line.parent)
    for _ in range(number.shape[0].bit_length()):  # the ancestors 1, 2, 4 ... steps above
        chosen = chosen | chosen[above]
        above = above[above]
    return chosen


def kill(book: Book, chosen: Bool[Array, "M"]) -> Book:
    """Drop the chosen threads with all their descendants. What none but them sees gives its slots back.

    Their parents no longer wait for them, and will be later than all they wrote; their counts are forgotten. The root's death
    is the problem's. A thread that still runs may be killed by a decision only (`apr_jax.decode.races`): how far it had come
    would depend on the schedule otherwise.
    """
    threads, number = book.threads, books.numbers(book)
    doomed = with_descendants(book, chosen)
    running = doomed & unfinished(book)
    by_parent = threads.line.parent[None, :] == number[:, None]  # [parent, child]
    lost = jnp.sum(by_parent & running[None, :], axis=1)
    latest = jnp.max(jnp.where(doomed, threads.cursor.clock, 0))
    bereft = jnp.any(by_parent & (chosen & running)[None, :], axis=1) & ~doomed
    root = jnp.any(running & (threads.line.parent == NOBODY))
    threads = threads.where(bereft, clock=jnp.maximum(threads.cursor.clock, latest))
    threads = threads.where(lost > 0, pending=threads.wait.pending - lost)
    threads = threads.where(doomed & (threads.status == OPENED), status=FINISHED, stop=int(Stop.DROPPED))
    threads = threads.where(running, status=FINISHED, stop=int(Stop.KILLED), unfed=False, left=0)
    return book.replace(threads=threads.where(doomed, released=True)).halt(root, Stop.KILLED)


def hand_on(threads: Threads, old: Threads, new: Bool[Array, "M"]) -> Threads:
    """The table in which the `new` thread has what the `old` one, a row of scalars, hands on to the next of its line.

    The new one begins with an empty log, inbox and pool, and later than all that the old one did.
    """
    put = lambda columns, values: jax.tree.map(
        lambda c, v: jnp.where(new.reshape(-1, *(1,) * v.ndim), v, c), columns, values
    )
    names = ("status", "samples", "line", "wait", "bond", "sampling", "own")
    threads = dataclasses.replace(threads, **{name: put(getattr(threads, name), getattr(old, name)) for name in names})
    at = old.cursor
    return threads.where(
        new, clock=at.clock, critical_path=at.critical_path, generated=at.generated, split_at=0, released=False
    )


def proceed(book: Book, thread: Int[Array, ""], row: UInt32[Array, "words"], position: Int[Array, ""]) -> Book:
    """Let the line of `thread` go on as a new thread of the same line, which waits for its message.

    It has the line's path, draws, budget, count, clock, and place in forks and groups. Its message must hold at least one token;
    a token of the old thread that was sampled and not fed will not be. A full thread table ends the problem.

    Args:
        thread: a thread that is ready, or waits for children that are all finished (in `joined`).
        row: what the new thread sees beside itself and its live siblings: threads that the old one saw, the old one, lines
            that it has waited for. The old thread's slots are freed when nobody sees them.
        position: of the first token of the new thread.
    """
    number, old = books.numbers(book), book.thread(thread)
    full = book.used >= number.shape[0]
    mine, new = number == thread, (number == book.used) & ~full
    threads = hand_on(book.threads, old, new).where(new, segment=old.line.segment + 1, position=position)
    # An open fork goes over to the new thread; one that is being joined stays where it was forked.
    moved = books.children(book, thread) & ((old.wait.pending > 0) | (threads.status == OPENED))
    moved = books.family(book, thread) & jnp.any(moved)
    threads = threads.where(moved, parent=book.used)
    threads = threads.where(moved & (threads.bond.group == thread), group=book.used)
    threads = threads.where((threads.bond.scope == thread) & jnp.any(moved), scope=book.used)
    ended = dict(status=FINISHED, stop=int(Stop.CONTINUED), released=True, unfed=False, left=0)
    threads = threads.where(mine, **ended)
    live = (
        (old.bond.group != NOBODY)
        & (book.threads.bond.group == old.bond.group)
        & (book.threads.line.ordinal != old.line.ordinal)
    )
    me = books.one_bit(book.used, book.sees.shape[1])
    # Of live threads those too that have ended, for whom it says nothing: events of one clock must commute.
    sees = jnp.where(live[:, None], book.sees | me, book.sees)
    sees = jnp.where(new[:, None], row | me | books.bits(book, live), sees)
    next_book = book.replace(threads=threads, sees=sees, used=book.used + 1)
    return books.choose(full, book, next_book).halt(full, Stop.THREADS_FULL)


def splittable(book: Book, thread: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether `thread` may be split: it is not live, and nobody else who has not ended looks on."""
    others = unfinished(book) & (books.numbers(book) != thread)
    return (book.threads.bond.group[thread] == NOBODY) & ~books.has(books.union(book.sees, others), thread)


def split(
    book: Book, thread: Int[Array, ""], start: Int[Array, ""], row: UInt32[Array, "words"], position: Int[Array, ""]
) -> Book:
    """Cut a thread in two and let its line go on as a third, see `proceed`; nothing where it is not `splittable`.

    The tokens from entry `start` of its log on become thread number `book.used`, which has ended and sees the rest. Who saw
    the whole sees both. They keep clock, index and place in the log, and the line goes on later than all of them. The loop
    signs their slots anew (`apr_jax.decode.pool.resign`) for a protocol that says `splits = True`.

    Args:
        thread: whose event it is.
        start: at least 1, less than the length of its log.
        row: what the line sees from now on: of the two parts one, both or none, and what `proceed` allows.
        position: of the next token.
    """
    old, number, words = book.thread(thread), books.numbers(book), book.sees.shape[1]
    cut = books.open_child(book, thread)
    tail, whole = number == book.used, books.has(book.sees, thread) & (number != thread)
    ended = dict(status=FINISHED, stop=int(Stop.SPLIT), released=True, clock=old.cursor.clock)
    threads = cut.threads.where(tail, **ended, split_at=start, length=old.cursor.length - start)
    # The next fork begins behind the tail, which has taken a number of a child.
    fork = old.wait.fork + (old.wait.fork == old.line.opened)
    threads = threads.where(number == thread, length=start, fork=fork)
    sees = jnp.where(tail[:, None], book.sees[thread], cut.sees)
    sees = jnp.where((tail | whole)[:, None], sees | books.one_bit(book.used, words), sees)
    done = proceed(cut.replace(threads=threads, sees=sees), thread, row, position)
    allowed, room = splittable(book, thread), book.used < number.shape[0]
    return books.choose(allowed & room, done, book).halt(allowed & ~room, Stop.THREADS_FULL)


def heir(book: Book, thread: Int[Array, ""]) -> Int[Array, ""]:
    """The thread as which `thread` went on in this event; itself if it did not."""
    threads = book.threads
    same = (threads.line.parent == threads.line.parent[thread]) & (threads.line.ordinal == threads.line.ordinal[thread])
    later = same & (threads.line.segment == threads.line.segment[thread] + 1) & (books.numbers(book) < book.used)
    return jnp.where(threads.stop[thread] == Stop.CONTINUED, jnp.argmax(later).astype(jnp.int32), thread)


def free_runs(book: Book) -> Book:
    """Give back the runs of threads that are released and that no unreleased thread sees.

    A run that a split went through is its thread's, which keeps its runs as long as anybody sees what was split off.
    """
    threads = book.threads
    visible = books.has(books.union(book.sees, ~threads.bond.released), books.numbers(book))
    split_off = visible & (threads.stop == Stop.SPLIT)
    visible = visible | jnp.any(
        split_off[None, :] & (threads.line.parent[None, :] == books.numbers(book)[:, None]), axis=1
    )
    dead = threads.bond.released & ~visible
    owner = book.run_owner
    return book.replace(run_owner=jnp.where((owner >= 0) & dead[owner], books.NOBODY, owner))
