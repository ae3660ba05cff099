"""Counting: numbers worked out by hand, and random fork trees whose counts follow from direct recursion."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forking
import oracle
from apr_jax.evaluate import metrics, outcomes
from apr_jax.evaluate.causality import causality, depths
from apr_jax.evaluate.select import Candidate, Likeliest, Majority, Only, Verifier
from apr_jax.protocols.samples import Samples
from apr_jax.protocols.spawn_join import SpawnJoin
from apr_jax.record import Source, Stop
from experiments import measure_width
from synthetic import Thread, build, random_tree

# Root: 2 fed, generates ab (2), forks two threads: one generates 3 tokens, one 1; two results fed; generates 2 more.
TREE = Thread(("s", "p"), (("a", "b"), [Thread(("x",), (("c", "d", "e"),)), Thread(("y", "z"), (("f",),))], ("g", "h")))


def test_counts_by_hand():
    transcript, _ = build(TREE)
    assert metrics.generated_tokens(transcript) == 2 + 3 + 1 + 2
    assert metrics.fed_tokens(transcript) == 2 + 1 + 2 + 2
    assert metrics.critical_path(transcript) == 2 + 3 + 2
    assert metrics.recomputed_critical_path(transcript) == 7
    assert metrics.threads(transcript) == 3
    assert metrics.forked(transcript)
    assert metrics.acceleration_ratio(transcript) == pytest.approx(1 - 7 / 8)
    assert metrics.parallel_ratio(transcript) == pytest.approx(4 / 8)
    # root: s p a | b result result g, "h" was never fed
    assert transcript.peak_context == 7


def test_widths_and_entropy_by_hand():
    """Two forks of the root, of two threads and one; what a child forks is not the root's."""
    child = lambda: Thread(("x",), (("c",), [Thread(("y",), (("d",),))], ("e",)))
    transcript, _ = build(Thread(("s",), (("a",), [child(), child()], ("b",), [Thread(("x",), (("c",),))], ("e",))))
    assert metrics.widths(transcript) == [2, 1]
    assert metrics.widths(build(Thread(("s",), (("a",),)))[0]) == []
    assert metrics.entropy([3, 3, 5, 3]) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert metrics.entropy([7, 7]) == metrics.entropy([]) == 0
    printed = measure_width.table([1, 1, 4, 4], [True, False, True, True], [3, 3, 4, 4]).splitlines()
    assert printed[1:] == [
        "    1        2  50.0%",
        "    4        2  100.0%",
        "mean width 2.50, entropy 0.693 nats over 2 widths (by size 0.693); right 75.0% of 4",
    ]


def test_clocks_by_hand():
    """The reconstruction rests on the clocks, so the synthetic ones are pinned: a fork at the row of clock 2."""
    transcript, builder = build(TREE)
    log = transcript.log
    text = "".join(builder.text(t)[0] for t in log.token)
    assert text == "spab<<ghxcdeyzf"
    assert log.clock.tolist() == [0, 1, 2, 6, 7, 8, 9, -1, 3, 4, 5, -1, 3, 4, -1]
    order = causality(transcript)
    assert order.forks == ((3, 1), (3, 2))
    assert order.joins == ((1, 3), (2, 3))
    assert order.waits_for[6] == (3, 11, 14)  # g waits for b and for the last token of both children
    assert order.waits_for[9] == (3,)


def test_makespan_by_hand():
    transcript, _ = build(TREE)
    assert metrics.makespans(transcript, (1, 2, 3, math.inf)) == [8, 7, 7, 7]
    three = Thread(("s",), (("a",), [Thread(("x",), (tuple("bcd"),)) for _ in range(3)], ("e",)))
    transcript, _ = build(three)
    assert metrics.makespans(transcript, (1, 2, 3, 4)) == [11, 7, 5, 5]  # 9 tokens on 2 workers: 5 steps


def test_one_thread():
    transcript, _ = build(Thread(("s",), (("a", "b", "c"),)))
    assert not metrics.forked(transcript)
    assert metrics.makespans(transcript, (4,)) == [metrics.critical_path(transcript)] == [3]
    assert metrics.acceleration_ratio(transcript) == metrics.parallel_ratio(transcript) == 0


def test_nothing_generated():
    transcript, _ = build(Thread(("s", "p"), ()))
    assert metrics.critical_path(transcript) == metrics.recomputed_critical_path(transcript) == 0
    assert metrics.makespans(transcript, (1, 4)) == [0, 0]
    assert metrics.acceleration_ratio(transcript) == metrics.parallel_ratio(transcript) == 0
    assert metrics.mean_logprob(transcript) == -math.inf


