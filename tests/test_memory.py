"""The compiled program works in place: the state is donated, the pool is never copied, and nothing compiles twice."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import forking
from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Samples, SpawnJoin
from apr_jax.tools import hlo

WORDS = forking.Words()
CONFIG = ModelConfig(
    vocabulary=16, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=48, qk_norm=True, tied=False
)  # fmt: skip
SIZES = Sizes(
    problems=4, lanes=4, rows=12, feed_tiles=3, feed_chunk=8, feed_threshold=2, threads=24, slots=4096, log=1024, queue=16,
    prompt=8, outbox=8, attention_block=512,
)  # fmt: skip
PROTOCOLS = {
    "samples": Samples(count=4, end=WORDS.end),
    "spawn_join": SpawnJoin(
        spawn=WORDS.spawn, wait=WORDS.wait, result=WORDS.result, join=WORDS.join, end=WORDS.end, go=WORDS.go, max_depth=2
    ),
}  # fmt: skip
POOL = f"f32[{SIZES.problems},{SIZES.slots},{CONFIG.kv_heads * CONFIG.head_dim}]"
POOL_BYTES = 2 * CONFIG.layers * 4 * SIZES.problems * SIZES.slots * CONFIG.kv_heads * CONFIG.head_dim
# Operations that may give an array of the pool's shape inside of a loop: they pass it on, or write to it in place.
IN_PLACE = {
    "parameter", "get-tuple-element", "tuple", "while", "call", "fusion", "bitcast", "scatter", "dynamic-update-slice"
}  # fmt: skip


@functools.cache
def engine(name: str) -> Engine:
    biased = forking.biased_model(CONFIG, 0, WORDS.bias())
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), biased.params)
    return Engine(type(biased)(biased.graph, params), PROTOCOLS[name], SIZES)


@functools.cache
def compiled(name: str) -> jax.stages.Compiled:
    return engine(name).compile()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_state_is_aliased_and_little_is_held_beside_it(name):
    analysis = compiled(name).memory_analysis()
    state = engine(name).placement.abstract_state()
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert POOL_BYTES > 8e6 and state_bytes > POOL_BYTES
    assert analysis.alias_size_in_bytes >= state_bytes
    lanes, feed = SIZES.problems * SIZES.lanes, SIZES.feed_tiles * SIZES.feed_chunk
    scores = 4 * CONFIG.heads * max(lanes, feed) * SIZES.slots
    assert analysis.temp_size_in_bytes < 0.05 * POOL_BYTES + scores


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_loop_copies_the_pool(name):
    lines = hlo.inside_loops(compiled(name).as_text())
    shaped = hlo.operations(lines, POOL)
    assert len(shaped) > 4 * CONFIG.layers, "the pool was not found in the loops: has its shape changed?"
    wrong = [line for operation, line in shaped if operation not in IN_PLACE]
    assert not wrong, "\n".join(wrong)
    # A conditional would have to hand the pool through both branches.
    assert not [line for line in lines if " conditional(" in line and POOL in line]


def test_one_compilation_for_all_mixes(caplog):
    """Whatever the number of problems, their prompts, budgets and sampling parameters, and what the model decides."""
    rng = np.random.default_rng(0)

    def run(name: str, count: int) -> None:
        cases = [forking.random_case(rng, i, prompt=8) for i in range(count)]
        problems = [
            Problem(**{field.name: getattr(case, field.name) for field in dataclasses.fields(case)}) for case in cases
        ]
        assert len(list(engine(name).decode(problems, seed=count, slice_steps=7))) == count

    for name in PROTOCOLS:
        run(name, 2)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        jax.jit(lambda x: x + 1)(jnp.ones(3))
        assert "<lambda>" in caplog.text, "compilations are not logged any more; count them another way"
        for name in PROTOCOLS:
            for count in (1, 5, 20):
                run(name, count)
    assert "_traced" not in caplog.text
    assert [engine(name).traces for name in PROTOCOLS] == [1, 1]
