"""Lines of reasoning that go on as new threads: the compiled loop against the oracle, the book and the record."""

import jax.numpy as jnp
import numpy as np
import pytest

import oracle
import racing
from apr_jax import record
from apr_jax.decode import Sizes, Stop, lines
from apr_jax.decode import book as books
from apr_jax.decode.forks import fork
from test_engine import SIZES, check_packed

KILL, TURN = 11, 10
VARIANTS = {
    "and sees what it wrote": (racing.Racing(**racing.WORDS, max_depth=2, turn=TURN), "scarce rows"),
    "and forgets it, and at joins": (
        racing.Racing(**racing.WORDS, context="shared", max_depth=2, turn=TURN, keeps=False, renew=True, returns="stitch"),
        "one row",
    ),
    "live": (
        racing.Racing(**racing.WORDS, context="live", turn=TURN, returns="stitch", first=True, kill=KILL), "plenty",
    ),
    "in races": (
        racing.Racing(
            **racing.WORDS, context="shared", max_depth=2, turn=TURN, renew=True, returns="stitch", first=True, shared=12,
            kill=KILL,
        ),
        "no feed steps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_line_goes_on(name):
    protocol, sizes = VARIANTS[name]
    problems, expected, events = racing.cases(protocol, 50, orders=10)
    assert events["CONTINUED"] >= 15, events
    for done, right in zip(racing.decoded(protocol, SIZES[sizes], problems), expected, strict=True):
        oracle.compare(done, right)
    assert racing.engine(protocol, SIZES[sizes]).traces == 1


def test_training_gives_the_rollout_again():
    protocol, sizes = VARIANTS["and forgets it, and at joins"]
    problems, _, _ = racing.cases(protocol, 50, orders=10)
    check_packed(racing.decoded(protocol, SIZES[sizes], problems), racing.model(), 1e-9)


def test_a_record_on_disk_keeps_the_segments(tmp_path):
    _, expected, _ = racing.cases(VARIANTS["and sees what it wrote"][0], 50, orders=10)
    record.write(tmp_path / "done.jsonl", expected, text=str)
    again = [done for done, _ in record.read(tmp_path / "done.jsonl")]
    assert [done.threads for done in again] == [right.threads for right in expected]
    assert any(thread.segment > 1 for done in again for thread in done.threads)


# ---- one book


def two_children() -> books.Book:
    """A root that waits for two live children; each thread owns the run of its number."""
    sizes = Sizes(problems=1, lanes=1, rows=1, threads=4, slots=128, page_size=16, log=128, attention_block=128)
    book = books.open_root(books.empty(sizes), samples=True).replace(active=True)
    for _ in range(2):
        book = books.open_child(book, jnp.int32(0))
    root = jnp.int32(0)
    book = fork(book, root, books.opened(book, root), context=root, live=True)
    return book.replace(page_owner=jnp.where(jnp.arange(sizes.pages) < 3, jnp.arange(sizes.pages), books.NOBODY))


def rows(book: books.Book) -> list[list[int]]:
    return [np.flatnonzero((int(row[0]) >> np.arange(4)) & 1).tolist() for row in book.sees]


def test_a_new_thread_takes_the_place_of_the_old_one():
    book = two_children()
    book = book.replace(threads=book.threads.where(jnp.arange(4) == 1, clock=7, generated=5, critical_path=6, opened=2))
    after = lines.go_on(book, jnp.int32(1), books.one_bit(jnp.int32(1), 1), jnp.int32(30))
    new = after.thread(jnp.int32(3))
    line, cursor = new.line, new.cursor
    assert (line.parent, line.ordinal, line.segment, cursor.clock, cursor.position) == (0, 0, 1, 7, 30)
    assert (cursor.generated, cursor.critical_path, line.opened, cursor.fed, cursor.length) == (5, 6, 2, 0, 0)
    assert (line.draw_key == book.threads.line.draw_key[1]).all()
    assert rows(after)[1:] == [[0, 1, 2], [0, 1, 2, 3], [1, 2, 3]]  # its sibling is live with it, the old one has ended
    assert after.threads.stop[1] == Stop.CONTINUED and after.threads.bond.awaited[:4].tolist() == [
        False,
        True,
        True,
        True,
    ]
    assert np.flatnonzero(books.awaited(after, jnp.int32(0))).tolist() == [2, 3]
    assert int(lines.successor(after, jnp.int32(1))) == 3 and int(lines.successor(after, jnp.int32(2))) == 2


def test_what_a_line_forgot_is_freed_when_nobody_sees_it():
    book = two_children()
    forgot = lines.go_on(book, jnp.int32(1), books.one_bit(jnp.int32(0), 1), jnp.int32(0))
    assert lines.free_pages(forgot).page_owner[:3].tolist() == [0, 1, 2]  # the sibling still sees it
    alone = lines.free_pages(lines.kill(forgot, jnp.arange(4) == 2))
    assert alone.page_owner[:3].tolist() == [0, books.NOBODY, 2]  # the new thread sees its sibling


def test_an_open_fork_goes_over_and_a_full_table_ends_the_problem():
    book = two_children()
    moved = lines.go_on(book, jnp.int32(0), books.one_bit(jnp.int32(0), 1), jnp.int32(0))
    assert moved.threads.line.parent[1:3].tolist() == [3, 3]
    assert np.flatnonzero(books.awaited(moved, jnp.int32(3))).tolist() == [1, 2]
    assert moved.threads.pace.group[1:3].tolist() == [1, 1] and moved.threads.pace.scope[1:3].tolist() == [1, 1]
    full = lines.go_on(moved, jnp.int32(1), books.one_bit(jnp.int32(1), 1), jnp.int32(0))
    assert full.stop == Stop.THREADS_FULL and full.used == 4
