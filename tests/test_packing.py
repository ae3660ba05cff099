"""Packed rows against brute force: what is visible, what is predicted, and that nothing is lost."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.model import transformer
from apr_jax.model.attention import packed_blocks
from apr_jax.model.blockwise import reached, skipped
from apr_jax.model.config import PRESETS
from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript
from apr_jax.train.losses import rows_loss
from apr_jax.train.packing import Rows, groups, pack


def transcript(lengths, sees, sources, clocks, number=0) -> Transcript:
    """A hand-made record: thread t has `lengths[t]` fed entries and one sampled entry that is never fed.

    Args:
        lengths: fed entries of each thread.
        sees: Bool [M, M].
        sources: per thread, for every entry but the first, whether it was sampled.
        clocks: per thread, of its fed entries.
        number: of the problem; makes tokens differ between transcripts.
    """
    columns = {name: [] for name in Log.__dataclass_fields__ if name != "drawn"}
    for thread, length in enumerate(lengths):
        first = len(columns["token"])
        for index in range(length + 1):
            fed, sampled = index < length, index > 0 and (sources[thread][index - 1] or index == length)
            columns["token"].append((7 * number + 3 * first + index) % 50)
            columns["thread"].append(thread)
            columns["index"].append(index if fed else -1)
            columns["position"].append(index + thread if fed else -1)
            columns["clock"].append(clocks[thread][index] if fed else -1)
            columns["source"].append(Source.SAMPLED if sampled else Source.FED)
            columns["logprob"].append(np.nan)
            columns["behaviour_logprob"].append(np.nan)
            columns["predictor"].append(first + index - 1 if sampled else -1)
            columns["depth"].append(0)
    log = Log(**{name: np.array(values) for name, values in columns.items()})
    records = tuple(ThreadRecord((i,), -1 if i == 0 else 0, Stop.END) for i in range(len(lengths)))
    return Transcript(number, 0, Stop.END, records, np.array(sees), log, 0)


@st.composite
def transcripts(draw) -> list[Transcript]:
    made = []
    for number in range(draw(st.integers(0, 4))):
        threads = draw(st.integers(1, 4))
        lengths = draw(st.lists(st.integers(1, 6), min_size=threads, max_size=threads))
        sees = np.eye(threads, dtype=bool) | np.array(
            draw(
                st.lists(
                    st.lists(st.booleans(), min_size=threads, max_size=threads), min_size=threads, max_size=threads
                )
            )
        )
        sources = [draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths]
        gaps = [draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)) for n in lengths]
        starts = [draw(st.integers(0, 9)) for _ in lengths]
        clocks = [[start + c for c in itertools.accumulate(gap)] for start, gap in zip(starts, gaps, strict=True)]
        made.append(transcript(lengths, sees, sources, clocks, number))
    return made


BATCH = 16
blocks = jax.jit(packed_blocks, static_argnums=3)


def sees_entry(record: Transcript, query: int, key: int) -> bool:
    """The rule of the transcript, entry by entry."""
    log = record.log
    if log.index[query] < 0 or log.index[key] < 0:
        return False
    if log.thread[query] == log.thread[key]:
        return log.index[key] <= log.index[query]
    return bool(record.sees[log.thread[query], log.thread[key]]) and log.clock[key] < log.clock[query]


@settings(max_examples=60, deadline=None)
@given(transcripts(), st.sampled_from([(24, 5), (31, 24)]))
def test_rows_against_brute_force(records, sizes):
    length, chunk = sizes
    rows, origin, count = pack(records, length, threads=5)
    more = BATCH - len(rows)  # one shape for all examples: compiled once
    padded = [np.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)]) for x in (rows.owner, rows.clock, rows.sees)]
    seen = np.zeros((len(rows), length, length), bool)
    for block in blocks(*padded, chunk):
        block = np.asarray(block)[: len(rows)]
        seen[:, block.shape[2] - block.shape[1] : block.shape[2], : block.shape[2]] = block

    places = {}  # (transcript, entry) -> (row, column)
    for row, column in np.argwhere(rows.owner >= 0):
        key = (int(origin.transcript[row, column]), int(origin.entry[row, column]))
        assert key not in places
        places[key] = (int(row), int(column))
    fed = {(n, int(e)) for n, record in enumerate(records) for e in np.flatnonzero(record.log.index >= 0)}
    assert set(places) == fed, "every entry that was fed stands in the rows once"

    for (number, entry), (row, column) in places.items():
        log = records[number].log
        assert rows.token[row, column] == log.token[entry]
        assert rows.position[row, column] == log.position[entry]
        for other in range(length):
            target = (int(origin.transcript[row, other]), int(origin.entry[row, other]))
            wanted = target[0] == number and sees_entry(records[number], entry, target[1])
            assert seen[row, column, other] == wanted
            assert not wanted or other <= column, "rows are causal"
        # What an entry sees stands in its own row.
        for key in np.flatnonzero([sees_entry(records[number], entry, e) for e in range(len(log))]):
            assert places[number, int(key)][0] == row

    labels = {}
    for row, column in np.argwhere(rows.label >= 0):
        number, sampled = int(origin.transcript[row, column]), int(origin.label_entry[row, column])
        log = records[number].log
        assert places[number, int(log.predictor[sampled])] == (row, column)
        assert rows.label[row, column] == log.token[sampled] and rows.weight[row, column] == 1
        labels[number, sampled] = labels.get((number, sampled), 0) + 1
    drawn = {(n, int(e)) for n, record in enumerate(records) for e in np.flatnonzero(record.log.sampled)}
    assert labels == dict.fromkeys(drawn, 1), "every sampled token is a label once"
    assert not rows.weight[rows.label < 0].any()
    assert not seen[rows.owner < 0].any() and not seen.swapaxes(1, 2)[rows.owner < 0].any(), "padding is alone"
    assert (count.entries, count.labels, count.too_long, count.places) == (len(fed), len(drawn), 0, len(rows) * length)


def simple(lengths, number=0) -> Transcript:
    sources = [[True] * n for n in lengths]
    return transcript(lengths, np.eye(len(lengths), dtype=bool), sources, [list(range(n)) for n in lengths], number)


def test_first_fit_by_hand():
    rows, origin, count = pack([simple([5, 3]), simple([4, 2, 3], 1)], length=8, threads=4)
    # 5 and 3 fill row 0; 4, 2 fill 6 of row 1, 3 needs a row of its own.
    assert rows.owner.tolist() == [[0] * 5 + [1] * 3, [0] * 4 + [1] * 2 + [-1] * 2, [0] * 3 + [-1] * 5]
    assert origin.transcript[1].tolist() == [1] * 6 + [-1] * 2
    assert count.components == 5 and count.padding == pytest.approx(7 / 24)


def family(sees, clocks, paths=None) -> Transcript:
    """Threads that see each other as `sees` says, with entries at these clocks."""
    record = transcript([len(each) for each in clocks], sees, [[True] * len(each) for each in clocks], clocks)
    if paths is None:
        return record
    threads = tuple(dataclasses.replace(t, path=path) for t, path in zip(record.threads, paths, strict=True))
    return dataclasses.replace(record, threads=threads)


def order_of(record: Transcript, length: int = 64) -> list[tuple[int, int]]:
    """The entries of the only row as (thread, clock)."""
    rows, origin, _ = pack([record], length, len(record.threads))
    filled = rows.owner[0] >= 0
    return list(zip(record.log.thread[origin.entry[0][filled]].tolist(), rows.clock[0][filled].tolist(), strict=True))


def test_a_thread_stands_whole_where_it_can():
    """The root forks two children and sees them after they end; the first child has a child of its own, thread 3."""
    sees = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 1]], bool)
    clocks = [[0, 1, 10, 11], [2, 3, 6, 7], [2, 3, 4, 5], [4, 5]]
    found = order_of(family(sees, clocks, [(), (0,), (1,), (0, 0)]))
    whole = [(0, [0, 1]), (1, [2, 3]), (3, [4, 5]), (1, [6, 7]), (2, [2, 3, 4, 5]), (0, [10, 11])]
    assert found == [(thread, clock) for thread, clocks in whole for clock in clocks]


def test_live_siblings_that_see_each_other_stand_by_clock():
    sees = np.array([[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 1]], bool)
    found = order_of(family(sees, [[0, 1], [2, 4, 6], [2, 3, 6], [2, 3, 4]]))
    assert found[:2] == [(0, 0), (0, 1)] and found[-3:] == [(3, 2), (3, 3), (3, 4)]
    assert [clock for _, clock in found[2:-3]] == [2, 2, 3, 4, 6, 6]


def test_siblings_leave_blocks_that_nobody_sees():
    """A root of 32 entries and six children of 32 that see it alone, blocks of 16."""
    sees = np.eye(7, dtype=bool)
    sees[:, 0] = True
    rows, _, _ = pack([family(sees, [list(range(32)), *[list(range(32, 64))] * 6])], 224, 7)
    by_clock = np.lexsort((rows.owner[0], rows.clock[0]))
    live = jax.jit(lambda *of: (reached(*of, 16).sum(), skipped(*of, 16)))
    # The root's two blocks: 1 and 2; each child's two: the root's 2 and 1 or 2 of its own. By clock a block has entries of all.
    assert live(rows.owner, rows.clock, rows.sees) == (3 + 6 * 7, pytest.approx(1 - 45 / 105))
    assert live(rows.owner[:, by_clock], rows.clock[:, by_clock], rows.sees) == (14 * 15 / 2, 0)


def test_the_loss_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    sees = np.eye(4, dtype=bool)
    sees[:, 0] = sees[0] = True
    clocks = [
        [0, 1, 2, 12, 13, 14],
        *[np.sort(rng.choice(np.arange(3, 12), 8, replace=False)).tolist() for _ in range(3)],
    ]
    rows, _, _ = pack([family(sees, clocks)], 36, 4)
    by_clock = np.lexsort((rows.owner[0], rows.clock[0], rows.owner[0] < 0))
    assert (by_clock != np.arange(36)).any()
    moved = Rows(**{
        field.name: getattr(rows, field.name) if field.name == "sees" else getattr(rows, field.name)[:, by_clock]
        for field in dataclasses.fields(Rows)
    })  # fmt: skip
    config = dataclasses.replace(PRESETS["tiny"], layers=2, width=32, ffn=32, heads=2, kv_heads=1, head_dim=16)
    model = transformer.init(config, jax.random.key(0))
    loss = jax.jit(lambda rows: rows_loss(model.graph, model.params, rows, np.zeros(256, np.int32), 1)[1].nll)
    np.testing.assert_allclose(loss(moved), loss(rows), rtol=1e-6)


def test_clocks_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="transcript 0.0: entry 2 has clock 1, .* clocks of a thread ascend"):
        pack([family(np.eye(1, dtype=bool), [[0, 1, 1]])], 8, 2)


def test_rows_are_full_when_their_threads_are():
    rows, _, _ = pack([simple([1, 1, 1, 1, 1])], length=8, threads=2)
    assert rows.owner[:, :3].tolist() == [[0, 1, -1], [0, 1, -1], [0, -1, -1]]


def test_a_given_number_of_rows_is_kept():
    records = [simple([5, 3]), simple([4, 2, 3], 1)]
    rows, origin, count = pack(records, 8, 4, rows=4)
    assert rows.owner.shape == (4, 8) and (rows.owner[3] == -1).all() and (origin.entry[3] == -1).all()
    assert (count.rows, count.places, count.no_room, count.left_out) == (4, 32, 0, 0)
    rows, _, count = pack(records, 8, 4, rows=2)
    assert (rows.owner >= 0).sum() == count.entries == 14
    # The thread with 3 fed entries finds no room; its 3 sampled tokens are lost.
    assert (count.components, count.no_room, count.too_long, count.left_out) == (5, 1, 0, 3)
    rows, _, count = pack([simple([9]), *records], 8, 4, too_long="drop", rows=2)
    assert (count.no_room, count.too_long, count.left_out) == (1, 1, 12)


def test_too_long_is_counted_or_refused():
    record = simple([9, 3])
    with pytest.raises(ValueError, match="a component has 9 entries and 1 threads, rows hold 8 and 2"):
        pack([record], 8, 2)
    rows, _, count = pack([record], 8, 2, too_long="drop")
    assert (count.too_long, count.left_out, count.components, count.entries) == (1, 9, 2, 3)
    assert rows.token.shape == (1, 8)
    with pytest.raises(ValueError, match="allowed are"):
        pack([record], 8, 2, too_long="cut")


def test_weights_follow_the_sampled_entry():
    record = simple([3])
    weight = np.array([9.0, 0.25, 0.5, 0.75])  # of log entries; entry 0 was fed, entry 3 never was
    rows, _, _ = pack([record], 4, 1, weights=[weight])
    assert rows.weight.tolist() == [[0.25, 0.5, 0.75, 0.0]]


def test_impossible_predictors_are_refused():
    record = simple([3])
    record.log.predictor[2] = 0
    with pytest.raises(ValueError, match="two tokens were sampled from the logits of entry 0"):
        pack([record], 8, 2)
    record.log.predictor[2] = 3
    with pytest.raises(ValueError, match="entry 2 was sampled from entry 3, which was never fed"):
        pack([record], 8, 2)


def test_groups_are_connected_parts():
    sees = np.eye(5, dtype=bool)
    sees[3, 1] = sees[3, 4] = True
    assert groups(sees).tolist() == [0, 1, 2, 1, 1]
