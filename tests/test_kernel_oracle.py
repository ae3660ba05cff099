"""The CPU kernels against the interpreter, in f32 and bfloat16, and XLA's attention beside: forks, joins, races, lines, splits.

All follow from their own tokens (`replaying`): what a thread saw, and when, is exact in every one of them. In bfloat16 the
interpreter computes from the same weights in f64, with nothing rounded on the way: a greedy token's logit is within 0.05 of
the best one, the draw of any other within 0.03 of its interval, log-probabilities are within 0.15 (measured with AVX512-BF16:
0.007, 0.007 and 0.06, which `pytest -s` prints). In these problems nothing is cut by top-k and top-p, at whose edges bfloat16
falls either way. That such bounds find faults is checked: most records are refused when the interpreter's model misses a token.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np
import pytest

import forking
import fuzz_programs
import oracle
import processor
import program_oracle
import racing
import racing_oracle
import reference_model
import replaying
import test_splits
import test_together
from apr_jax.decode import Engine, Problem, native
from apr_jax.decode.native.product import Packed
from apr_jax.model.transformer import Model
from program_protocol import Programs
from test_engine import SIZES
from test_native import need_kernel

SEED = 3
BF16 = replaying.Differences(greedy=0.05, draw=0.03, logprob=0.15)
ALLOWED = {"float32": replaying.F32, "bfloat16": BF16}
# Heads of 64 are those that the faster products are compiled for, and of these widths all but the head is packed for them.
CONFIGS = {"float32": dict(head_dim=16), "bfloat16": dict(head_dim=64, width=32, ffn=64)}
PATHS = {"f32": ("float32", True), "f32, XLA": ("float32", False), "bf16": ("bfloat16", True)}
SEEDS = {"float32": 5, "bfloat16": 9}  # of weights under which all that is wanted happens
# Each with the sizes it runs on, and what must happen in its problems.
PROTOCOLS = {
    "races, lines and splits": (
        test_splits.VARIANTS["in races"][0], SIZES["no feed steps"], ("KILLED", "CONTINUED", "SPLIT"),
    ),
    "together": (test_together.VARIANTS["races"][0], test_together.TIGHT, ("KILLED",)),
}  # fmt: skip


@functools.cache
def model(dtype: str, programs: bool) -> Model:
    """Of programs of threads (`fuzz_programs`), or of the words that fork, race and so on."""
    fields = dict(dtype=dtype, param_dtype=dtype, **CONFIGS[dtype])
    if programs:
        return fuzz_programs.random_model(dataclasses.replace(fuzz_programs.CONFIG, **fields))
    wide = forking.biased_model(dataclasses.replace(racing.CONFIG, **fields), SEEDS[dtype], racing.bias(), 1.2)
    return Model(wide.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), wide.params))


@functools.cache
def forward(dtype: str, programs: bool) -> reference_model.Forward:
    return reference_model.transformer(model(dtype, programs).params, model(dtype, programs).config)


def check_path(engine: Engine, kernel: bool) -> str:
    """Assert that an engine takes the richest path that the processor has, or XLA's; returns which."""
    assert engine.program.kernel is kernel
    if not kernel:
        return "XLA"
    config = engine.model.config
    path, products = native.attention_path(config.dtype, config.head_dim), ""
    faster = [path for path in processor.paths() if path in ("AMX", "AVX512-BF16")]
    if config.dtype == "bfloat16":
        assert path == processor.paths()[0]
        products = native.product_path()
        assert products == (faster[0] if faster else "")
    else:
        assert path == [path for path in processor.paths() if path not in faster][0]
    packed = isinstance(engine.model.params["layers"]["0"]["attention"]["out"], Packed)
    assert packed == bool(products)
    return f"attention {path}, products {products or 'XLA'}, {processor.name()}"