def test_messages_that_were_never_fed_do_not_count():
    transcript, _ = build(TREE)
    index = transcript.log.index.copy()
    index[transcript.log.thread == 2] = -1
    assert (
        metrics.fed_tokens(dataclasses.replace(transcript, log=dataclasses.replace(transcript.log, index=index))) == 5
    )
    source = transcript.log.source.copy()
    source[0] = Source.HANDED
    cut = dataclasses.replace(transcript, log=dataclasses.replace(transcript.log, index=index, source=source))
    assert metrics.fed_tokens(cut) == 2 + 1 + 2
    only = dataclasses.replace(transcript.log, source=np.where(transcript.log.thread == 2, Source.FED, source))
    assert metrics.threads(dataclasses.replace(transcript, log=only)) == 2


def test_samples_of_a_common_prompt():
    """The root only reads the prompt: it is no thread of its own, and nobody forked."""
    samples = Thread(("s", "p"), ([Thread(("q",), (tuple("abc"),), True), Thread(("q",), (("d",),), True)],))
    transcript, _ = build(samples)
    records = (*transcript.threads[:1], *(dataclasses.replace(t, stop=Stop.LENGTH) for t in transcript.threads[1:]))
    transcript = dataclasses.replace(transcript, threads=records)
    assert metrics.threads(transcript) == 2
    assert not metrics.forked(transcript)
    assert metrics.critical_path(transcript) == metrics.recomputed_critical_path(transcript) == 3
    assert metrics.mean_logprob(transcript, 2) == pytest.approx(float(np.nanmax(only_of(transcript, 2))))
    assert metrics.mean_logprob(transcript, 0) == -math.inf
    assert outcomes.outcome(transcript, None, False).stop == "length"


def only_of(transcript, thread):
    return transcript.log.logprob[transcript.log.thread == thread]


SPAWN, WAIT, RESULT, JOIN, END, GO = range(2, 8)


def spawn_join(max_depth):
    return SpawnJoin(spawn=SPAWN, wait=WAIT, result=RESULT, join=JOIN, end=END, go=GO, max_depth=max_depth)


def interpreted(protocol, choose, max_tokens, prompt=1):
    """Runs the plain interpreter of threads, which counts while it runs, on tokens that `choose` names."""
    case = forking.Case(id=0, prompt=np.arange(8, 8 + prompt), max_tokens=max_tokens)
    return oracle.run(
        lambda context: np.zeros(16), case, protocol, 0, choose=lambda thread, *_: (choose(thread), -1.0, -1.0)
    )


@pytest.mark.parametrize("seed", range(40))
def test_critical_path_of_the_oracle(seed):
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.ones(5))

    def choose(thread):
        return (SPAWN, WAIT, JOIN, END, int(rng.integers(8, 13)))[rng.choice(5, p=chances)]

    for protocol in (spawn_join(int(rng.integers(1, 4))), Samples(count=3, end=END)):
        transcript = interpreted(protocol, choose, int(rng.integers(1, 25)), int(rng.integers(1, 4)))
        log = transcript.log
        found = depths(causality(transcript), log.sampled)
        np.testing.assert_array_equal(found, log.depth)
        spans = metrics.makespans(transcript, (1, 2, math.inf))
        assert spans[0] == metrics.generated_tokens(transcript) and spans[-1] == metrics.critical_path(transcript)


def test_a_child_that_is_fed_nothing_after_its_own_join():
    """The child's budget ends with its `<wait>`: nothing is fed to it, yet its parent waited for the grandchild."""
    texts = {(): [SPAWN, WAIT, END], (0,): [SPAWN, 8, WAIT], (0, 0): [9, 9, 9]}
    transcript = interpreted(spawn_join(2), lambda thread: texts[thread.path][thread.generated], max_tokens=3)
    assert [thread.stop for thread in transcript.threads] == [Stop.END, Stop.LENGTH, Stop.LENGTH]
    assert metrics.recomputed_critical_path(transcript) == metrics.critical_path(transcript) == 2 + 3 + 3 + 1


def test_sampled_token_without_row_is_named():
    transcript, _ = build(TREE)
    predictor = transcript.log.predictor.copy()
    predictor[2] = -1
    broken = dataclasses.replace(transcript, log=dataclasses.replace(transcript.log, predictor=predictor))
    with pytest.raises(ValueError, match="log entry 2"):
        metrics.recomputed_critical_path(broken)
    with pytest.raises(ValueError, match="workers is 0; at least 1 is needed"):
        metrics.makespans(transcript, (4, 0))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_reconstruction_and_makespan_on_random_trees(seed, shared):
    transcript, _ = build(random_tree(np.random.default_rng(seed), 3, shared), seed)
    sampled = transcript.log.sampled
    found = depths(causality(transcript), sampled)
    np.testing.assert_array_equal(found[sampled], transcript.log.depth[sampled])
    spans = metrics.makespans(transcript, (1, 2, 3, 4, 8, math.inf))
    assert spans[0] == metrics.generated_tokens(transcript) and spans[-1] == metrics.critical_path(transcript)
    assert all(more >= fewer for more, fewer in itertools.pairwise(spans))
    for k, span in zip((1, 2, 3, 4, 8), spans, strict=False):
        assert span >= max(spans[-1], math.ceil(spans[0] / k))


