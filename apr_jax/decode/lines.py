"""Lines of reasoning: a thread and those that continue it. They are joined, killed, go on as another thread, and leave slots.

Everything is written for one problem, from and to its book. Axes: M threads.
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
    """What `parent` sees with the chosen children's lines: them and what was stitched into them, but not their live siblings.

    What a line forgot stays forgotten, though a live sibling has seen it.
    """
    theirs, words = books.union(book.sees, chosen), book.sees.shape[1]
    if not book.protocol.needs.live:
        return book.sees[parent] | theirs
    threads, number, count = book.threads, books.numbers(book), chosen.shape[0]
    group = threads.pace.group
    groups = collect(group, chosen.astype(jnp.int32), "max") > 0
    live = (group != NOBODY) & groups[jnp.maximum(group, 0)]
    # The chosen thread of each one's line, if there is one, and whether that sees it.
    place = jnp.where(chosen, threads.line.ordinal, count)
    line = jnp.full(count, NOBODY).at[place].set(number, mode="drop")[threads.line.ordinal]
    line = jnp.where(threads.line.parent == parent, line, NOBODY)
    sees = jax.vmap(books.has)(book.sees[line], number)
    forgotten = books.bits(live & ~((line != NOBODY) & sees), words)
    return book.sees[parent] | (theirs & ~forgotten)


def stitch(book: Book, parent: Int[Array, ""], chosen: Bool[Array, "M"]) -> Book:
    """Let `parent`, which has waited for them, see the chosen children's lines; its positions go on from the furthest."""
    mine = books.numbers(book) == parent
    furthest = jnp.max(jnp.where(chosen | mine, book.threads.cursor.position, 0))
    sees = jnp.where(mine[:, None], joined_row(book, parent, chosen), book.sees)
    return book.update(mine, position=furthest).replace(sees=sees)


def join(book: Book, parent: Int[Array, ""], joined: Callable) -> Book:
    """Let `parent`, which waits for nobody any more, go on, later than all that it waited for wrote.

    Where it may not write any more, it goes on as a new thread of its line, before the protocol is asked what that is fed.

    Args:
        joined: of the protocol. If `parent` forks or ends in it, or goes on as a new thread, that holds.
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
    room = book.stop == Stop.RUNNING  # or the old thread would come to see what only a new one may
    return books.choose(room, done.update(wakes, status=READY), book)


def end(book: Book, thread: Int[Array, ""]) -> Book:
    """End a thread that was closed and has waited for all outstanding children, of whom nobody goes on."""
    lines = _waited(book, thread)
    book = _take(book, thread).update(lines, awaited=False)
    # One clock later: a decision below at the last clock waited for comes first.
    book = book.update(thread, clock=book.threads.cursor.clock + 1)
    return ends.conclude(ends.release(book, lines), thread, book.threads.stop[thread])


def _waited(book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
    """All threads of the lines that `parent` waits for, killed ones too."""
    return books.outstanding(book, parent) & book.threads.bond.awaited


def _take(book: Book, parent: Int[Array, ""]) -> Book:
    """Make `parent` later than all that it waited for; lines that a decision ended tell what that waited for."""
    lines, cursor = _waited(book, parent), book.threads.cursor
    waited = lines & (book.threads.stop != Stop.CONTINUED)
    latest = jnp.max(jnp.where(waited, cursor.clock, 0))
    longest = jnp.max(jnp.where(waited, cursor.critical_path, 0))
    return book.update(lines, joined=True).update(
        parent, clock=jnp.maximum(cursor.clock, latest), critical_path=jnp.maximum(cursor.critical_path, longest)
    )


def _renew(book: Book, parent: Int[Array, ""]) -> Book:
    """The book in which the line of `parent` may write.

    What an outstanding child sees may not grow; and what was written beside a child, or after the line that it goes on from,
    cannot have seen it.
    """
    threads = book.threads
    sees = books.has(book.sees, parent)
    looked_at = books.outstanding(book, parent) & ~threads.bond.awaited & sees
    older = threads.bond.beside | (threads.line.follows != NOBODY)
    late = books.awaited(book, parent) & older & threads.bond.held
    new = go_on(book, parent, book.sees[parent], threads.cursor.position[parent], hand=True)
    return books.choose(jnp.any(looked_at | late), new, book)


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

    Who waits for them will be later than all they wrote; their counts are forgotten. The root's death is the problem's. A thread
    that still runs may be killed by a decision only (`apr_jax.decode.races`): how far it had come would depend on the schedule
    otherwise.
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
    """The table in which the `new` thread has what the `old` one, a row of scalars, hands on to the next of its line.

    The new one begins with an empty log, inbox and pool, and later than all that the old one did.
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
    """Let the line of `thread` go on as a new thread of the same line, which waits for its message.

    It has the line's path, draws, budget, count, clock, place in forks and groups, and outstanding children. It must be fed at
    least one token. A full thread table ends the problem.

    Args:
        thread: a thread that is ready, or joins.
        row: what the new thread sees beside itself and its live siblings: threads that the old one saw, the old one, lines
            that it has waited for. The old thread's slots are freed when nobody sees them.
        position: of the first token of the new thread.
        hand: a token of the old thread that was sampled and not fed is the first of the new one; otherwise nobody is fed it.
    """
    number, old = books.numbers(book), book.thread(thread)
    full = book.used >= number.shape[0]
    mine, new = number == thread, (number == book.used) & ~full
    threads = hand_on(book.threads, old, new).where(new, segment=old.line.segment + 1, position=position)
    if hand:
        threads = threads.where(new, handed=old.drawn.unfed, token=old.drawn.token)
    threads = threads.where(books.outstanding(book, thread) | books.opened(book, thread), parent=book.used)
    ended = dict(status=FINISHED, stop=int(Stop.CONTINUED), released=True, unfed=False, handed=False, left=0)
    threads = threads.where(mine, **ended)
    live = books.mates(book, thread)
    me = books.one_bit(book.used, book.sees.shape[1])
    # Of live threads those too that have ended, for whom it says nothing: events of one clock must commute.
    sees = jnp.where(live[:, None], book.sees | me, book.sees)
    sees = jnp.where(new[:, None], row | me | books.bits(live, me.shape[0]), sees)
    next_book = book.replace(threads=threads, sees=sees, used=book.used + 1)
    return books.choose(full, book, next_book).halt(full, Stop.THREADS_FULL)


