"""Thinkers that see each other while they write: the compiled loop against the interpreter, on models with lanes and without."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import fuzz_programs
import oracle
import reference_model
import replaying
import test_engine
import vocabularies
from apr_jax.decode import Engine, Problem, Sizes, Stop, Transcript
from apr_jax.methods import GroupThink as Method
from apr_jax.model.branches import with_branches
from apr_jax.model.transformer import Model
from apr_jax.protocols import GroupThink

SEED, END = 4, 5
OPENINGS = ((20, 3), (21,), (22, 4, 7))
CONFIG = dataclasses.replace(fuzz_programs.CONFIG, vocabulary=24)
HOLD = dict(threads=4, slots=256, log=256, queue=32, prompt=8, outbox=4)
SIZES = {
    "one row": Sizes(problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0, page_size=1, log_page_size=1,
                     attention_block=64, **HOLD),
    "few rows": Sizes(problems=2, lanes=2, rows=3, feed_tiles=1, feed_chunk=4, feed_threshold=2, page_size=4, log_page_size=4,
                      attention_block=64, **HOLD),
    "plenty": Sizes(problems=4, lanes=3, rows=12, feed_tiles=4, feed_chunk=16, feed_threshold=8, page_size=16,
                    log_page_size=16, attention_block=128, **HOLD),
}  # fmt: skip


@functools.cache
def model(dtype: str = "float64", stride: float = 0.0, embedding: int = 0) -> Model:
    kernels = dict(head_dim=16) if dtype == "float32" else {}
    told = dict(branch_stride=stride, branch_embedding=embedding)
    return fuzz_programs.random_model(dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype, **kernels, **told))


def problems(count: int) -> list[Problem]:
    rng = np.random.default_rng(3)
    return [
        Problem(
            i, rng.integers(0, 24, rng.integers(1, 8)).astype(np.int32), temperature=float(rng.choice([0.0, 1.0, 1.25])),
            top_k=int(rng.choice([0, 0, 8])), max_tokens=int(rng.integers(4, 24)), child_max_tokens=int(rng.choice([0, 6, 20])),
        )
        for i in range(count)
    ]  # fmt: skip


def thinkers(world: oracle.World, root: oracle.Thread, fed, protocol: GroupThink) -> oracle.Program:
    """The program of the root."""
    yield from root.feed_tokens(fed)
    children = [root.open() for _ in protocol.openings]
    budget = world.problem.child_max_tokens or world.problem.max_tokens
    span = (max(map(len, protocol.openings)) + budget) * protocol.ranges
    for place, child in enumerate(children):
        child.floor, child.branch, child.next_position = root.clock, place, len(fed) + place * span
        child.seen = [root, *children]
        child.live = [other for other in children if other is not child]
        world.start(child, thinker(world, child, protocol.openings[place], protocol))
    yield from root.await_children(children)
    root.stop = Stop.END


def thinker(world: oracle.World, thread: oracle.Thread, opening, protocol: GroupThink) -> oracle.Program:
    """The others see all that it says, its last token too."""
    yield from thread.feed_tokens(opening)
    stop = None
    while stop is None:
        entry = world.sample(thread)
        stop = Stop.END if entry.token == protocol.end else Stop.LENGTH if world.spent(thread) else None
        yield []
        thread.feed(entry)
    thread.stop = stop


def interpret(own: Model, problem: Problem, protocol: GroupThink, **options) -> Transcript:
    forward = reference_model.transformer(own.params, own.config)
    return oracle.run(forward, problem, protocol, SEED, program=thinkers, **options)


def decoded(own: Model, protocol: GroupThink, sizes: str, count: int, **options) -> list[Transcript]:
    engine = Engine(own, protocol, SIZES[sizes], **options)
    found = sorted(engine.decode(problems(count), seed=SEED), key=lambda transcript: transcript.problem)
    assert engine.traces == 1
    return found


@pytest.fixture(scope="module")
def plain() -> list[Transcript]:
    return decoded(model(), GroupThink(OPENINGS, END), "few rows", 20)


def test_ranges_equal_the_interpreter(plain):
    stops = [thread.stop for found in plain for thread in found.threads[1:]]
    assert stops.count(Stop.END) >= 8 and stops.count(Stop.LENGTH) >= 8, stops
    for problem, found in zip(problems(20), plain, strict=True):
        oracle.compare(found, interpret(model(), problem, GroupThink(OPENINGS, END)))
        for shuffled in range(2):
            order = np.random.default_rng(shuffled)
            oracle.compare(found, interpret(model(), problem, GroupThink(OPENINGS, END), schedule_rng=order))


@pytest.mark.parametrize("sizes", ["one row", "plenty"])
def test_lanes_equal_the_interpreter(sizes):
    """A model with a second rotation of its own, and with an embedding besides."""
    own, protocol = model(stride=3.5, embedding=3 * (sizes == "plenty")), GroupThink(OPENINGS, END, ranges=False)
    for problem, found in zip(problems(20), decoded(own, protocol, sizes, 20), strict=True):
        oracle.compare(found, interpret(own, problem, protocol))


def test_lanes_at_their_start_are_ranges(plain):
    """LaneRoPE's special start: what another range of positions does, the second rotation does."""
    for problem, found in zip(problems(20)[:6], plain, strict=False):
        budget = problem.child_max_tokens or problem.max_tokens
        lanes = with_branches(model(), stride=float(max(map(len, OPENINGS)) + budget))
        again = interpret(lanes, problem, GroupThink(OPENINGS, END, ranges=False))
        np.testing.assert_array_equal(found.log.token, again.log.token)
        np.testing.assert_allclose(found.log.logprob, again.log.logprob, atol=1e-8)


