"""Threads that ask the host: against the interpreter, on any schedule and mesh, on the CPU kernels; and what is refused."""

import dataclasses
import functools

import numpy as np
import pytest

import asking
import oracle
import replaying
from apr_jax import sharding
from apr_jax.decode import Engine, Problem, Sizes, Stop, host
from apr_jax.decode.needs import Needs
from apr_jax.decode.program import Program, fit
from test_native import need_kernel

SIZES = Sizes(problems=4, lanes=3, rows=6, feed_tiles=2, feed_chunk=4, feed_threshold=2, threads=16, slots=512, page_size=4,
              log=512, log_page_size=4, queue=64, prompt=8, outbox=8, attention_block=256, host=256)  # fmt: skip
ONE_ROW = dataclasses.replace(
    SIZES, problems=2, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0, asking=1
)


@functools.cache
def decoded(name):
    """Of each engine the transcripts, the sizes of the batches that its host saw, and the last progress."""
    shared, sizes, dtype, mesh = {
        "isolated, two shards": (False, SIZES, "float64", sharding.make_mesh(data=2)),
        "shared, one row": (True, ONE_ROW, "float64", None),
        "shared, kernels": (True, SIZES, "float32", None),
    }[name]
    answering, seen = asking.Oracle(), []
    engine = Engine(asking.model(dtype), asking.Asking(shared), sizes, mesh, kernel=dtype == "float32", host=answering)
    engine.compile()
    problems = [problem for problem, _ in asking.cases(shared, 40)]
    loud = [Problem(asking.LOUD + i, np.array([asking.ASK, 1, 3]), temperature=1.0, max_tokens=60) for i in range(6)]
    found = sorted(engine.decode([*problems, *loud], seed=9, watch=seen.append), key=lambda each: each.problem)
    assert engine.traces == 1
    return found, answering.batches, seen[-1]


@pytest.mark.parametrize(("name", "shared"), [("isolated, two shards", False), ("shared, one row", True)])
def test_f64_equals_the_oracle(name, shared):
    right = [expected for _, expected in asking.cases(shared, 40)]
    found, batches, progress = decoded(name)
    assert sum(len(each.threads) > 1 for each in right) > 10
    assert sum(any(len(thread.path) > 1 for thread in each.threads) for each in right) > 3
    for each, expected in zip(found, right, strict=False):
        oracle.compare(each, expected)
    assert progress.questions == sum(batches) and progress.returns == len(batches)
    assert max(batches) == 1 if name == "shared, one row" else max(batches) > 3


def test_a_full_store_ends_the_problem_by_its_name():
    for name in ("isolated, two shards", "shared, one row"):
        stops = [each.stop for each in decoded(name)[0] if each.problem >= asking.LOUD]
        assert stops.count(Stop.HOST_FULL) > 1 and set(stops) <= {Stop.HOST_FULL, Stop.END}


def test_cpu_kernels_follow_from_their_own_tokens():
    need_kernel()
    full = (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL, Stop.HOST_FULL, Stop.MESSAGES_FULL)
    problems = [problem for problem, _ in asking.cases(True, 40)]
    fitting = [each for each in decoded("shared, kernels")[0] if each.stop not in full]
    fitting = [each for each in fitting if each.problem < asking.LOUD]
    assert sum(len(each.threads) > 1 for each in fitting) > 10
    for each in fitting:
        run = lambda choose, each=each: asking.interpreted(problems[each.problem], True, "float32", choose=choose)
        replaying.replay(each, run, replaying.F32)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (host.Said(0, (1,), [[1]] * 4), "said 4 messages; the protocol's needs.asks.messages is 3"),
        (host.Said(0, ()), "said 0 values; the protocol's needs.asks.values is 1"),
        (host.Said(2, (1,), [[16]]), r"said the message \[16\]; at least one token id of 0 .. 15"),
        (host.Said(2, (1,), [[]]), r"said the message \[\]; at least one token id"),
    ],
)
def test_what_a_host_may_not_say(said, message):
    program = Program(asking.model("float64").graph, asking.Asking(), SIZES)
    with pytest.raises(ValueError, match=message):
        host.tell({(0, 0, 0): said}, 1, program)


def test_what_is_refused():
    with pytest.raises(ValueError, match="host is None; threads of Asking ask it"):
        Engine(asking.model("float64"), asking.Asking(), SIZES, kernel=False)
    with pytest.raises(ValueError, match=r"sizes.host = 0: the host may send tokens to threads of Asking"):
        fit(asking.Asking(), dataclasses.replace(SIZES, host=0))
    for name in ("live", "races"):
        racing = dataclasses.make_dataclass(
            "Racing",
            [],
            bases=(asking.Asking,),
            frozen=True,
            namespace={"needs": dataclasses.replace(asking.Asking.needs, **{name: True})},
        )
        with pytest.raises(ValueError, match="Racing.needs.asks with live or races: .* keep step by clock"):
            fit(racing(), SIZES)
    assert Needs().asks is None
