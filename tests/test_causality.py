"""Who waited for whom where lines go on, are split, are killed: worked out by hand, and as the oracle counted."""

import dataclasses
import json

import numpy as np
import pytest

import racing
from apr_jax.evaluate import metrics
from apr_jax.evaluate.causality import causality, depths
from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript, read, write


def record(threads, entries, sees=()):
    """Of threads (path, parent, stop, segment) and entries (thread, sampled, clock, predictor)."""
    thread, sampled, clock, predictor = (np.array(column) for column in zip(*entries, strict=True))
    index = np.array([np.sum((thread[:i] == t) & (clock[:i] >= 0)) for i, t in enumerate(thread)])
    index, nothing = np.where(clock >= 0, index, -1), np.full(len(entries), np.nan)
    source = np.where(sampled, Source.SAMPLED, Source.FED)
    log = Log(thread, thread, index, index, clock, source, nothing, nothing, predictor, np.zeros_like(clock))
    matrix = np.eye(len(threads), dtype=bool)
    matrix[tuple(np.array(sees, int).reshape(-1, 2).T)] = True
    transcript = Transcript(0, 0, threads[0][2], tuple(ThreadRecord(*each) for each in threads), matrix, log, 0)
    depth = depths(causality(transcript), transcript.log.sampled)
    return dataclasses.replace(transcript, log=dataclasses.replace(log, depth=depth))


def test_a_line_that_goes_on_counts_on():
    """The root forks a child and goes on, at the join, as a thread that does not see the old one."""
    transcript = record(
        [((), -1, Stop.CONTINUED), ((), -1, Stop.END, 1), ((0,), 0, Stop.END)],
        [
            (0, False, 1, -1), (0, True, 2, 0), (0, True, -1, 1),
            (1, False, 5, -1), (1, True, -1, 3),
            (2, False, 3, -1), (2, True, 4, 5), (2, True, -1, 6),
        ],
    )  # fmt: skip
    order = causality(transcript)
    assert order.waits_for[4] == (2, 7) and order.forks == ((2, 2),) and order.joins == ((2, 3),)
    assert transcript.log.depth.tolist() == [0, 1, 2, 4, 5, 2, 3, 4]
    assert metrics.critical_path(transcript) == metrics.recomputed_critical_path(transcript) == 2 + 2 + 1
    assert metrics.threads(transcript) == 2 and metrics.forked(transcript)
    assert metrics.parallel_ratio(transcript) == pytest.approx(2 / 5)


def test_what_was_split_off_still_counts():
    """The root forgets its second and third token: they are no child's."""
    transcript = record(
        [((), -1, Stop.CONTINUED), ((), -1, Stop.END, 1), ((0,), 0, Stop.SPLIT)],
        [
            (0, False, 1, -1), (0, True, 2, 0),
            (1, False, 4, -1), (1, True, -1, 2),
            (2, True, 3, 1), (2, True, -1, 4),
        ],
        sees=[(1, 0), (2, 0)],
    )  # fmt: skip
    order = causality(transcript)
    assert order.waits_for[3] == (5,) and order.forks == order.joins == ()
    assert transcript.log.depth.tolist() == [0, 1, 3, 4, 2, 3]
    assert metrics.critical_path(transcript) == metrics.recomputed_critical_path(transcript) == 4
    assert metrics.threads(transcript) == 1 and not metrics.forked(transcript)
    assert metrics.parallel_ratio(transcript) == 0


def test_nobody_waits_for_a_rival_that_was_killed():
    """The first child ends after two tokens; the other forked and waits, what it waits for has ended after five."""
    transcript = record(
        [((), -1, Stop.END), ((0,), 0, Stop.END), ((1,), 0, Stop.KILLED), ((1, 0), 2, Stop.END)],
        [
            (0, False, 1, -1), (0, True, -1, 0), (0, False, 8, -1), (0, True, -1, 2),
            (1, False, 2, -1), (1, True, 3, 4), (1, True, -1, 5),
            (2, False, 2, -1), (2, True, 3, 7), (2, True, -1, 8),
            (3, False, 4, -1), (3, True, 5, 10), (3, True, 6, 11), (3, True, -1, 12),
        ],
    )  # fmt: skip
    order = causality(transcript)
    assert order.waits_for[3] == (1, 6) and order.joins == ((1, 2),)
    assert transcript.log.depth[transcript.log.sampled].tolist() == [1, 4, 2, 3, 2, 3, 4, 5, 6]
    assert metrics.critical_path(transcript) == metrics.recomputed_critical_path(transcript) == 4
    assert metrics.generated_tokens(transcript) == 9
    ended = (dataclasses.replace(transcript.threads[0], stop=Stop.KILLED), *transcript.threads[1:])
    assert metrics.critical_path(dataclasses.replace(transcript, threads=ended)) == 6  # all were in flight


def test_what_a_shared_budget_cuts_off_is_not_waited_for():
    """A child is ended while it waits for two: one has ended, the other is killed. It feeds its last token, and is seen."""
    transcript = record(
        [((), -1, Stop.END), ((0,), 0, Stop.SHARED), ((0, 0), 1, Stop.END), ((0, 1), 1, Stop.KILLED)],
        [
            (0, False, 1, -1), (0, True, -1, 0), (0, False, 8, -1), (0, True, -1, 2),
            (1, False, 2, -1), (1, True, 7, 4),
            (2, False, 3, -1), (2, True, 4, 6), (2, True, -1, 7),
            (3, False, 3, -1), (3, True, 4, 9), (3, True, 5, 10), (3, True, -1, 11),
        ],
        sees=[(0, 1)],
    )  # fmt: skip
    assert causality(transcript).waits_for[3] == (1, 5)
    assert metrics.critical_path(transcript) == metrics.recomputed_critical_path(transcript) == 3