@pytest.fixture(scope="module")
def on_kernels() -> list[Transcript]:
    own = model("float32", stride=3.5, embedding=3)
    return decoded(own, GroupThink(OPENINGS, END, ranges=False), "plenty", 12, kernel=True)


def test_on_the_kernels_records_follow_from_their_own_tokens(on_kernels):
    own, protocol = model("float32", stride=3.5, embedding=3), GroupThink(OPENINGS, END, ranges=False)
    for problem, found in zip(problems(12), on_kernels, strict=True):
        again = lambda choose, problem=problem: interpret(own, problem, protocol, choose=choose)
        replaying.replay(found, again, replaying.F32)


def test_training_on_the_packed_log_gives_the_rollout_again(on_kernels):
    test_engine.check_packed(on_kernels, model("float32", stride=3.5, embedding=3), 1e-4)


def test_steps_written_out_give_the_same_logprobs(plain):
    """Tokens in the order of their steps, those of a step side by side; one sees all of the steps before its own, and itself."""
    params, compared = jax.tree.map(np.asarray, model().params), 0
    for found in plain:
        log = found.log
        number = np.where(log.thread == 0, log.index, log.index + (log.thread == 0).sum())
        order = np.lexsort((log.thread, number))
        step, thread = number[order], log.thread[order]
        sees = (step[:, None] > step) | np.eye(len(order), dtype=bool)
        logits = reference_model.all_logits(params, CONFIG, log.token[order], log.position[order], sees)
        assert len(np.unique(log.position)) == len(log) and np.all(np.diff(log.position[thread == 0]) == 1)
        for sampled in np.flatnonzero(log.sampled):
            row = logits[order.tolist().index(log.predictor[sampled])]
            assert abs(reference_model.log_softmax(row)[log.token[sampled]] - log.logprob[sampled]) < 1e-8
            compared += 1
    assert compared > 300


def test_the_method_gives_each_thinker_its_opening():
    codec = vocabularies.byte_level()
    made = Method(count=3).protocol(codec)
    assert [codec.decode(opening) for opening in made.openings] == ["Thinker 1:", "Thinker 2:", "Thinker 3:"]
    assert made.end == codec.eos and made.ranges
    for wrong, error in (
        (lambda: Method(count=1), "group_think.count is 1; it must be a whole number of 2 .."),
        (lambda: GroupThink(((1,), ()), 2), "group_think.openings is .* each with at least one token"),
    ):
        with pytest.raises(ValueError, match=error):
            wrong()
