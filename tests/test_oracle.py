"""The oracle itself: cases worked out by hand with a scripted model; its transformer against that of the package."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import forking
import oracle
import reference_model
import replaying
from apr_jax.model import transformer
from apr_jax.model.attention import masked_attention
from apr_jax.model.config import ModelConfig
from apr_jax.record import Source, Stop
from forking import Samples, Sequential, SpawnJoin, played, rows, span

SPAWN, WAIT, RESULT, JOIN, END, GO = 2, 3, 4, 5, 6, 7
FED, SAMPLED = int(Source.FED), int(Source.SAMPLED)
CONFIG = ModelConfig(
    vocabulary=16, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, qk_norm=True, tied=False
)


def test_sequential_by_hand():
    transcript = played({(): [10, 11]}, Sequential(), [1, 9])
    assert transcript.stop == Stop.END
    assert rows(transcript, 0) == [
        (1, FED, 0, 0, 1, None),
        (9, FED, 1, 1, 2, None),
        (10, SAMPLED, 2, 2, 3, 1),
        (11, SAMPLED, 3, 3, 4, 2),
        (END, SAMPLED, -1, -1, -1, 3),
    ]
    assert transcript.log.predictor.tolist() == [-1, -1, 1, 2, 3]
    assert transcript.peak_context == 4


def test_sequential_out_of_tokens():
    transcript = played({(): [10, 11, 12]}, Sequential(), [1], max_tokens=2)
    assert transcript.stop == Stop.LENGTH
    assert rows(transcript, 0) == [(1, FED, 0, 0, 1, None), (10, SAMPLED, 1, 1, 2, 1), (11, SAMPLED, -1, -1, -1, 2)]
    assert played({(): [10, END]}, Sequential(), [1], max_tokens=2).stop == Stop.END


def test_samples_by_hand():
    transcript = played({(0,): [10], (1,): [11, 12]}, Samples(2), [1, 8, 9], max_tokens=2)
    assert [(t.path, t.parent, t.stop) for t in transcript.threads] == [
        ((), -1, Stop.END),
        ((0,), 0, Stop.END),
        ((1,), 0, Stop.LENGTH),
    ]
    assert rows(transcript, 0) == [(1, FED, 0, 0, 1, None), (8, FED, 1, 1, 2, None)]
    assert rows(transcript, 1) == [(9, FED, 0, 2, 3, None), (10, SAMPLED, 1, 3, 4, 1), (END, SAMPLED, -1, -1, -1, 2)]
    assert rows(transcript, 2) == [(9, FED, 0, 2, 3, None), (11, SAMPLED, 1, 3, 4, 1), (12, SAMPLED, -1, -1, -1, 2)]
    assert transcript.sees.tolist() == [[True, False, False], [True, True, False], [True, False, True]]
    assert transcript.log.predictor.tolist() == [-1, -1, -1, 2, 3, -1, 5, 6]
    assert transcript.peak_context == 4


def test_samples_of_a_prompt_of_one_token():
    transcript = played({(0,): [10]}, Samples(1), [1])
    assert rows(transcript, 0) == []
    assert rows(transcript, 1) == [(1, FED, 0, 0, 1, None), (10, SAMPLED, 1, 1, 2, 1), (END, SAMPLED, -1, -1, -1, 2)]


def test_spawn_returns_hand():
    texts = {(): [SPAWN, 12, SPAWN, 13, 14, WAIT, 10], (0,): [8, JOIN, 9, 9], (1,): []}
    transcript = played(texts, SpawnJoin(), [1])
    assert [(t.path, t.stop) for t in transcript.threads] == [((), Stop.END), ((0,), Stop.END), ((1,), Stop.END)]
    assert rows(transcript, 0) == [
        (1, FED, 0, 0, 1, None),
        (SPAWN, SAMPLED, 1, 1, 2, 1),
        (12, SAMPLED, 2, 2, 3, 2),
        (SPAWN, SAMPLED, 3, 3, 4, 3),
        (13, SAMPLED, 4, 4, 5, 4),
        (14, SAMPLED, 5, 5, 6, 5),
        # Sampled by the row of clock 6; the longest child writes clocks 7 to 13 and ends with a count of 11.
        (WAIT, SAMPLED, 6, 6, 14, 6),
        (RESULT, FED, 7, 7, 15, None),
        (9, FED, 8, 8, 16, None),
        (9, FED, 9, 9, 17, None),
        (RESULT, FED, 10, 10, 18, None),
        (GO, FED, 11, 11, 19, None),
        (10, SAMPLED, 12, 12, 20, 12),
        (END, SAMPLED, -1, -1, -1, 13),
    ]
    assert rows(transcript, 1) == [
        (SPAWN, FED, 0, 0, 7, None),
        (12, FED, 1, 1, 8, None),
        (GO, FED, 2, 2, 9, None),
        (8, SAMPLED, 3, 3, 10, 7),
        (JOIN, SAMPLED, 4, 4, 11, 8),
        (9, SAMPLED, 5, 5, 12, 9),
        (9, SAMPLED, 6, 6, 13, 10),
        (END, SAMPLED, -1, -1, -1, 11),
    ]
    assert rows(transcript, 2) == [
        (SPAWN, FED, 0, 0, 7, None),
        (13, FED, 1, 1, 8, None),
        (14, FED, 2, 2, 9, None),
        (GO, FED, 3, 3, 10, None),
        (END, SAMPLED, -1, -1, -1, 7),
    ]
    assert (transcript.sees == np.eye(3, dtype=bool)).all()
    assert transcript.log.predictor[:14].tolist() == [-1, 0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1, 11, 12]


@pytest.mark.parametrize(
    ("text", "stop", "threads"),
    [
        ([WAIT], Stop.MALFORMED, []),
        ([SPAWN, 12, END], Stop.MALFORMED, [Stop.DROPPED]),
        ([SPAWN, 12, SPAWN], Stop.LENGTH, [Stop.DROPPED, Stop.DROPPED]),
        ([SPAWN, WAIT, WAIT], Stop.MALFORMED, [Stop.END]),
        ([SPAWN, 9, WAIT], Stop.LENGTH, [Stop.END]),
        ([JOIN, RESULT, END], Stop.END, []),
    ],
)
def test_stops_of_the_root(text, stop, threads):
    transcript = played({(): text}, SpawnJoin(), [1, 8], max_tokens=3)
    assert transcript.stop == stop
    assert [t.stop for t in transcript.threads[1:]] == threads
    dropped = [i for i, t in enumerate(transcript.threads) if t.stop == Stop.DROPPED]
    assert not np.isin(transcript.log.thread, dropped).any()


def test_a_join_without_budget_is_never_fed():
    transcript = played({(): [SPAWN, 9, WAIT], (0,): [8]}, SpawnJoin(), [1], max_tokens=3)
    assert rows(transcript, 0)[-1] == (WAIT, SAMPLED, -1, -1, -1, 3)
    assert (transcript.log.source[transcript.log.thread == 0] == FED).sum() == 1


def test_dropped_children_count_in_paths_and_the_clock_waits_for_grandchildren():
    texts = {
        (): [SPAWN, WAIT, SPAWN, 12, WAIT, 9],
        (0,): [SPAWN, 13, END],  # malformed: its own child is dropped
        (1,): [SPAWN, WAIT],  # out of tokens while its child runs
        (1, 0): [8, 8],
    }
    transcript = played(texts, SpawnJoin(max_depth=2), [1])
    assert [(t.path, t.parent, t.stop) for t in transcript.threads] == [
        ((), -1, Stop.END),
        ((0,), 0, Stop.MALFORMED),
        ((0, 0), 1, Stop.DROPPED),
        ((1,), 0, Stop.END),
        ((1, 0), 3, Stop.END),
    ]
    # Root: 1, spawn at clocks 1, 2; child 0 writes 3 to 6; wait, result, go, spawn, 12 at 7 to 11; child 1 writes 12 to
    # 15, then its child 16 to 19, then wait, result, go 20 to 22; the root goes on at 23.
    root = transcript.log.clock[transcript.log.thread == 0].tolist()
    assert root == [1, 2, 7, 8, 9, 10, 11, 23, 24, 25, 26, -1]
    assert transcript.log.clock[transcript.log.thread == 1].tolist() == [3, 4, 5, 6, -1]
    assert transcript.log.clock[transcript.log.thread == 3].tolist() == [12, 13, 14, 15, 20, 21, 22, -1]
    assert transcript.log.clock[transcript.log.thread == 4].tolist() == [16, 17, 18, 19, -1]
    # Counts: root 2, child 0 up to 5, root 8; child 1 10, grandchild 13, child 1 14, root 15 and 16.
    depth = transcript.log.depth[(transcript.log.thread == 0) & transcript.log.sampled].tolist()
    assert depth == [1, 2, 6, 7, 8, 15, 16]


def test_a_parent_out_of_tokens_passes_on_the_clock_and_count_of_its_child():
    texts = {(): [SPAWN, WAIT, 9, END], (0,): [10, SPAWN, 11, WAIT], (0, 0): [8, 8, 8]}
    transcript = played(texts, SpawnJoin(max_depth=2), [1], max_tokens=4)
    assert [t.stop for t in transcript.threads] == [Stop.END, Stop.LENGTH, Stop.END]
    # Child: spawn, go, 10, spawn, 11 at clocks 3 to 7. Grandchild: spawn, 11, go, 8, 8, 8 at 8 to 13. Root: from 14 on.
    assert transcript.log.clock[transcript.log.thread == 0].tolist() == [1, 2, 14, 15, 16, 17, -1]
    assert transcript.log.depth[(transcript.log.thread == 0) & transcript.log.sampled].tolist() == [1, 2, 11, 12]


def test_a_message_may_hold_what_was_joined_and_return_from_the_first_join():
    texts = {(): [SPAWN, 9, WAIT], (0,): [JOIN, SPAWN, WAIT, JOIN, 10], (0, 0): [JOIN, 11]}
    transcript = played(texts, SpawnJoin(max_depth=2), [1])
    returned = [SPAWN, WAIT, RESULT, 11, GO, JOIN, 10]
    assert transcript.tokens(0).tolist() == [1, SPAWN, 9, WAIT, RESULT, *returned, GO, END]


RESULTS, AGAIN = [RESULT, 9, 9, RESULT, GO], [SPAWN, 13, 14, 15, GO, END, GO]


@pytest.mark.parametrize(
    ("context", "returns", "wait", "fed", "place", "sees", "peak"),
    [
        # The root has 7 tokens at clocks 1 to 7; `wait` and `place` are position and clock of its `<wait>` and of what
        # it is fed then. Isolated children write clocks 8 to 14, with the flush to 15, others one more.
        ("isolated", "message", (7, 15), RESULTS, (8, 16), "100 010 001", 14),
        ("isolated", "stitch", (8, 16), [GO], (9, 17), "111 010 001", 10 + 8 + 6),
        ("isolated", "reencode", (8, 16), AGAIN, (9, 17), "110 010 001", 16 + 8),
        ("shared", "message", (7, 8), RESULTS, (8, 16), "100 110 101", 8 + 7),  # the first child's
        ("shared", "stitch", (7, 8), [GO], (16, 17), "111 110 101", 10 + 8 + 6),
        ("shared", "reencode", (7, 8), AGAIN, (16, 17), "110 110 101", 16 + 8),
        ("live", "message", (7, 8), RESULTS, (8, 16), "100 111 111", 8 + 7 + 5),  # the first child's
        ("live", "stitch", (7, 8), [GO], (16, 17), "111 111 111", 10 + 8 + 6),
        ("live", "reencode", (7, 8), AGAIN, (16, 17), "110 111 111", 16 + 8),
    ],
)
def test_contexts_and_joins_by_hand(context, returns, wait, fed, place, sees, peak):
    texts = {(): [SPAWN, 12, SPAWN, 13, 14, 15, WAIT, 10], (0,): [8, JOIN, 9, 9], (1,): []}
    transcript = played(texts, SpawnJoin(context=context, returns=returns), [1])
    assert [(t.path, t.stop) for t in transcript.threads] == [((), Stop.END), ((0,), Stop.END), ((1,), Stop.END)]
    after = 8 + len(fed)
    assert rows(transcript, 0) == [
        (1, FED, 0, 0, 1, None),
        *span(SAMPLED, [SPAWN, 12, SPAWN, 13, 14, 15], 1, 1, 2, 1),
        (WAIT, SAMPLED, 7, *wait, 7),
        *span(FED, fed, 8, *place),
        (10, SAMPLED, after, place[0] + len(fed), place[1] + len(fed), 13),
        (END, SAMPLED, -1, -1, -1, 14),
    ]
    position, clock = (0, 8) if context == "isolated" else (8, 9)
    unfed = (END, SAMPLED, -1, -1, -1)
    first = (END, SAMPLED, 7, position + 7, clock + 7) if returns != "message" else unfed
    assert rows(transcript, 1) == [
        *span(FED, [SPAWN, 12, GO], 0, position, clock),
        *span(SAMPLED, [8, JOIN, 9, 9], 3, position + 3, clock + 3, 8),
        (*first, 12),
    ]
    second = (END, SAMPLED, 5, position + 5, clock + 5) if returns == "stitch" else unfed
    assert rows(transcript, 2) == [
        *span(FED, [SPAWN, 13, 14, 15, GO], 0, position, clock),
        (*second, 9 if context == "live" else 8),  # a live one saw the first that its sibling sampled
    ]
    assert " ".join("".join(str(int(bit)) for bit in row) for row in transcript.sees) == sees
    assert transcript.peak_context == peak


def test_what_live_siblings_see():
    rows_seen = {}

    def forward(fed):
        rows_seen[fed.token] = sorted(other.token for other in fed.sees)
        return np.zeros(16)

    texts = {(): [SPAWN, 12, SPAWN, 13, WAIT], (0,): [8], (1,): [9, 10, 11]}
    played(texts, SpawnJoin(context="live", returns="stitch"), [1], forward=forward)
    root = [1, SPAWN, 12, SPAWN, 13, WAIT]
    assert rows_seen[8] == sorted([*root, SPAWN, 12, GO, 8, SPAWN, 13, GO])
    assert rows_seen[10] == sorted([*root, SPAWN, 13, GO, 9, 10, SPAWN, 12, GO, 8])
    assert rows_seen[11] == sorted([*root, SPAWN, 13, GO, 9, 10, 11, SPAWN, 12, GO, 8, END])


@pytest.mark.parametrize("returns", ["stitch", "reencode"])
@pytest.mark.parametrize("context", ["isolated", "shared"])
def test_a_parent_out_of_tokens_is_stitched_with_its_child(context, returns):
    texts = {(): [SPAWN, WAIT, 9, END], (0,): [10, SPAWN, 11, WAIT], (0, 0): [8, 8, 8]}
    transcript = played(texts, SpawnJoin(2, context=context, returns=returns), [1], max_tokens=4)
    assert [t.stop for t in transcript.threads] == [Stop.END, Stop.LENGTH, Stop.END]
    root, child, grandchild = (rows(transcript, thread) for thread in range(3))
    if context == "isolated":
        assert transcript.sees.tolist() == [[True, True, True], [False, True, True], [False, False, True]]
        assert grandchild[-1] == (END, SAMPLED, 6, 6, 14, 10)
        assert child[-2:] == [(11, SAMPLED, 4, 4, 7, 5), (WAIT, SAMPLED, 5, 7, 15, 6)]  # flushed after its join
        assert root[2:-1] == [(WAIT, SAMPLED, 2, 8, 16, 2), (GO, FED, 3, 9, 17, None), (9, SAMPLED, 4, 10, 18, 11)]
    else:
        assert transcript.sees.all()
        assert child[-1] == (WAIT, SAMPLED, 5, 8, 9, 6)
        assert grandchild[0] == (SPAWN, FED, 0, 9, 10, None) and grandchild[-1] == (END, SAMPLED, 6, 15, 16, 10)
        assert root[2:-1] == [(WAIT, SAMPLED, 2, 2, 3, 2), (GO, FED, 3, 16, 17, None), (9, SAMPLED, 4, 17, 18, 11)]


def test_a_malformed_child_is_flushed_and_the_next_fork_sees_it_but_not_what_was_dropped():
    texts = {(): [SPAWN, WAIT, SPAWN, WAIT], (0,): [SPAWN, 13, END]}
    transcript = played(texts, SpawnJoin(2, context="shared", returns="stitch"), [1])
    assert [t.stop for t in transcript.threads[1:]] == [Stop.MALFORMED, Stop.DROPPED, Stop.END]
    assert transcript.sees.astype(int).tolist() == [[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]]
    assert rows(transcript, 1)[-1] == (END, SAMPLED, 4, 7, 8, 5)
    assert rows(transcript, 0)[3:6] == [
        (GO, FED, 3, 8, 9, None),
        (SPAWN, SAMPLED, 4, 9, 10, 6),
        (WAIT, SAMPLED, 5, 10, 11, 7),
    ]


def test_a_child_is_told_again_with_its_last_token():
    texts = {(): [SPAWN, SPAWN, WAIT, END], (1,): [10, SPAWN, 9, WAIT], (1, 0): [8] * 4}
    transcript = played(texts, SpawnJoin(2, returns="reencode"), [1], max_tokens=4)
    assert [t.stop for t in transcript.threads[1:]] == [Stop.END, Stop.LENGTH, Stop.LENGTH]
    again = [SPAWN, GO, 10, SPAWN, 9, WAIT]
    assert transcript.tokens(0).tolist() == [1, SPAWN, SPAWN, WAIT, *again, GO, END]
    assert rows(transcript, 2)[-1] == (WAIT, SAMPLED, -1, -1, -1, 7)
    assert transcript.sees.astype(int).tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_sampling_by_hand():
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3]))

    def token(uniform, **fields):
        return reference_model.draw(logits, uniform, forking.Case(0, np.array([1]), **{"temperature": 1.0, **fields}))

    assert token(0.05)[0] == 0 and token(0.11)[0] == 1 and token(0.51)[0] == 2 and token(0.99)[0] == 3
    assert token(0.7, temperature=0.0) == (1, pytest.approx(np.log(0.4)), 0.0)
    # top-k 2 keeps 1 (4/7) and 3 (3/7); top-p 0.5 of those keeps token 1 alone, top-p 0.6 both.
    assert token(0.57, top_k=2) == (1, pytest.approx(np.log(0.4)), pytest.approx(np.log(4 / 7)))
    assert token(0.58, top_k=2) == (3, pytest.approx(np.log(0.3)), pytest.approx(np.log(3 / 7)))
    assert token(0.58, top_k=2, top_p=0.5)[0] == 1
    assert token(0.58, top_k=2, top_p=0.6)[0] == 3
    # top-p 0.65 of everything keeps 1 and 3 (0.7): the crossing one is included.
    assert np.flatnonzero(
        reference_model.kept(logits, forking.Case(0, np.array([1]), temperature=1.0, top_p=0.65))
    ).tolist() == [1, 3]
    squared = np.array([1, 16, 4, 9]) / 30
    assert np.allclose(reference_model.kept(logits, forking.Case(0, np.array([1]), temperature=0.5)), squared)


@pytest.mark.parametrize(
    "fields", [{}, dict(qk_norm=False), dict(tied=True), dict(kv_heads=4), dict(kv_heads=1, rope_theta=100.0)]
)
def test_transformer_is_that_of_the_package(fields):
    config = dataclasses.replace(CONFIG, **fields)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4), transformer.abstract_params(config)
    )
    tokens = rng.integers(0, 16, size=9)
    positions = np.sort(rng.integers(0, 40, size=9))
    mask = jnp.tril(jnp.ones((9, 9), bool))
    graph, memory = transformer.graph_of(config), (None,) * config.layers

    def attend(q, k, v, memory):
        return masked_attention(q, k, v, mask), memory

    x, _ = transformer.hidden(graph, params, jnp.asarray(tokens), jnp.asarray(positions), attend, memory)
    right = reference_model.all_logits(jax.tree.map(np.asarray, params), config, tokens, positions)
    np.testing.assert_allclose(transformer.logits(graph, params, x), right, rtol=0, atol=1e-10)


def test_rows_are_those_of_one_causal_forward():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 4, transformer.abstract_params(CONFIG))
    tokens, positions = rng.integers(0, 16, size=9), np.sort(rng.integers(0, 40, size=9))
    sequence: list[reference_model.Fed] = []
    for token, position in zip(tokens.tolist(), positions.tolist(), strict=True):
        fed = reference_model.Fed(token, position)
        fed.sees = [fed, *reversed(sequence)]  # any order
        sequence.append(fed)
    forward = reference_model.transformer(params, CONFIG)
    right = reference_model.all_logits(params, CONFIG, tokens, positions)
    np.testing.assert_allclose([forward(fed) for fed in sequence], right, rtol=0, atol=1e-10)


def check_logprobs(transcript, params) -> None:
    """One forward over all that was fed, under the mask that the record stands for, gives its log-probs."""
    log = transcript.log
    fed = np.flatnonzero(log.clock >= 0)
    sees = oracle.visible(log, transcript.sees)[np.ix_(fed, fed)]
    logits = reference_model.all_logits(params, CONFIG, log.token[fed], log.position[fed], sees)
    for i in np.flatnonzero(log.sampled):
        row = logits[np.searchsorted(fed, log.predictor[i])]
        assert abs(reference_model.log_softmax(row)[log.token[i]] - log.logprob[i]) < 1e-9


MODES = [(context, returns) for context in ("isolated", "shared") for returns in ("message", "stitch", "reencode")]


def test_order_of_running_does_not_matter():
    """Random programs in three orders; the mix of events is what the tests of the engine rely on."""
    model = forking.biased_model(CONFIG, 0, forking.Words().bias(), 1.5)
    forward, params = reference_model.transformer(model.params, CONFIG), jax.tree.map(np.asarray, model.params)
    protocols = [SpawnJoin(depth, context=mode[0], returns=mode[1]) for mode in MODES for depth in (1, 2)]
    protocols += [SpawnJoin(context="live", returns=returns) for returns in ("message", "stitch", "reencode")]
    protocols += [SpawnJoin(3), SpawnJoin(3, context="shared", returns="stitch"), Samples(3), Sequential()]
    rng = np.random.default_rng(1)
    events = collections.Counter()
    for number in range(12 * len(protocols)):
        protocol = protocols[number % len(protocols)]
        case = forking.random_case(rng, number, max_tokens=16)
        expected = oracle.run(forward, case, protocol, 3)
        check_logprobs(expected, params)
        for order in range(2):
            oracle.compare(oracle.run(forward, case, protocol, 3, np.random.default_rng(order)), expected, 0.0)
        again = functools.partial(oracle.run, forward, case, protocol, 3, None)
        replaying.replay(expected, again, replaying.F32)
        if isinstance(protocol, SpawnJoin):
            events["problems"] += 1
            events["forked"] += any(t.path and t.stop != Stop.DROPPED for t in expected.threads)
            events["forked twice"] += any(len(t.path) > 1 and t.stop != Stop.DROPPED for t in expected.threads)
            events.update(t.stop.name for t in expected.threads)
    print(dict(events))
    assert events["forked"] > 0.5 * events["problems"] and events["forked twice"] > 0.1 * events["problems"]
    assert min(events[stop] for stop in ("END", "LENGTH", "MALFORMED", "DROPPED")) > 20


def test_replay_and_compare_find_faults():
    model = forking.biased_model(CONFIG, 0, forking.Words().bias(), 1.5)
    forward = reference_model.transformer(model.params, CONFIG)
    case = forking.Case(id=5, prompt=np.array([1, 8]), temperature=1.0, max_tokens=12)
    right = oracle.run(forward, case, Sequential(), 3)
    again = functools.partial(oracle.run, forward, case, Sequential(), 3, None)
    for field in ("token", "clock", "position", "predictor", "source", "depth", "logprob", "behaviour_logprob"):
        wrong = getattr(right.log, field).copy()
        wrong[2] += 1
        broken = dataclasses.replace(right, log=dataclasses.replace(right.log, **{field: wrong}))
        with pytest.raises(AssertionError):
            oracle.compare(broken, right)
        with pytest.raises(AssertionError):
            replaying.replay(broken, again, replaying.F32)
