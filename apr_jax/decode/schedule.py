"""The scheduler: which threads compute in a step, and which slots and log entries their tokens get.

A step works on B *tiles* of C tokens, each tile a stretch of one thread: [A, 1] when decoding, [G, C] when feeding.
Axes: P problems, M threads, W lanes, B tiles, C tokens of a tile, R pages, N slots, T log entries.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode.book import DECIDING, NOBODY, READY, Book, Threads, pytree
from apr_jax.decode.sizes import Sizes
from apr_jax.decode.threads import collect
from apr_jax.record import Stop


@pytree
class Tiles:
    """The tiles of a step.

    Attributes:
        lane_thread: thread of each lane, 0 where the lane is idle (see `lane_busy`).
        lane_busy: the lane computes in this step.
        problem, lane, thread: the tile's problem, lane and thread; `problem` is P for an idle tile.
        busy: the tile computes.
        count: tokens that the tile feeds, at most C.
        draws: the tile samples a token after its last fed token.
    """

    lane_thread: Int[Array, "P W"]
    lane_busy: Bool[Array, "P W"]
    problem: Int[Array, "B"]
    lane: Int[Array, "B"]
    thread: Int[Array, "B"]
    busy: Bool[Array, "B"]
    count: Int[Array, "B"]
    draws: Bool[Array, "B"]

    def to_lanes(self, values: Int[Array, "B"]) -> Int[Array, "P W"]:
        """Move one number per tile to the tile's lane; 0 for idle lanes."""
        return jnp.zeros(self.lane_busy.shape, values.dtype).at[self.problem, self.lane].set(values, mode="drop")

    def at(self, values: Int[Array, "P W"]) -> Int[Array, "B"]:
        """For each tile, the number of its lane."""
        return values[jnp.minimum(self.problem, values.shape[0] - 1), self.lane]


@pytree
class Places:
    """The slots and log entries of the tiles' tokens. Slot N and entry T mean that the token is not stored.

    Attributes:
        index: index of each token in its thread.
        slot: slot of the token in the pool.
        message: index of the token in the unfed rest of the message; -1 for an unfed sampled token or a handed token.
        entry: log entry of the token.
        drawn: log entry of the token that the tile will sample.
    """

    index: Int[Array, "B C"]
    slot: Int[Array, "B C"]
    message: Int[Array, "B C"]
    entry: Int[Array, "B C"]
    drawn: Int[Array, "B"]


def leading(threads: Threads) -> Int[Array, "*P M"]:
    """Tokens that each thread feeds before its message: 1 if it has an unfed sampled token or a handed token, else 0."""
    return (threads.drawn.unfed | threads.drawn.handed).astype(jnp.int32)


def waiting(threads: Threads) -> Int[Array, "*P M"]:
    """Tokens that each thread has yet to feed."""
    return threads.inbox.left + leading(threads)


def runnable(books: Book, groups: bool, together: bool = False) -> Bool[Array, "P M"]:
    """Threads that have tokens to feed and may feed them in this step.

    Args:
        groups: the protocol's threads may see or end each other while they run. Within a scope, only the threads with the
            least clock may then feed.
        together: live siblings feed all rows of a clock in one step. The oldest live group of a problem then runs alone, so
            that it gets lanes and rows as a whole.
    """
    threads, running = books.threads, books.active & (books.stop == Stop.RUNNING)
    ready = (threads.status == READY) & (waiting(threads) > 0) & running[:, None]
    if not groups:
        return ready
    ready &= threads.cursor.clock <= jax.vmap(least_clock)(threads, ready)
    if together:
        group = threads.pace.group
        live = ready & (group != NOBODY)
        oldest = jnp.take_along_axis(group, jnp.argmax(live, axis=1)[:, None], axis=1)
        ready &= (group == oldest) | ~jnp.any(live, axis=1, keepdims=True)
    return ready


def least_clock(threads: Threads, runs: Bool[Array, "M"]) -> Int[Array, "M"]:
    """For each thread, the least clock of the running threads in its scope; the largest int32 where there is none."""
    scope = threads.pace.scope
    least = by_group(scope, threads.cursor.clock, runs, jnp.iinfo(jnp.int32).max, "min")
    return jnp.where(scope == NOBODY, jnp.iinfo(jnp.int32).max, least)


