"""Kills, races to be first and shared budgets: the compiled loop against the oracle, and what is written in the book."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
import racing
from apr_jax.decode import Sizes, Stop, ends, lines, races
from apr_jax.decode import book as books
from apr_jax.decode.forks import fork
from apr_jax.decode.schedule import runnable
from apr_jax.decode.threads import DECIDING, FINISHED, READY
from test_engine import SIZES, check_packed

KILL, TURN = 11, 10
ISOLATED, SHARED = dict(racing.WORDS, context="isolated"), dict(racing.WORDS, context="shared")
LIVE = dict(racing.WORDS, context="live", max_depth=1)
# Each with the sizes it runs on, and what must happen often in its problems.
VARIANTS = {
    "kill": (racing.Racing(**ISOLATED, max_depth=2, kill=KILL), "scarce rows", ("kill",)),
    "shared": (
        racing.Racing(**ISOLATED, max_depth=2, shared=6, returns="stitch"), "no feed steps", ("shared", "SHARED"),
    ),
    "all nested": (
        racing.Racing(**SHARED, max_depth=3, first=True, shared=8, kill=KILL, returns="stitch"),
        "plenty", ("kill", "first", "shared"),
    ),
    "all live": (
        racing.Racing(**LIVE, first=True, shared=12, kill=KILL, returns="stitch"), "scarce rows", ("first", "kill"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_f64_equals_the_oracle(name):
    """On lanes that suffice or do not: nobody runs ahead of what decides, so the schedule does not matter."""
    protocol, sizes, often = VARIANTS[name]
    problems, expected, events = racing.cases(protocol, 50, orders=10)
    assert all(events[what] >= 20 for what in often), events
    for transcript, right in zip(racing.decoded(protocol, SIZES[sizes], problems), expected, strict=True):
        oracle.compare(transcript, right)


def test_other_sizes_and_one_trace():
    """The decisions of a nested race are the same on one row, whatever is in the queue; nothing is compiled again."""
    protocol, _, _ = VARIANTS["all nested"]
    problems, expected, _ = racing.cases(protocol, 50, orders=10)
    for start, end in ((0, 20), (10, 50)):
        done = racing.decoded(protocol, SIZES["one row"], problems[start:end], slice_steps=61)
        for transcript, right in zip(done, expected[start:end], strict=True):
            oracle.compare(transcript, right)
    assert racing.engine(protocol, SIZES["one row"]).traces == 1


def test_training_gives_the_rollout_again():
    protocol, sizes, _ = VARIANTS["all nested"]
    problems, _, _ = racing.cases(protocol, 50, orders=10)
    check_packed(racing.decoded(protocol, SIZES[sizes], problems), racing.model(), 1e-9)


# ---- one book


def family(shares: bool = False, races_first: bool = False) -> books.Book:
    """A root that waits for three children, of which the first waits for one of its own; each owns the run of its number."""
    sizes = Sizes(problems=1, lanes=1, rows=1, threads=8, slots=128, page_size=16, log=128, attention_block=128)
    book = books.open_root(books.empty(sizes), samples=True).replace(active=True)
    for parent, count in ((0, 3), (1, 1)):
        for _ in range(count):
            book = books.open_child(book, jnp.int32(parent))
        thread = jnp.int32(parent)
        born = books.opened(book, thread)
        book = fork(book, thread, born, context=thread if shares else None)
        if races_first and parent == 0:
            book = races.start(book, born, enough=1)
    owners = jnp.where(jnp.arange(sizes.pages) <= 4, jnp.arange(sizes.pages), books.NOBODY)
    return book.replace(page_owner=owners)


def test_a_killed_line_falls_with_its_descendants_and_its_slots_are_free():
    book = family(shares=True)
    book = book.replace(threads=book.threads.where(jnp.arange(8) == 4, clock=9))
    after = lines.free_pages(lines.kill(book, jnp.arange(8) == 1))
    stops = [Stop(int(stop)) for stop in after.threads.stop[:5]]
    assert stops == [Stop.RUNNING, Stop.KILLED, Stop.RUNNING, Stop.RUNNING, Stop.KILLED]
    assert after.page_owner[:5].tolist() == [0, books.NOBODY, 2, 3, books.NOBODY]
    assert np.flatnonzero(books.awaited(after, jnp.int32(0))).tolist() == [2, 3]
    assert after.threads.cursor.clock[1] == 9  # who waits for it is later than all that was written there


def test_slots_of_a_killed_thread_are_kept_while_somebody_looks_on():
    book = family(shares=True)
    sees = book.sees.at[2].set(book.sees[2] | book.sees[1])
    killed = lines.kill(book.replace(sees=sees), jnp.arange(8) == 1)
    assert lines.free_pages(killed).page_owner[:5].tolist() == [0, 1, 2, 3, books.NOBODY]
    both = lines.kill(killed, jnp.arange(8) == 2)
    assert lines.free_pages(both).page_owner[:5].tolist() == [0, books.NOBODY, books.NOBODY, 3, books.NOBODY]


def test_the_death_of_the_root_ends_the_problem():
    after = lines.kill(family(), jnp.arange(8) == 0)
    assert after.stop == Stop.KILLED and not books.unfinished(after).any()


@pytest.mark.parametrize(("laggard", "winner"), [(2, 0), (3, 3), (5, 2)])
def test_a_race_is_decided_when_all_are_past_the_clock_of_the_end(laggard, winner):
    """Two children end, and what is below the third still runs at clock `laggard`."""
    book = family(races_first=True)
    book = book.replace(threads=book.threads.where(jnp.arange(8) == 4, left=1, clock=laggard))
    for thread, clock in ({2: 5, 3: 3} if winner != 2 else {2: 5, 3: 5}).items():
        book = book.replace(threads=book.threads.where(jnp.arange(8) == thread, clock=clock))
        book = ends.close(book, jnp.int32(thread), jnp.int32(Stop.END))
    kind, thread = races.due(book)
    if not winner:
        assert kind == 0
        return
    assert (int(kind), int(thread)) == (races.END, winner)
    after = races.arrive(book, thread, lambda *_: jnp.bool(False))
    expected = [Stop.KILLED] * 5
    expected[0], expected[winner] = Stop.RUNNING, Stop.END
    assert [Stop(int(stop)) for stop in after.threads.stop[:5]] == expected


@pytest.mark.parametrize("first", [False, True])
def test_who_ends_at_a_join_ends_later_than_its_children(first):
    """A handler of joins may end the thread at once; it is to be stitched, and has a token to feed."""
    book = family(races_first=first)
    book = book.update(jnp.int32(4), status=FINISHED, stop=int(Stop.END), clock=9)
    book = book.update(jnp.int32(1), flushes=True, held=True, unfed=True)
    after = lines.join(book, jnp.int32(1), lambda book, thread: ends.close(book, thread, jnp.int32(Stop.END)))
    assert (after.threads.status[1], after.threads.cursor.clock[1]) == (DECIDING if first else READY, 9)
    assert after.threads.bond.joined[4] and not after.threads.bond.awaited[4]
    if first:
        after = races.arrive(after, jnp.int32(1), lambda *_: jnp.bool(False))
    assert (after.threads.status[1], after.threads.stop[1], after.threads.samples[1]) == (READY, Stop.END, False)


@pytest.mark.parametrize(("racing", "ready"), [(False, [2, 3, 4]), (True, [4])])
def test_in_a_race_the_least_clock_goes_first_descendants_included(racing, ready):
    book = family(races_first=racing)
    clock = jnp.array([0, 0, 4, 3, 2, 0, 0, 0])
    book = book.replace(threads=book.threads.where(jnp.arange(8) < 8, clock=clock, left=1))
    one = jax.tree.map(lambda field: field[None], book)
    assert np.flatnonzero(runnable(one, groups=True)[0]).tolist() == ready
