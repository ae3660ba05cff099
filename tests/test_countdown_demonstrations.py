"""Demonstrations as training data: streams by index, transcripts against hand-computed cases and a recurrence."""

import dataclasses
import functools
import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_jax.record import Log, Source, Stop
from apr_jax.tasks.countdown import compact, demonstrations
from apr_jax.tasks.countdown.compact import Segment, ThreadText
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig
from apr_jax.tasks.countdown.problems import PRESETS

VOCABULARY = {piece: k for k, piece in enumerate(compact.SPECIALS + compact.CONTROL + compact.CHARACTERS)}
CONFIG = DemonstrationConfig(beam=(2, 4), sub_beam=(2, 5), promising=0.7)


def encode(text: str) -> list[int]:
    return [VOCABULARY[piece] for piece in compact.pieces(text)]


def by_thread(log: Log, column: str) -> list[list]:
    return [getattr(log, column)[log.thread == thread].tolist() for thread in range(log.thread.max() + 1)]


def test_transcript_by_hand():
    threads = (
        ThreadText(
            (),
            -1,
            (
                Segment("<s>1<go>", False),
                Segment("2<wait>", True),
                Segment("<result>3<go>", False),
                Segment("4<end>", True),
            ),
            0,
        ),
        ThreadText((0,), 0, (Segment("<spawn><go>", False), Segment("56<end>", True)), 2),
        ThreadText((1,), 0, (Segment("<spawn><go>", False), Segment("7<end>", True)), 2),
    )
    transcript = demonstrations.to_transcript(threads, encode, problem=5, number=2)
    log = transcript.log
    # root: <s> 1 <go> 2 <wait> <result> 3 <go> 4 <end>; child 0: <spawn> <go> 5 6 <end>; child 1: <spawn> <go> 7 <end>
    assert by_thread(log, "clock") == [[0, 1, 2, 3, 8, 9, 10, 11, 12, -1], [4, 5, 6, 7, -1], [4, 5, 6, -1]]
    assert by_thread(log, "index") == [[0, 1, 2, 3, 4, 5, 6, 7, 8, -1], [0, 1, 2, 3, -1], [0, 1, 2, -1]]
    assert by_thread(log, "depth") == [[0, 0, 0, 1, 2, 5, 5, 5, 6, 7], [2, 2, 3, 4, 5], [2, 2, 3, 4]]
    assert by_thread(log, "predictor") == [[-1, -1, -1, 2, 3, -1, -1, -1, 7, 8], [-1, -1, 11, 12, 13], [-1, -1, 16, 17]]
    assert by_thread(log, "sampled") == [[0, 0, 0, 1, 1, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1]]
    assert log.position.tolist() == log.index.tolist()
    assert log.token.tolist() == encode("".join(thread.text for thread in threads))
    assert np.isnan(log.logprob).all() and np.isnan(log.behaviour_logprob).all()
    assert set(log.source) == {Source.SAMPLED, Source.FED}
    assert transcript.sees.tolist() == np.eye(3, dtype=bool).tolist()
    assert (transcript.problem, transcript.sample, transcript.stop, transcript.peak_context) == (5, 2, Stop.END, 9)
    assert [(t.path, t.parent, t.stop) for t in transcript.threads] == [
        ((), -1, Stop.END), ((0,), 0, Stop.END), ((1,), 0, Stop.END)
    ]  # fmt: skip


def test_transcript_of_two_forks_one_nested_by_hand():
    end = Segment("<end>", True)
    threads = (
        ThreadText(
            (),
            -1,
            (
                Segment("<s>", False),
                Segment("<wait>", True),
                Segment("<go>", False),
                Segment("<wait>", True),
                Segment("<go>", False),
                end,
            ),
            0,
        ),
        ThreadText((0,), 0, (Segment("1", False), Segment("<wait>", True), Segment("<go>", False), end), 2),
        ThreadText((0, 0), 1, (Segment("1", False), Segment("23<end>", True)), 2),
        ThreadText((1,), 0, (Segment("1", False), end), 4),
    )
    log = demonstrations.to_transcript(threads, encode).log
    # The inner child starts after the row at clock 1 and ends at 4; its parent's <wait> comes at 5, the root's at 7.
    assert by_thread(log, "clock") == [[0, 7, 8, 10, 11, -1], [1, 5, 6, -1], [2, 3, 4, -1], [9, -1]]
    assert by_thread(log, "depth") == [[0, 1, 6, 7, 8, 9], [1, 2, 5, 6], [2, 3, 4, 5], [7, 8]]


