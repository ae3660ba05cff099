"""Lines: a thread and the threads that continue it. Lines are joined, killed, continued as a new thread, and give back slots.

All functions map the book of one problem to its new book. Axes: M threads.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book
from apr_jax.decode.threads import FINISHED, NOBODY, OPENED, READY, WAITING, Threads, collect
from apr_jax.record import Stop


def joined_row(book: Book, parent: Int[Array, ""], chosen: Bool[Array, "M"]) -> UInt32[Array, "words"]:
    """The visibility row of `parent` after it joins the chosen children's lines.

    The parent comes to see these lines and the lines stitched into them, but no live siblings that it did not choose. A thread
    that a chosen line no longer sees stays invisible, even if a live sibling still sees that thread.
    """
    theirs, words = books.union(book.sees, chosen), book.sees.shape[1]
    if not book.protocol.needs.live:
        return book.sees[parent] | theirs
    threads, number, count = book.threads, books.numbers(book), chosen.shape[0]
    group = threads.pace.group
    groups = collect(group, chosen.astype(jnp.int32), "max") > 0
    live = (group != NOBODY) & groups[jnp.maximum(group, 0)]
    # For each thread: the chosen thread of its line, if any, and whether the chosen thread sees it.
    place = jnp.where(chosen, threads.line.ordinal, count)
    line = jnp.full(count, NOBODY).at[place].set(number, mode="drop")[threads.line.ordinal]
    line = jnp.where(threads.line.parent == parent, line, NOBODY)
    sees = jax.vmap(books.has)(book.sees[line], number)
    forgotten = books.bits(live & ~((line != NOBODY) & sees), words)
    return book.sees[parent] | (theirs & ~forgotten)


def stitch(book: Book, parent: Int[Array, ""], chosen: Bool[Array, "M"]) -> Book:
    """Let `parent` see the lines of the chosen children, for which it has waited; its next position is the largest of theirs."""
    mine = books.numbers(book) == parent
    furthest = jnp.max(jnp.where(chosen | mine, book.threads.cursor.position, 0))
    sees = jnp.where(mine[:, None], joined_row(book, parent, chosen), book.sees)
    return book.update(mine, position=furthest).replace(sees=sees)


def join(book: Book, parent: Int[Array, ""], joined: Callable) -> Book:
    """Let `parent`, whose awaited lines have all ended, continue with a clock after all their tokens.

    If `parent` may no longer write, a new thread of its line continues instead, and the protocol decides what to feed to that
    thread.

    Args:
        joined: the protocol's `joined`. It may let `parent` fork, end or continue as a new thread.
    """
    if book.protocol.needs.beside:
        book = _renew(book, parent)
        parent = successor(book, parent)
    lines = _waited(book, parent)
    done = joined(_take(book, parent), parent)
    last = successor(done, parent)
    done = done.update(lines, awaited=False)
    again = jnp.any(_waited(done, last))
    wakes = (books.numbers(done) == last) & (done.threads.status == WAITING) & ~again
    room = book.stop == Stop.RUNNING  # else no new thread was made, and the old one must not see the joined lines
    return books.choose(room, done.update(wakes, status=READY), book)


def end(book: Book, thread: Int[Array, ""]) -> Book:
    """End a closed thread that has waited for all its outstanding children; nobody will continue from these children."""
    lines = _waited(book, thread)
    book = _take(book, thread).update(lines, awaited=False)
    # One clock later, so that a decision among its descendants at the last awaited clock comes first.
    book = book.update(thread, clock=book.threads.cursor.clock + 1)
    return ends.conclude(ends.release(book, lines), thread, book.threads.stop[thread])


def _waited(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """All threads of the lines that `parent` waits for, killed threads included."""
    return books.outstanding(book, parent) & book.threads.bond.awaited


def _take(book: Book, parent: Int[Array, ""]) -> Book:
    """Mark the awaited lines joined and move clock and critical path of `parent` behind theirs.

    A line that a decision ended already carries the clock and the count of the threads that the decision waited for.
    """
    lines, cursor = _waited(book, parent), book.threads.cursor
    waited = lines & (book.threads.stop != Stop.CONTINUED)
    latest = jnp.max(jnp.where(waited, cursor.clock, 0))
    longest = jnp.max(jnp.where(waited, cursor.critical_path, 0))
    clock = jnp.maximum(cursor.clock[parent], latest)
    mark = dict(joined_at=clock) if book.protocol.needs.beside else {}
    return book.update(lines, joined=True, **mark).update(
        parent, clock=clock, critical_path=jnp.maximum(cursor.critical_path, longest)
    )


def _renew(book: Book, parent: Int[Array, ""]) -> Book:
    """The book in which the line of `parent` may write: if needed, the line continues as a new thread.

    A new thread is needed if an outstanding child sees `parent`, because the child's context must not grow. It is also needed
    before joining a held line that ran beside `parent` or follows another line: earlier tokens of `parent` have not seen it.
    """
    threads = book.threads
    sees = books.has(book.sees, parent)
    looked_at = books.outstanding(book, parent) & ~threads.bond.awaited & sees
    older = threads.bond.beside | (threads.line.follows != NOBODY)
    late = books.awaited(book, parent) & older & threads.bond.held
    new = go_on(book, parent, book.sees[parent], threads.cursor.position[parent], hand=True)
    return books.choose(jnp.any(looked_at | late), new, book)


def with_descendants(book: Book, chosen: Bool[Array, "M"]) -> Bool[Array, "M"]:
    """The chosen threads and all their descendants."""
    number = books.numbers(book)
    above = jnp.where(book.threads.line.parent == NOBODY, number, book.threads.line.parent)
    for _ in range(number.shape[0].bit_length()):  # the ancestors 1, 2, 4 ... steps above
        chosen = chosen | chosen[above]
        above = above[above]
    return chosen


def kill(book: Book, chosen: Bool[Array, "M"]) -> Book:
    """Drop the lines of the chosen threads with all their descendants. Slots that no other thread sees become free.

    A parent that waits for a killed line continues with a clock after all the line's tokens; the line's critical path does not
    count. Killing the root ends the problem. Only a decision (`apr_jax.decode.races`) may kill a thread that still runs;
    otherwise the number of tokens before its death would depend on the schedule.
    """
    threads = book.threads
    doomed = with_descendants(book, books.lines_of(book, chosen))
    running = doomed & books.unfinished(book)
    latest = jnp.max(jnp.where(doomed, threads.cursor.clock, 0))
    root = jnp.any(running & (threads.line.parent == NOBODY))
    threads = threads.where(chosen & running, clock=latest, critical_path=0)
    threads = threads.where(doomed & (threads.status == OPENED), status=FINISHED, stop=int(Stop.DROPPED))
    threads = threads.where(running, status=FINISHED, stop=int(Stop.KILLED), unfed=False, handed=False, left=0)
    return book.replace(threads=threads.where(doomed, released=True)).halt(root, Stop.KILLED)


def hand_on(threads: Threads, old: Threads, new: Bool[Array, "M"]) -> Threads:
    """The table in which the `new` thread has inherited the columns that the next thread of a line takes over from `old`.

    The new thread has no log entries, message or slots, and its clock starts at that of the old thread.

    Args:
        old: row of the old thread, scalars.
        new: mask of the new thread.
    """
    put = lambda columns, values: jax.tree.map(
        lambda c, v: jnp.where(new.reshape(-1, *(1,) * v.ndim), v, c), columns, values
    )
    names = ("status", "samples", "line", "bond", "pace", "sampling", "own")
    threads = dataclasses.replace(threads, **{name: put(getattr(threads, name), getattr(old, name)) for name in names})
    at = old.cursor
    return threads.where(
        new, clock=at.clock, critical_path=at.critical_path, generated=at.generated, split_at=0, released=False
    )


def go_on(
    book: Book, thread: Int[Array, ""], row: UInt32[Array, "words"], position: Int[Array, ""], hand: bool = False
) -> Book:
    """Continue the line of `thread` as a new thread of the same line, which waits for its message.

    The new thread takes over the line's path, random keys, budget, counts, clock, groups and outstanding children. It must be
    fed at least one token. A full thread table ends the problem.

    Args:
        thread: a thread that is ready or joins.
        row: visibility row of the new thread; itself and its live siblings are added. It may hold the old thread, threads that
            the old thread saw, and lines that it waited for. The old thread's slots are freed when no thread sees them.
        position: position of the new thread's first token.
        hand: the old thread's unfed token, sampled or handed, becomes the first token of the new thread; otherwise it is never
            fed.
    """
    number, old = books.numbers(book), book.thread(thread)
    full = book.used >= number.shape[0]
    mine, new = number == thread, (number == book.used) & ~full
    threads = hand_on(book.threads, old, new).where(new, segment=old.line.segment + 1, position=position)
    if hand:
        threads = threads.where(new, handed=old.drawn.unfed | old.drawn.handed, token=old.drawn.token)
    threads = threads.where(books.outstanding(book, thread) | books.opened(book, thread), parent=book.used)
    ended = dict(status=FINISHED, stop=int(Stop.CONTINUED), released=True, unfed=False, handed=False, left=0)
    threads = threads.where(mine, **ended)
    live = books.mates(book, thread)
    me = books.one_bit(book.used, book.sees.shape[1])
    # Finished live siblings get the bit too: it does not affect them, and it makes events of equal clock commute.
    sees = jnp.where(live[:, None], book.sees | me, book.sees)
    sees = jnp.where(new[:, None], row | me | books.bits(live, me.shape[0]), sees)
    next_book = book.replace(threads=threads, sees=sees, used=book.used + 1)
    return books.choose(full, book, next_book).halt(full, Stop.THREADS_FULL)


def splittable(book: Book, thread: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether `thread` may be split: it is not live, and no unfinished or outstanding thread sees it."""
    others = (books.unfinished(book) & (books.numbers(book) != thread)) | books.outstanding(book, thread)
    return (book.threads.pace.group[thread] == NOBODY) & ~books.has(books.union(book.sees, others), thread)