def by_group(
    group: Int[Array, "M"], values: Int[Array, "M"], chosen: Bool[Array, "M"], start: int, how: str
) -> Int[Array, "M"]:
    """For each thread, the sum, minimum or maximum of `values` over the chosen members of its group; see `threads.collect`."""
    return collect(jnp.where(chosen, group, NOBODY), values, how, start)[jnp.maximum(group, 0)]


def crowded(threads: Threads, most: int) -> Bool[Array, "P"]:
    """Problems with a live group of more than `most` unfinished threads."""

    def one(threads):
        going = (threads.status == READY) | (threads.status == DECIDING)
        group = threads.pace.group
        mates = by_group(group, jnp.ones_like(group), going, 0, "add")
        return jnp.any((group != NOBODY) & (mates > most))

    return jax.vmap(one)(threads)


def critical_path_seen(threads: Threads) -> Int[Array, "P M"]:
    """For each thread, the largest critical-path count of the tokens of live siblings that it sees in this step.

    A row sees sibling tokens of earlier clocks only. The result holds for threads that may run, which are at the least clock of
    their scope. A sibling that has fed this clock already is seen up to its previous token; any other sibling is seen whole.
    """

    def one(threads):
        cursor, group = threads.cursor, threads.pace.group
        least = least_clock(threads, (threads.status == READY) & (waiting(threads) > 0))
        told = jnp.where(cursor.clock > least, cursor.critical_path_before, cursor.critical_path_fed)
        seen = by_group(group, told, group != NOBODY, 0, "max")
        return jnp.where(group == NOBODY, 0, seen)

    return jax.vmap(one)(threads)