def test_a_join_by_name_follows_whom_it_names(tmp_path):
    """The root forks two, waits for the first by name, which reads much and says little, then joins the other, which has ended."""
    transcript = record(
        [((), -1, Stop.END, 0, -1, 0, -1), ((0,), 0, Stop.END, 0, -1, 0, 5), ((1,), 0, Stop.END, 0, -1, 0, 6)],
        [
            (0, False, 1, -1), (0, True, 2, 0), (0, True, 6, 1), (0, True, 7, 2), (0, True, -1, 3),
            (1, False, 2, -1), (1, False, 3, -1), (1, False, 4, -1), (1, False, 5, -1), (1, True, -1, 8),
            (2, False, 2, -1), (2, True, 3, 10), (2, True, 4, 11), (2, True, -1, 12),
        ],
    )  # fmt: skip
    order = causality(transcript)
    assert order.waits_for[3] == (2, 9) and order.waits_for[4] == (3, 13), "the second join left no gap"
    assert order.joins == ((1, 2), (2, 3)) and order.forks == ((1, 1), (1, 2))
    assert transcript.log.depth[transcript.log.sampled].tolist() == [1, 2, 3, 5, 2, 2, 3, 4]
    assert metrics.critical_path(transcript) == metrics.recomputed_critical_path(transcript) == 5

    file = tmp_path / "beside.jsonl"
    write(file, [transcript], lambda tokens: "")
    ((again, _),) = read(file)
    assert again.threads == transcript.threads and metrics.recomputed_critical_path(again) == 5
    line = json.loads(file.read_text())
    for thread in line["threads"]:
        del thread["joined"]
    file.write_text(json.dumps(line) + "\n")  # as earlier versions wrote it
    ((earlier, _),) = read(file)
    assert [thread.joined for thread in earlier.threads] == [None] * 3
    assert metrics.recomputed_critical_path(earlier) == 6, "a bound: it takes all that have ended for joined"


@pytest.mark.parametrize("fed", [True, False])
def test_a_parent_that_forks_again_without_being_fed_has_waited(fed):
    """A coordinator of two rounds: one of the second round goes on from the shorter of the first, both follow the longer.

    Its prompt may be of one token, which it leaves to its children.
    """
    shift = int(fed)
    prompt = [(0, False, 1, -1)] * fed
    clocks = lambda *values: [value + shift for value in values]
    one, two, three, four, five = clocks(1, 2, 3, 4, 5)
    transcript = record(
        [((), -1, Stop.END), *(((number,), 0, Stop.END) for number in range(4))],
        [
            *prompt,
            (1, False, one, -1), (1, True, -1, shift),
            (2, False, one, -1), (2, True, two, shift + 2), (2, True, three, shift + 3), (2, True, -1, shift + 4),
            (3, False, four, -1), (3, True, -1, shift + 6),
            (4, False, four, -1), (4, True, five, shift + 8), (4, True, -1, shift + 9),
        ],
        sees=[*([(i, 0) for i in range(1, 5)] if fed else []), (3, 1), (4, 2)],
    )  # fmt: skip
    order = causality(transcript)
    first, longer, again = shift + 1, shift + 5, shift + 7
    assert order.waits_for[again] == (first, longer) and order.joins == ()
    assert order.waits_for[shift + 9] == (first, longer - 1, longer)  # it also sees the last but one
    assert order.forks == ((-1, 1), (-1, 2), (longer, 3), (longer, 4))
    assert transcript.log.depth[transcript.log.sampled].tolist() == [1, 1, 2, 3, 4, 4, 5]
    assert metrics.critical_path(transcript) == metrics.recomputed_critical_path(transcript) == 5
    assert metrics.makespans(transcript, [2]) == [5]


@pytest.mark.parametrize(
    "protocol",
    [
        racing.Racing(**racing.WORDS, max_depth=2, kill=11),
        racing.Racing(**racing.WORDS, context="shared", max_depth=2, first=True, returns="stitch"),
        racing.Racing(**racing.WORDS, max_depth=2, shared=6, returns="stitch"),
        racing.Racing(
            **racing.WORDS, context="shared", max_depth=2, turn=10, keeps=False, renew=True, returns="stitch"
        ),
        racing.Racing(**racing.WORDS, context="shared", max_depth=2, cut=10, first=True, kill=11),
        racing.Racing(**racing.WORDS, context="live", turn=10, first=True, kill=11, returns="stitch"),
        racing.Racing(**racing.WORDS, context="live", together=6, kill=11, returns="stitch"),
    ],
    ids=["kill", "first", "shared", "go on", "split", "live", "together"],
)
def test_counts_of_the_oracle_are_found_again(protocol):
    problems, expected, _ = racing.cases(protocol, 40)
    for problem, right in zip(problems, expected, strict=True):
        sampled = right.log.sampled
        np.testing.assert_array_equal(depths(causality(right), sampled)[sampled], right.log.depth[sampled])
        assert (
            metrics.critical_path(right) == metrics.recomputed_critical_path(right) == racing.count(protocol, problem)
        )