def split(
    book: Book, thread: Int[Array, ""], start: Int[Array, ""], row: UInt32[Array, "words"], position: Int[Array, ""]
) -> Book:
    """Cut a thread in two and continue its line as a third thread, see `go_on`. Does nothing if it is not `splittable`.

    The tokens from entry `start` of the thread's log on become thread number `book.used`, the tail. The tail has ended and sees
    the remaining part. Every thread that saw the whole sees both parts. The tail's tokens keep clock, index and log entry, and
    the line continues with later clocks. The tail uses up one child ordinal. The loop gives its slots to the tail
    (`apr_jax.decode.pool.relabel`) if the protocol has `needs.splits`.

    Args:
        thread: the thread to cut, which has the event.
        start: at least 1, less than the length of the thread's log.
        row: visibility row of the continued line: one, both or none of the two parts, and all that `go_on` allows.
        position: position of the next token.
    """
    old, number, words = book.thread(thread), books.numbers(book), book.sees.shape[1]
    cut = books.open_child(book, thread)
    tail, whole = number == book.used, books.has(book.sees, thread) & (number != thread)
    ended = dict(status=FINISHED, stop=int(Stop.SPLIT), released=True, clock=old.cursor.clock)
    ended |= {} if old.line.branch is None else dict(branch=old.line.branch)
    threads = cut.threads.where(tail, **ended, split_at=start, length=old.cursor.length - start)
    threads = threads.where(number == thread, length=start)
    sees = jnp.where(tail[:, None], book.sees[thread], cut.sees)
    sees = jnp.where((tail | whole)[:, None], sees | books.one_bit(book.used, words), sees)
    done = go_on(cut.replace(threads=threads, sees=sees), thread, row, position)
    allowed, room = splittable(book, thread), book.used < number.shape[0]
    return books.choose(allowed & room, done, book).halt(allowed & ~room, Stop.THREADS_FULL)


def successor(book: Book, thread: Int[Array, ""]) -> Int[Array, ""]:
    """The last thread of the line of `thread`; `thread` itself if no other thread continues it."""
    line = book.threads.line
    same = (line.first == line.first[thread]) & (books.numbers(book) < book.used)
    return jnp.argmax(jnp.where(same, line.segment, -1)).astype(jnp.int32)


def free_pages(book: Book) -> Book:
    """Free the pages of released threads that no unreleased thread sees.

    A page that holds tokens of both sides of a split stays with the thread that was split, which therefore keeps its pages while
    the tail is visible.
    """
    threads = book.threads
    visible = books.has(books.union(book.sees, ~threads.bond.released), books.numbers(book))
    if book.protocol.needs.splits:
        split_off = visible & (threads.stop == Stop.SPLIT)
        visible = visible | (books.by_parent(book, split_off.astype(jnp.int32)) > 0)
    dead = threads.bond.released & ~visible
    owner = book.page_owner
    return book.replace(page_owner=jnp.where((owner >= 0) & dead[owner], NOBODY, owner))