@pytest.mark.parametrize("samples, correct", [(1, 0), (1, 1), (5, 2), (6, 0), (6, 6), (7, 3)])
def test_pass_at_k_by_enumeration(samples, correct):
    for k in range(1, samples + 1):
        drawn = [min(chosen) < correct for chosen in itertools.combinations(range(samples), k)]
        assert metrics.pass_at_k(samples, correct, k) == pytest.approx(sum(drawn) / len(drawn))


@pytest.mark.parametrize("arguments", [(4, 2, 0), (4, 2, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses(arguments):
    with pytest.raises(ValueError, match="possible"):
        metrics.pass_at_k(*arguments)


def samples_of(*rows):
    return [Candidate(answer, correct, logprob) for answer, correct, logprob in rows]


def test_selection_by_hand():
    samples = samples_of(
        (None, False, 0.0),
        ("a", False, -0.3),
        ("b", True, -0.9),
        ("b", True, -0.2),
        ("a", False, -0.1),
        ("c", True, -0.5),
    )
    assert Majority().choose(samples) == 1  # a and b have two votes each: a occurs first
    assert Likeliest().choose(samples) == 4
    assert Verifier().choose(samples) == 2
    assert Majority().choose(samples[2:]) == 0
    for rule in (Majority(), Likeliest(), Verifier(), Only()):
        assert rule.choose(samples[:1]) is None
        assert rule.choose([]) is None
    assert Verifier().choose(samples[:2]) == 1
    assert Only().choose(samples) is None and Only().choose(samples[1:]) == 0


def test_cons_at_k_drops_invalid_answers():
    samples = samples_of((None, False, 0), (None, False, 0), ("b", True, 0), ("a", False, 0), ("a", False, 0))
    assert [metrics.cons_at_k(samples, k) for k in range(1, 6)] == [False, False, True, True, False]
    with pytest.raises(ValueError, match="k is 6"):
        metrics.cons_at_k(samples, 6)


def test_mean_logprob():
    transcript, _ = build(TREE)
    values = transcript.log.logprob[transcript.log.sampled]
    assert metrics.mean_logprob(transcript) == pytest.approx(sum(map(float, values)) / 8)


def test_outcome():
    transcript, _ = build(TREE, problem=3)
    assert outcomes.outcome(transcript, "1+1=2", True) == outcomes.Outcome(
        problem=3,
        correct=True,
        answer="1+1=2",
        critical_path=7,
        generated=8,
        fed=7,
        threads=3,
        forked=True,
        acceleration=1 / 8,
        parallel=4 / 8,
        peak_context=7,
        stop="end",
    )
    cut, _ = build(Thread(("s",), (tuple("abcdefghi"),)), stop=Stop.LENGTH)
    assert outcomes.outcome(cut, None, False).stop == "length"


def rows():
    make = outcomes.Outcome
    return [
        make(0, True, "a", 10, 20, 5, 2, True, 0.5, 0.75, 30, "end"),
        make(1, False, None, 5, 5, 5, 1, False, 0.0, 0.0, 10, "length"),
        make(2, True, "b", 40, 41, 6, 3, True, 0.25, 1.0, 15, "end"),
        make(3, True, "c", 20, 22, 4, 1, False, 0.0, 0.0, 60, "end"),
    ]


def test_accuracy_within():
    assert [outcomes.accuracy_within(rows(), w) for w in (0, 9, 10, 20, 39, 40)] == [0, 0, 0.25, 0.5, 0.5, 0.75]
    assert [outcomes.accuracy_within(rows(), w, "peak_context") for w in (14, 15, 30, 60)] == [0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="field is 'wall_s'"):
        outcomes.accuracy_within(rows(), 1, "wall_s")
    with pytest.raises(ValueError, match="empty"):
        outcomes.accuracy_within([], 1)


def test_summary(tmp_path):
    found = outcomes.summary(rows(), wall_s=1.5, steps=99, traces=1)
    assert tuple(found) == outcomes.KEYS
    assert found == {
        "accuracy": 0.75,
        "critical_path": 75 / 4,
        "generated_tokens": 88 / 4,
        "fed_tokens": 5,
        "threads": 7 / 4,
        "activation": 0.5,
        "acceleration_ratio": 0.75 / 4,
        "parallel_ratio": 1.75 / 4,
        "peak_context": 115 / 4,
        "wall_s": 1.5,
        "steps": 99,
        "traces": 1,
        "stop_reasons": {"end": 3, "length": 1},
    }
    path = tmp_path / "summary.json"
    written = outcomes.write_summary(path, 4, {"apr": found, "best_of_n": found | {"accuracy_verifier": 1.0}})
    assert json.loads(path.read_text()) == written == outcomes.read_summary(path)
    assert written["problems"] == 4
    del found["steps"]
    with pytest.raises(ValueError, match="'apr' lacks steps"):
        outcomes.write_summary(path, 4, {"apr": found})
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a summary"):
        outcomes.read_summary(path)
    with pytest.raises(ValueError, match="empty"):
        outcomes.summary([], 0, 0, 0)