def edged(problem: Problem, dtype: str) -> Problem:
    """As it is, or without what cuts the distribution off."""
    return problem if dtype == "float32" else dataclasses.replace(problem, top_k=0, top_p=1.0)


def blind(forward: reference_model.Forward) -> reference_model.Forward:
    """A model that is wrong: a token that sees more than three does not see one of them."""

    def wrong(fed: reference_model.Fed) -> np.ndarray:
        others = [other for other in fed.sees if other is not fed]
        if len(others) < 3 or len(fed.mates) > 1:
            return forward(fed)
        del others[len(others) // 2]
        again = reference_model.Fed(fed.token, fed.position)
        again.sees = [*others, again]
        return forward(again)

    return wrong


def check(name: str, engine: Engine, problems: list[Problem], interpret: Callable, kernel: bool) -> collections.Counter:
    """Decode and replay, but for the few problems that do not fit; returns how threads ended.

    Args:
        interpret: (model, problem, choose) to what is right.
    """
    path, dtype = check_path(engine, kernel), engine.model.config.dtype
    right = forward(dtype, name == "programs")
    found, stops, refused = replaying.Differences(), collections.Counter(), 0
    fitting = [
        transcript for transcript in engine.decode(problems, seed=SEED) if transcript.stop not in fuzz_programs.FULL
    ]
    for transcript in fitting:
        problem = problems[transcript.problem]
        again = functools.partial(interpret, right, problem)
        found = found.largest(replaying.replay(transcript, again, ALLOWED[dtype]))
        stops.update(thread.stop.name for thread in transcript.threads)
        try:
            replaying.replay(transcript, functools.partial(interpret, blind(right), problem), ALLOWED[dtype])
        except AssertionError:
            refused += 1
    what = f"{len(fitting)} of {len(problems)} problems fit, {refused} are refused by a model that is wrong"
    print(f"\n{name}, {dtype}: {path}; {what}; {found}; {dict(stops)}")
    assert 2 * len(fitting) > len(problems) and 3 * refused > 2 * len(fitting) and engine.traces == 1
    return stops


@pytest.mark.parametrize(
    ("name", "path"),
    [*itertools.product(PROTOCOLS, ("f32", "bf16")), ("races, lines and splits", "f32, XLA")],
)
def test_protocols_follow_from_their_own_tokens(name, path):
    need_kernel()
    dtype, kernel = PATHS[path]
    protocol, sizes, wanted = PROTOCOLS[name]
    engine = Engine(model(dtype, False), protocol, sizes, kernel=kernel)
    rng = np.random.default_rng(11)
    problems = [Problem(**vars(forking.random_case(rng, number, max_tokens=16))) for number in range(30)]

    def interpret(forward, problem, choose):
        return oracle.run(forward, problem, protocol, SEED, choose=choose, world=racing_oracle.World)

    stops = check(name, engine, [edged(problem, dtype) for problem in problems], interpret, kernel)
    assert all(stops[what] >= 5 for what in wanted), stops


@pytest.mark.parametrize("path", ["f32", "bf16"])
def test_programs_follow_from_their_own_tokens(path):
    """A profile of `fuzz_programs`: forks in all contexts, joins, kills, turns, cuts, races and shared budgets."""
    need_kernel()
    dtype, kernel = PATHS[path]
    setting = fuzz_programs.SETTINGS["races"]
    engine = Engine(model(dtype, True), Programs(setting.live, setting.races), setting.sizes, kernel=kernel)
    case = fuzz_programs.draw_case(0, 80, ("races",))
    bodies = [body for _, body in case.problems]

    def interpret(forward, problem, choose):
        return program_oracle.run(forward, problem, bodies[problem.id], SEED, choose=choose).transcript

    stops = check("programs", engine, [edged(problem, dtype) for problem, _ in case.problems], interpret, kernel)
    assert all(stops[what] >= 5 for what in ("KILLED", "CONTINUED", "SPLIT", "SHARED", "LENGTH")), stops
