"""Threads that are cut in two: the compiled loop against the oracle, one book, and the signatures of slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
import racing
from apr_jax.decode import Sizes, Stop, lines, pool
from apr_jax.decode import book as books
from apr_jax.decode.forks import fork
from apr_jax.decode.threads import FINISHED
from test_engine import SIZES, check_packed

CUT, KILL = 10, 11
VARIANTS = {
    "isolated": (racing.Racing(**racing.WORDS, max_depth=2, cut=CUT, kill=KILL), "scarce rows"),
    "shared": (
        racing.Racing(**racing.WORDS, context="shared", max_depth=2, cut=CUT, kill=KILL, returns="stitch"), "plenty",
    ),
    "live": (racing.Racing(**racing.WORDS, context="live", cut=CUT, returns="stitch"), "one row"),
    "in races": (
        racing.Racing(
            **racing.WORDS, context="shared", max_depth=2, cut=CUT, kill=KILL, renew=True, returns="stitch", first=True,
            shared=12,
        ),
        "no feed steps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_f64_equals_the_oracle(name):
    protocol, sizes = VARIANTS[name]
    problems, expected, events = racing.cases(protocol, 50, orders=10)
    assert events["SPLIT"] >= 10, events
    for done, right in zip(racing.decoded(protocol, SIZES[sizes], problems), expected, strict=True):
        oracle.compare(done, right)
    assert racing.engine(protocol, SIZES[sizes]).traces == 1


def test_training_gives_the_rollout_again():
    protocol, sizes = VARIANTS["shared"]
    problems, _, _ = racing.cases(protocol, 50, orders=10)
    check_packed(racing.decoded(protocol, SIZES[sizes], problems), racing.model(), 1e-9)


# ---- one book


PAGE = 4
SMALL = Sizes(
    problems=1, lanes=1, rows=1, threads=5, slots=64, page_size=PAGE, log=64, log_page_size=PAGE, attention_block=64
)


def parent_and_child(ended: bool = True, live: bool = False) -> books.Book:
    """A root that wrote 10 tokens, the last of them at clock 12, and a child that sees it."""
    book = books.open_root(books.empty(SMALL), samples=True).replace(active=True)
    root, book = jnp.int32(0), books.open_child(book, jnp.int32(0))
    book = fork(book, root, books.opened(book, root), context=root, live=live)
    ends = dict(status=FINISHED, stop=int(Stop.END), released=True, joined=True, awaited=False) if ended else {}
    threads = book.threads.where(jnp.arange(5) == 0, clock=12, length=10, fed=10)
    return book.replace(threads=threads.where(jnp.arange(5) == 1, **ends))


def rows(book: books.Book) -> list[list[int]]:
    return [np.flatnonzero((int(row[0]) >> np.arange(5)) & 1).tolist() for row in book.sees]


def forget(book: books.Book, thread: int = 0, start: int = 6) -> books.Book:
    return lines.split(book, jnp.int32(thread), jnp.int32(start), book.sees[thread], jnp.int32(20))


def test_the_tail_is_a_thread_that_sees_the_rest_and_who_saw_the_whole_sees_both():
    after = forget(parent_and_child())
    head, tail, line = (after.thread(jnp.int32(number)) for number in (0, 2, 3))
    assert (head.stop, head.cursor.length) == (Stop.CONTINUED, 6)
    assert (tail.stop, tail.line.parent, tail.line.ordinal) == (Stop.SPLIT, 0, 1)
    assert (tail.line.split_at, tail.cursor.length) == (6, 4)
    assert rows(after) == [[0], [0, 1, 2], [0, 2], [0, 3], []]
    assert (line.cursor.clock, line.cursor.position) == (12, 20)  # later than what it forgot
    assert (line.line.segment, line.line.opened) == (1, 2)
    assert int(lines.successor(after, jnp.int32(0))) == 3
    assert not books.outstanding(after, jnp.int32(0)).any() and not books.outstanding(after, jnp.int32(3)).any()


def test_open_children_go_over_and_the_tail_stays():
    after = forget(books.open_child(parent_and_child(), jnp.int32(0)))
    assert after.threads.line.parent[2:4].tolist() == [4, 0]
    assert np.flatnonzero(books.opened(after, jnp.int32(4))).tolist() == [2]


@pytest.mark.parametrize("onlooker", [dict(ended=False), dict(ended=False, live=True)])
def test_refused_while_an_unfinished_thread_looks_on(onlooker):
    book = parent_and_child(**onlooker)
    jax.tree.map(np.testing.assert_array_equal, forget(book), book)
    assert lines.splittable(parent_and_child(), jnp.int32(0)) and not lines.splittable(book, jnp.int32(0))


def test_refused_to_live_threads_though_nobody_looks_on():
    live = parent_and_child(ended=False, live=True)
    jax.tree.map(np.testing.assert_array_equal, forget(live, thread=1, start=1), live)
    assert lines.splittable(parent_and_child(ended=False), jnp.int32(1))


def test_a_full_table_ends_the_problem_and_cuts_nothing():
    book = parent_and_child()
    full = forget(book.replace(used=5))
    assert (full.stop, full.used) == (Stop.THREADS_FULL, 5)
    np.testing.assert_array_equal(full.threads.cursor.length, book.threads.cursor.length)
    np.testing.assert_array_equal(full.sees, book.sees)


@pytest.mark.parametrize(("row", "freed"), [([0], [2]), ([2], []), ([0, 2], []), ([], [0, 0, 2])])
def test_slots_are_free_when_nobody_sees_any_token_of_a_run(row, freed):
    """The line sees the head, the tail (whose first tokens stand in the head's last run), both, or neither."""
    book = parent_and_child()
    after = lines.split(
        book, jnp.int32(0), jnp.int32(6), books.bits(jnp.isin(jnp.arange(5), jnp.array(row)), 1), jnp.int32(20)
    )
    after = after.replace(page_owner=after.page_owner.at[:3].set(jnp.array([0, 0, 2], jnp.int32)))
    kept = [owner for owner in (0, 0, 2) if owner not in freed]
    assert [int(owner) for owner in lines.free_pages(after).page_owner[:3] if owner >= 0] == kept


@given(st.data())
def test_slots_and_pages_of_what_was_cut_off_get_its_number(data):
    """Two threads take turns to write, with waits between; one is cut anywhere, its last token perhaps never fed."""
    order = data.draw(st.lists(st.sampled_from([0, 1]), min_size=4, max_size=30).filter(lambda x: x.count(0) > 1))
    waits = data.draw(st.lists(st.integers(1, 3), min_size=len(order), max_size=len(order)))
    start, unfed = data.draw(st.integers(1, order.count(0) - 1)), data.draw(st.booleans())
    owners, places, clocks = [], {0: [], 1: []}, np.cumsum(waits)
    for thread in order:
        if len(places[thread]) % PAGE == 0:
            owners.append(thread)
        base = max(run for run, owner in enumerate(owners) if owner == thread) * PAGE
        places[thread].append(base + len(places[thread]) % PAGE)
    turn = {0: iter(places[0]), 1: iter(places[1])}
    place = [next(turn[thread]) for thread in order]
    owner, clock, log_clock = np.full(64, -1), np.zeros(64, int), np.full(64, -1)
    owner[place], clock[place], log_clock[place] = order, clocks, clocks
    if unfed:
        owner[places[0][-1]] = log_clock[places[0][-1]] = -1
    pad = np.array(owners + [-1] * (SMALL.pages - len(owners)))
    first = np.array(
        [PAGE * owners[:run].count(thread) for run, thread in enumerate(owners)] + [0] * (len(pad) - len(owners))
    )
    book = parent_and_child().replace(page_owner=pad, log_owner=pad, log_first=first)
    book = book.replace(threads=book.threads.where(jnp.arange(5) == 0, clock=clocks[-1], length=order.count(0)))
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], forget(book, start=start))
    slots = pool.Slots(jnp.asarray(owner, jnp.int32)[None], jnp.asarray(clock, jnp.int32)[None])
    slots, after = pool.relabel(slots, jnp.asarray(log_clock)[None], batch, SMALL)

    expected = owner.copy()
    cut = [slot for slot in places[0][start:] if owner[slot] >= 0]
    expected[cut] = 2
    np.testing.assert_array_equal(slots.owner[0], expected)
    np.testing.assert_array_equal(slots.clock[0], clock)
    whole = [2 if run * PAGE in cut else thread for run, thread in enumerate(owners)]
    np.testing.assert_array_equal(after.page_owner[0][: len(owners)], whole)
