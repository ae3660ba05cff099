"""Live threads that see each other's tokens of the same clock: the compiled loop against the oracle, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
import racing
from apr_jax import record
from apr_jax.decode import Sizes, Stop, schedule
from apr_jax.decode import book as books
from apr_jax.decode.threads import FINISHED
from apr_jax.protocols import SpawnJoin
from apr_jax.train.packing import pack
from test_engine import HOLD, SIZES

KILL, TURN = 11, 10
LIVE = dict(racing.WORDS, context="live")
TIGHT = Sizes(
    problems=3,
    lanes=4,
    rows=12,
    feed_tiles=2,
    feed_chunk=4,
    feed_threshold=2,
    page_size=4,
    log_page_size=4,
    queue=64,
    outbox=3,
    **HOLD,
)
# Each with the sizes it runs on, and what must happen often in its problems.
VARIANTS = {
    "message": (racing.Racing(**LIVE, together=6), SIZES["plenty"], ()),
    "stitch": (racing.Racing(**LIVE, together=4, turn=TURN, returns="stitch"), TIGHT, ("CONTINUED",)),
    "races": (
        racing.Racing(**LIVE, together=4, first=True, shared=12, kill=KILL, returns="stitch"), TIGHT, ("first", "kill"),
    ),
    "budgets": (
        racing.Racing(**LIVE, together=3, shared=2, returns="stitch"), SIZES["no feed steps"], ("shared", "SHARED"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_f64_equals_the_oracle(name):
    protocol, sizes, often = VARIANTS[name]
    problems, expected, events = racing.cases(protocol, 50, orders=10)
    assert all(events[what] >= 8 for what in often), events
    both = [right.log.clock[:, None] == right.log.clock for right in expected]
    saw = [oracle.visible(right.log, right.sees, True) for right in expected]
    mates = sum(int((seen & same).sum() - np.diag(seen).sum()) for seen, same in zip(saw, both, strict=True))
    assert mates >= 100, mates
    for done, right in zip(racing.decoded(protocol, sizes, problems), expected, strict=True):
        oracle.compare(done, right)
    assert racing.engine(protocol, sizes).traces == 1


def test_more_than_may_go_together_end_the_problem():
    protocol, sizes, _ = VARIANTS["message"]
    problems, expected, _ = racing.cases(protocol, 50, orders=10)
    found = racing.decoded(dataclasses.replace(protocol, together=2), sizes, problems)
    crowded = 0
    for done, right in zip(found, expected, strict=True):
        births = [right.log.clock[right.log.thread == child][:1].tolist() for child in range(1, len(right.threads))]
        if max((births.count(birth) for birth in births if birth), default=0) > 2:
            assert done.stop == Stop.LANES_FULL
            crowded += 1
        else:
            oracle.compare(done, right)
    assert 5 <= crowded <= 45, crowded


@pytest.mark.parametrize(
    ("sizes", "arithmetic"),
    [
        (SIZES["one row"], "sizes.lanes = 1, sizes.rows = 1"),
        (SIZES["scarce rows"], "lanes must be at least 3 and rows at least problems x 3 = 9"),
        (dataclasses.replace(TIGHT, rows=8), "rows = 8.*problems x 3 = 9"),
    ],
)
def test_sizes_that_cannot_hold_a_group_are_refused(sizes, arithmetic):
    with pytest.raises(ValueError, match=arithmetic):
        racing.engine(racing.Racing(**LIVE, together=3), sizes)


def test_only_live_threads_go_together():
    with pytest.raises(ValueError, match="context must be live"):
        SpawnJoin(**racing.WORDS, context="shared", together=3)


def test_a_group_runs_alone_and_the_oldest_first():
    """Threads 1 and 2 are live with each other, and so are 3 and 4; 5 is alone."""
    sizes = Sizes(problems=1, lanes=3, rows=3, threads=6, slots=128, page_size=16, log=128, attention_block=128)
    book, number = books.empty(sizes).replace(active=True, used=6), jnp.arange(6)
    group = jnp.array([-1, 1, 1, 3, 3, -1])
    book = book.replace(threads=book.threads.where(number > 0, status=books.READY, left=1, group=group, scope=group))
    for ended, ready in (((), [1, 2]), ((1,), [2]), ((1, 2), [3, 4]), ((1, 2, 3, 4), [5])):
        now = book.replace(threads=book.threads.where(jnp.isin(number, jnp.array(ended, int)), status=FINISHED))
        one = jax.tree.map(lambda field: field[None], now)
        assert np.flatnonzero(schedule.runnable(one, groups=True, together=True)[0]).tolist() == ready
    assert not schedule.crowded(one.threads, 2)
    all_of_them = jax.tree.map(lambda field: field[None], book)
    assert schedule.crowded(all_of_them.threads, 1) and not schedule.crowded(all_of_them.threads, 2)


def test_a_record_says_that_its_threads_went_together(tmp_path):
    _, expected, _ = racing.cases(VARIANTS["message"][0], 50, orders=10)
    record.write(tmp_path / "done.jsonl", expected, text=str)
    assert all(again.together for again, _ in record.read(tmp_path / "done.jsonl"))
    with pytest.raises(ValueError, match="same clock"):
        pack(expected, length=1024, threads=64)
