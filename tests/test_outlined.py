"""Outlined threads against the oracle, on random models that list outlines a lot, in good order and out of it."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import forking
import oracle
import outlining
import reference_model
import replaying
from apr_jax import methods
from apr_jax.decode import Engine, Problem, Sizes, Stop
from apr_jax.decode.recogniser import Names
from apr_jax.methods import Multiverse, ThreadWeaver
from apr_jax.model.config import ModelConfig
from apr_jax.model.transformer import Model
from apr_jax.protocols import format_errors
from outlining import MULTIVERSE, NPR, THREADWEAVER, Rule
from test_native import need_kernel

SEED = 3
CONFIG = ModelConfig(
    vocabulary=outlining.VOCABULARY, width=40, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, qk_norm=True, tied=False,
    dtype="float64", param_dtype="float64",
)  # fmt: skip
SIZES = Sizes(problems=4, lanes=3, rows=6, feed_tiles=2, feed_chunk=8, feed_threshold=2, threads=24, slots=1024, page_size=4,
              log=1024, log_page_size=4, queue=64, prompt=8, outbox=8, attention_block=256)  # fmt: skip
ONE_ROW = dataclasses.replace(SIZES, problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0)
RULES = {
    "threadweaver": Rule(outlining.tagged(THREADWEAVER), THREADWEAVER, stitches=False),
    "threadweaver, spelt": Rule(outlining.spelt(), THREADWEAVER, stitches=False, conclusion=True, blocks=5),
    "threadweaver, bounded": Rule(outlining.tagged(THREADWEAVER), THREADWEAVER, stitches=False, response=60, blocks=5),
    "multiverse": Rule(outlining.tagged(MULTIVERSE), MULTIVERSE, stitches=True, max_depth=2),
    "npr": Rule(
        outlining.tagged(NPR),
        NPR,
        stitches=True,
        max_depth=2,
        blocks=5,
        response=110,
        reserve=20,
        penalty=1.5,
        line=True,
    ),
}


def npr(rule):
    common = dict(end=rule.words.end, most=rule.most, largest=3, nested=2, blocks=rule.blocks, max_depth=rule.max_depth)
    return methods.NPR(**common, response=rule.response, reserve=rule.reserve, penalty=rule.penalty)


@functools.cache
def protocol(name):
    rule = RULES[name]
    common = dict(end=rule.words.end, most=rule.most, nested=2, blocks=rule.blocks)
    if rule.reserve:
        method = npr(rule)
    elif rule.stitches:
        method = Multiverse(**common, max_depth=rule.max_depth)
    else:
        method = ThreadWeaver(**common, conclusion=rule.conclusion, response=rule.response)
    made = method.protocol(rule.codec)
    assert made.numbers == Names(rule.numbers)
    return made


@functools.cache
def model(name, dtype="float64"):
    config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype, head_dim=8 if dtype == "float64" else 16)
    seed = 0 if dtype == "float64" else 4 if RULES[name].stitches else 6  # under which all that is wanted happens
    wide = forking.biased_model(config, seed, outlining.bias(RULES[name].codec, RULES[name].words), 0.8)
    return Model(wide.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), wide.params))


@functools.cache
def forward(name, dtype="float64"):
    return reference_model.transformer(model(name, dtype).params, model(name, dtype).config)


def case(rng, number, rule):
    """Prompts hold tags too, which are text there."""
    prompt = rng.integers(0, rule.codec.size, size=rng.integers(1, 6))
    prompt[-1] = rng.integers(0, 3)
    most = int(rng.integers(10, 49))
    return Problem(
        number, prompt.astype(np.int32), temperature=0.0 if rng.random() < 0.1 else float(rng.choice([0.5, 0.75, 1.0])),
        top_k=int(rng.choice([0, 0, 5])), top_p=float(rng.choice([1.0, 0.875])), max_tokens=most,
        child_max_tokens=most // 2 if number % 3 == 0 else 0,
    )  # fmt: skip


@functools.cache
def cases(name, count):
    rng, found = np.random.default_rng(7), []
    rule = RULES[name]
    interpret = outlining.interpreter(rule)
    while len(found) < count:
        problem = case(rng, len(found), rule)
        right = oracle.run(forward(name), problem, None, SEED, program=interpret, choose=outlining.penalised(rule))
        if len(right.threads) <= 24 and len(right.log) <= 700:
            found.append((problem, right))
    return tuple(found)


def decoded(name, sizes, problems, dtype="float64", kernel=False):
    engine = Engine(model(name, dtype), protocol(name), sizes, kernel=kernel)
    found = sorted(engine.decode(problems, seed=SEED), key=lambda t: t.problem)
    assert engine.traces == 1
    return found


def happened(found):
    """How often problems forked, forked twice, nested, and how threads ended."""
    events = collections.Counter()
    for each in found:
        paths = [thread.path for thread in each.threads]
        events["forked"] += len(paths) > 1
        events["several"] += any(path == (1,) for path in paths)
        events["nested"] += any(len(path) > 1 for path in paths)
        events["again"] += sum(each.log.sampled & (each.log.thread == 0) & (each.log.clock > 60))
        events.update(f"{'root' if not thread.path else 'child'} {thread.stop.name}" for thread in each.threads)
    return events


@pytest.mark.parametrize("name", RULES)
def test_f64_equals_the_oracle(name):
    problems, right = zip(*cases(name, 60), strict=True)
    events = happened(right)
    assert events["forked"] > 20 and events["several"] > 8
    for found, expected in zip(decoded(name, SIZES, problems), right, strict=True):
        oracle.compare(found, expected)
        events.update(format_errors.of(found))
    print(name, dict(events))
    assert events["broken_off"] > 5 and (events["refused"] > 3 or name != "npr")


@pytest.mark.parametrize("name", ["threadweaver, spelt", "multiverse", "npr"])
def test_the_schedule_makes_no_difference(name):
    problems, right = zip(*cases(name, 30), strict=True)
    for found, expected in zip(decoded(name, ONE_ROW, problems), right, strict=True):
        oracle.compare(found, expected)


@pytest.mark.parametrize("name", ["threadweaver", "multiverse"])
def test_cpu_kernels_follow_from_their_own_tokens(name):
    need_kernel()
    problems = [problem for problem, _ in cases(name, 60)]
    interpret = functools.partial(
        oracle.run, forward(name, "float32"), protocol=None, seed=SEED, program=outlining.interpreter(RULES[name])
    )
    full, found = (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL), decoded(name, SIZES, problems, "float32", True)
    fitting = [each for each in found if each.stop not in full]
    assert happened(fitting)["several"] > 8
    for each in fitting:
        run = lambda choose, each=each: interpret(problem=problems[each.problem], choose=choose)
        replaying.replay(each, run, replaying.F32)