def choose(books: Book, ready: Bool[Array, "P M"], lanes: int, tiles: int, chunk: int) -> Tiles:
    """Grant tiles. The oldest ready threads of each problem take its lanes; tiles are dealt round robin over the problems.

    Args:
        ready: threads that may compute.
        lanes, tiles, chunk: lanes per problem, B and C of the step.
    """
    problems, threads = ready.shape
    rank = jnp.cumsum(ready, axis=1) - 1
    takes = ready[:, None, :] & (rank[:, None, :] == jnp.arange(lanes)[None, :, None])  # [P, W, M]
    lane_thread = jnp.sum(jnp.where(takes, jnp.arange(threads), 0), axis=2, dtype=jnp.int32)
    order = jnp.any(takes, axis=2).T.reshape(-1)  # lane-major: every problem's first lane, then every second ...
    tile = jnp.cumsum(order) - 1
    granted = order & (tile < tiles)
    source = jnp.arange(lanes * problems, dtype=jnp.int32)
    where = jnp.full(tiles, lanes * problems, jnp.int32).at[jnp.where(granted, tile, tiles)].set(source, mode="drop")
    busy = where < lanes * problems
    problem, lane = jnp.where(busy, where % problems, problems), jnp.where(busy, where // problems, 0)
    at = jnp.minimum(problem, problems - 1)
    thread = lane_thread[at, lane]
    left = waiting(books.threads)[at, thread]
    count = jnp.where(busy, jnp.minimum(left, chunk), 0)
    draws = busy & (count == left) & books.threads.samples[at, thread]
    lane_busy = granted.reshape(lanes, problems).T
    return Tiles(lane_thread, lane_busy, problem, lane, thread, busy, count, draws)


def allot(
    tiles: Tiles, start: Int[Array, "B"], count: Int[Array, "B"], page_size: int
) -> tuple[Int[Array, "B"], Int[Array, "B"], Int[Array, "P"]]:
    """Allot new pages to the tiles, whose threads grow from `start` to `start + count` tokens.

    Returns:
        New pages of each tile; the index of the tile's first new page among the new pages of its problem; new pages of each
        problem.
    """
    need = -(-(start + count) // page_size) - (-(-start // page_size))
    by_lane = tiles.to_lanes(need)
    before = jnp.cumsum(by_lane, axis=1) - by_lane
    return need, tiles.at(before), jnp.sum(by_lane, axis=1)


def place(books: Book, tiles: Tiles, chunk: int, sizes: Sizes) -> tuple[Book, Places]:
    """Allocate slots and log entries for the tokens of the tiles. A problem that runs out of slots or entries is halted.

    The tokens of a halted problem in this step get no place and are dropped.
    """
    threads = books.threads
    problems = threads.status.shape[0]
    at = jnp.minimum(tiles.problem, problems - 1)
    step = jnp.arange(chunk, dtype=jnp.int32)[None, :]
    fed, length = threads.cursor.fed[at, tiles.thread], threads.cursor.length[at, tiles.thread]
    lead = leading(threads)[at, tiles.thread]  # a leading unfed token is in the log already, a handed one is not
    unfed = threads.drawn.unfed[at, tiles.thread].astype(jnp.int32)
    appended = jnp.maximum(tiles.count - unfed, 0) + tiles.draws.astype(jnp.int32)

    new_pages = -(-chunk // sizes.page_size)  # upper bound for one tile
    new_log_pages = -(-(chunk + 1) // sizes.log_page_size)
    most = min(sizes.lanes, tiles.busy.shape[0]) * new_pages
    need, first, wanted = allot(tiles, fed, tiles.count, sizes.page_size)
    free = jnp.cumsum(books.page_owner == NOBODY, axis=1)  # [P, R]
    kth_free = jnp.argmax(free[:, None, :] > jnp.arange(most)[None, :, None], axis=2).astype(jnp.int32)  # [P, most]
    no_slots = wanted > free[:, -1]

    log_need, log_first, log_wanted = allot(tiles, length, appended, sizes.log_page_size)
    no_log = books.log_used + log_wanted > sizes.log_pages
    books = books.halt(no_slots, Stop.POOL_FULL).halt(no_log, Stop.LOG_FULL)
    halted = (no_slots | no_log)[at]
    good = tiles.busy & ~halted

    ordinal = fed[:, None] + step
    slot = locate(
        ordinal, fed, sizes.page_size, threads.cursor.page[at, tiles.thread],
        lambda k: kth_free[at[:, None], jnp.minimum(first[:, None] + k, most - 1)],
    )  # fmt: skip
    base = books.log_used[at] + log_first
    message = step - lead[:, None]
    numbered_log = lambda k: base[:, None] + k
    log_page = threads.cursor.log_page[at, tiles.thread]
    entry = locate(length[:, None] + step - unfed[:, None], length, sizes.log_page_size, log_page, numbered_log)
    entry = jnp.where(step < unfed[:, None], threads.drawn.entry[at, tiles.thread][:, None], entry)
    drawn = locate((length + appended - 1)[:, None], length, sizes.log_page_size, log_page, numbered_log)[:, 0]

    used = good[:, None] & (step < tiles.count[:, None])
    places = Places(
        index=ordinal,
        slot=jnp.where(used, slot, sizes.slots),
        message=message,
        entry=jnp.where(used, entry, sizes.log),
        drawn=jnp.where(good & tiles.draws, drawn, sizes.log),
    )
    page_owner, log_owner, log_begin = books.page_owner, books.log_owner, books.log_first
    for k in range(new_pages):
        page = jnp.where(good & (k < need), kth_free[at, jnp.minimum(first + k, most - 1)], sizes.pages)
        page_owner = page_owner.at[tiles.problem, page].set(tiles.thread, mode="drop")
    for k in range(new_log_pages):
        page = jnp.where(good & (k < log_need), base + k, sizes.log_pages)
        begin = (-(-length // sizes.log_page_size) + k) * sizes.log_page_size
        log_owner = log_owner.at[tiles.problem, page].set(tiles.thread, mode="drop")
        log_begin = log_begin.at[tiles.problem, page].set(begin, mode="drop")
    log_used = books.log_used + jnp.sum(tiles.to_lanes(jnp.where(good, log_need, 0)), axis=1)
    return books.replace(page_owner=page_owner, log_owner=log_owner, log_first=log_begin, log_used=log_used), places


def locate(
    ordinal: Int[Array, "B C"], begin: Int[Array, "B"], page_size: int, current: Int[Array, "B"], numbered: Callable
) -> Int[Array, "B C"]:
    """Slot or log entry of each token of a tile.

    Args:
        ordinal: index of the token in its thread.
        begin: number of tokens of the thread before this step.
        page_size: slots or entries of a page.
        current: page of the thread's last token before this step.
        numbered: maps the index of a new page within the tile, [B, C], to the page.
    """
    new = ordinal // page_size - (begin[:, None] - 1) // page_size  # 0: the current page; k: the k-th new one
    return jnp.where(new > 0, numbered(new - 1), current[:, None]) * page_size + ordinal % page_size