def recurrence(threads: tuple[ThreadText, ...], measure: str) -> list[list[int]]:
    """Clocks or depths of all entries, each straight from its definition."""
    texts = [
        [(piece, s.generated, place) for place, s in enumerate(t.segments) for piece in compact.pieces(s.text)]
        for t in threads
    ]
    of_clock = measure == "clock"  # clocks look at what was fed, depths at what was sampled

    @functools.cache
    def value(thread: int, entry: int) -> int:
        word, generated, place = texts[thread][entry]
        before = []
        if entry:
            before.append(value(thread, entry - 1))
        elif threads[thread].parent >= 0:
            parent = threads[thread].parent
            fork = next(k for k, t in enumerate(texts[parent]) if t[2] == threads[thread].forked_after) - 1
            before.append(value(parent, fork - of_clock))
        join = place + 1 if of_clock and word == "<wait>" else place
        if (of_clock and word == "<wait>") or (not of_clock and entry and texts[thread][entry - 1][0] == "<wait>"):
            waited = [k for k, t in enumerate(threads) if t.parent == thread and t.forked_after == join]
            before += [value(k, len(texts[k]) - 1 - of_clock) for k in waited]
        return max(before, default=-1) + 1 if of_clock else max(before, default=0) + generated

    return [[value(thread, entry) for entry in range(len(text))] for thread, text in enumerate(texts)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(("apr", "sos")))
def test_transcript_follows_the_rules(seed, method):
    config = dataclasses.replace(CONFIG, setting=PRESETS["three"], beam=(2, 3), sub_beam=(2, 3))
    _, threads = demonstrations.sample(method, config, seed, 0)
    log = demonstrations.to_transcript(threads, encode).log
    assert [row[:-1] for row in by_thread(log, "clock")] == [row[:-1] for row in recurrence(threads, "clock")]
    assert by_thread(log, "depth") == recurrence(threads, "depth")
    assert by_thread(log, "token") == [encode(thread.text) for thread in threads]
    assert log.depth.max() == compact.count(threads).critical
    assert log.sampled.sum() == sum(compact.count(threads).generated)


@pytest.mark.parametrize("method", ["apr", "sos"])
def test_stream_depends_on_seed_and_index_only(method):
    first = list(itertools.islice(demonstrations.stream(method, CONFIG, 3), 6))
    assert list(itertools.islice(demonstrations.stream(method, CONFIG, 3, start=4), 2)) == first[4:]
    assert demonstrations.sample(method, CONFIG, 3, 2) == first[2]
    assert demonstrations.sample(method, CONFIG, 4, 2) != first[2]
    assert demonstrations.sample(method, CONFIG, 3, 2, "val") != first[2]
    assert len({problem for problem, _ in first}) == 6


def test_solved_only():
    config = dataclasses.replace(CONFIG, beam=(1, 2), sub_beam=(1, 2), solved_only=True)
    for index in range(8):
        _, threads = demonstrations.sample("apr", config, 0, index)
        assert compact.parse_answer(threads[0].text)


def test_beams_are_drawn_from_their_ranges():
    problem, _ = demonstrations.sample("apr", CONFIG, 0, 0)
    config = dataclasses.replace(CONFIG, beam=(3, 5), sub_beam=(1, 7), promising=1.0)
    traces = [demonstrations.trace(problem, "apr", config, random.Random(k)) for k in range(40)]
    assert {len(trace.steps[0].children) for trace in traces} == {3, 4, 5}
    below = {(len(t.steps[0].children), len(t.steps[0].searches[0].steps[0].children)) for t in traces}
    assert all(beam <= sub_beam <= 7 for beam, sub_beam in below) and max(below)[1] > 5
    same = dataclasses.replace(config, sub_beam=None)
    traces = [demonstrations.trace(problem, "apr", same, random.Random(k)) for k in range(20)]
    assert all(len(t.steps[0].children) == len(t.steps[0].searches[0].steps[0].children) for t in traces)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam": (0, 3)}, r"beam: \(0, 3\)"),
        ({"sub_beam": (5, 3)}, r"sub_beam: \(5, 3\)"),
        ({"beam": (2, 9)}, "sub_beam: its largest value 5 is below that of beam, 9"),
        ({"promising": -0.1}, "promising: -0.1"),
        ({"order": "sorted"}, "order: 'sorted'"),
    ],
)
def test_config_is_validated(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_unknown_method():
    with pytest.raises(ValueError, match="method: 'bfs' is not one of apr, sos"):
        demonstrations.sample("bfs", CONFIG, 0, 0)