def splittable(book: Book, thread: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether `thread` may be split: it is not live, and nobody else who has not ended, or may not have, looks on."""
    others = (books.unfinished(book) & (books.numbers(book) != thread)) | books.outstanding(book, thread)
    return (book.threads.pace.group[thread] == NOBODY) & ~books.has(books.union(book.sees, others), thread)


def split(
    book: Book, thread: Int[Array, ""], start: Int[Array, ""], row: UInt32[Array, "words"], position: Int[Array, ""]
) -> Book:
    """Cut a thread in two and let its line go on as a third, see `go_on`; nothing where it is not `splittable`.

    The tokens from entry `start` of its log on become thread number `book.used`, which has ended and sees the rest. Who saw
    the whole sees both. They keep clock, index and place in the log, and the line goes on later than all of them. The loop
    signs their slots anew (`apr_jax.decode.pool.relabel`) for a protocol that says `splits = True`.

    Args:
        thread: whose event it is.
        start: at least 1, less than the length of its log.
        row: what the line sees from now on: of the two parts one, both or none, and what `go_on` allows.
        position: of the next token.
    """
    old, number, words = book.thread(thread), books.numbers(book), book.sees.shape[1]
    cut = books.open_child(book, thread)
    tail, whole = number == book.used, books.has(book.sees, thread) & (number != thread)
    ended = dict(status=FINISHED, stop=int(Stop.SPLIT), released=True, clock=old.cursor.clock)
    threads = cut.threads.where(tail, **ended, split_at=start, length=old.cursor.length - start)
    threads = threads.where(number == thread, length=start)
    sees = jnp.where(tail[:, None], book.sees[thread], cut.sees)
    sees = jnp.where((tail | whole)[:, None], sees | books.one_bit(book.used, words), sees)
    done = go_on(cut.replace(threads=threads, sees=sees), thread, row, position)
    allowed, room = splittable(book, thread), book.used < number.shape[0]
    return books.choose(allowed & room, done, book).halt(allowed & ~room, Stop.THREADS_FULL)


def successor(book: Book, thread: Int[Array, ""]) -> Int[Array, ""]:
    """The last thread of the line of `thread`: itself if it did not go on as another."""
    line = book.threads.line
    same = (line.first == line.first[thread]) & (books.numbers(book) < book.used)
    return jnp.argmax(jnp.where(same, line.segment, -1)).astype(jnp.int32)


def free_pages(book: Book) -> Book:
    """Give back the pages of threads that are released and that no unreleased thread sees.

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
