"""Keys and values in int8 against plain NumPy: what is stored, what attention makes of it, what an engine decodes with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_model
from apr_jax import sharding
from apr_jax.decode import Engine, Problem, Sizes, memory, native, pool
from apr_jax.model import transformer
from apr_jax.model.config import PRESETS
from apr_jax.protocols import Samples, Sequential
from apr_jax.tools import hlo
from test_int8 import CONFIG, NO_END, PROMPTS, SIZES, check_greedy, model_of, plain_rounded_params
from test_memory import IN_PLACE

INT8 = dataclasses.replace(SIZES, int8_pool=True)
GB = 10**9


def rounded(x: np.ndarray) -> np.ndarray:
    """What int8 stands for, of keys or values [.., K, h]: one scale a slot and head."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.rint(x / scale) * scale


def filled(keys: np.ndarray, values: np.ndarray, dtype: str) -> tuple:
    """Pools [P, N, ..] to which the slots of all problems were written, in two steps and in no order."""
    problems, slots, heads, size = keys.shape
    sizes = Sizes(
        problems=problems, lanes=1, rows=problems, slots=slots, page_size=1, attention_block=8, int8_pool=True
    )
    order = np.random.default_rng(1).permutation(problems * slots).reshape(2, problems, -1)
    blank, out = pool.empty(sizes, heads, size, dtype), []
    for numbers in (keys, values):
        stored = blank
        for places in order:
            row, slot = np.divmod(places, slots)
            nowhere = np.full((len(row), 1), slots)  # an idle row's
            new = np.concatenate([numbers[row, slot], np.full((len(row), 1, heads, size), 9.0)], axis=1)
            spots = (
                jnp.asarray(np.concatenate([slot, nowhere], axis=1)),
                jnp.asarray(np.concatenate([row, row[:, :1]], 1)),
            )
            stored = jax.jit(pool.put)(stored, jnp.asarray(new, dtype), spots[1], spots[0])
        out.append(stored)
    return tuple(out)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 3e-2)])
@pytest.mark.parametrize("some", [False, True])
def test_attention_is_that_of_the_rounded_keys_and_values(some, dtype, tolerance):
    rng = np.random.default_rng(0)
    problems, slots, heads, kv, size, tokens = 4, 24, 6, 3, 16, 2
    draw = lambda *shape: np.asarray(jnp.asarray(rng.normal(size=shape), dtype), np.float64)
    keys, values, q = (
        draw(problems, slots, kv, size),
        draw(problems, slots, kv, size),
        draw(problems, tokens, heads, size),
    )
    rows = np.array([2, 0, 2, 1]) if some else np.arange(problems)
    mask = (rng.random((problems, tokens, slots)) < 0.4) & (np.arange(slots) < 16)
    mask[0, 0], mask[1, 1] = False, np.arange(slots) == 5
    view = pool.View(jnp.asarray(mask), jnp.int32(2))
    stored = filled(keys, values, dtype)
    assert all(s.values.dtype == jnp.int8 and s.values.shape == (problems, slots, kv * size) for s in stored)
    assert all(s.scale.shape == (problems, kv, slots) for s in stored)
    found = jax.jit(pool.blockwise_attention, static_argnums=4)(
        jnp.asarray(q, dtype), *stored, view, 8, jnp.asarray(rows) if some else None
    )
    k, v = rounded(keys)[rows], rounded(values)[rows]
    for x, token, head in np.ndindex(problems, tokens, heads):
        seen, group = mask[x, token], head // (heads // kv)
        scores = k[x, seen, group] @ q[x, token, head] / np.sqrt(size)
        shares = np.exp(scores) / np.exp(scores).sum()
        wanted = shares @ v[x, seen, group] if seen.any() else np.zeros(size)
        np.testing.assert_allclose(found[x, token, head].astype(jnp.float64), wanted, atol=tolerance)
        if seen.sum() == 1:  # then it is that slot's value, and no number is off by more than half a step
            exact = values[rows[x], seen, group][0]
            error = np.abs(np.asarray(found[x, token, head], np.float64) - exact)
            assert error.max() <= np.abs(exact).max() / 254 + tolerance


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 4)])
def test_engine_decodes_with_the_rounded_keys_and_values_on_any_mesh(shape, monkeypatch):
    """Fed in tiles and one by one; also with int8 weights."""
    plain = reference_model._project

    def project(*arguments):
        query, key, value = plain(*arguments)
        return query, rounded(key), rounded(value)

    monkeypatch.setattr(reference_model, "_project", project)
    mesh, model = sharding.make_mesh(*shape), model_of(CONFIG)
    for own, params in (
        (model, jax.tree.map(np.asarray, model.params)),
        (transformer.quantise(model), plain_rounded_params(model.params)),
    ):
        engine = Engine(own, Sequential(NO_END), INT8, mesh)
        check_greedy(engine, params, CONFIG)
    state = engine.create(0)
    pieces = [
        p for leaf in jax.tree.leaves(state.pool) for p in leaf.addressable_shards if p.device == jax.devices()[0]
    ]
    assert memory.estimate(engine.model.config, INT8, mesh).parts["pool"] == sum(p.data.nbytes for p in pieces)
    values, scale = jax.tree.leaves(state.pool)[:2]
    cut = 2 if shape[1] == 2 else 1  # two kv heads are not cut four ways
    assert values.sharding.shard_shape(values.shape)[1:] == (2, 64, 12 // cut)
    assert scale.sharding.shard_shape(scale.shape)[1:] == (2, 2 // cut, 64)


def test_schedule_does_not_matter():
    """Threads that share a prompt: a slot's scale is its own, so the tokens are the same whatever is fed when."""
    model, protocol = model_of(CONFIG), Samples(3, end=0)
    wide = dataclasses.replace(INT8, lanes=3, rows=6, threads=4, slots=128, log=128, attention_block=64)
    narrow = dataclasses.replace(
        wide, problems=1, lanes=2, rows=2, feed_tiles=1, feed_chunk=3, page_size=4, attention_block=32
    )
    problems = [Problem(i, prompt, temperature=1.0, max_tokens=9) for i, prompt in enumerate(PROMPTS)]
    one, other = (
        sorted(Engine(model, protocol, sizes).decode(problems), key=lambda t: t.problem) for sizes in (wide, narrow)
    )
    for a, b in zip(one, other, strict=True):
        assert len(a.threads) == len(b.threads) == 4
        for thread in range(4):
            np.testing.assert_array_equal(a.tokens(thread), b.tokens(thread))


def test_the_pool_is_written_in_place():
    sizes = dataclasses.replace(INT8, slots=4096, log=1024, attention_block=512)
    config = dataclasses.replace(CONFIG, dtype="float32", param_dtype="float32")
    engine = Engine(transformer.init(config, jax.random.key(0)), Sequential(NO_END), sizes)
    program = engine.compile()
    state = engine.placement.abstract_state()
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    analysis, lines = program.memory_analysis(), hlo.inside_loops(program.as_text())
    assert analysis.alias_size_in_bytes >= size(state)
    assert analysis.temp_size_in_bytes < size(state.pool)
    scales = ("f32[2,2,4096]",) if jax.__version_info__ >= (0, 10) else ()  # before, XLA turns them in every step
    for shape in ("s8[2,4096,12]", *scales):
        shaped = hlo.operations(lines, shape)
        assert len(shaped) >= 4 * CONFIG.layers, f"{shape} was not found in the loops: has the pool changed?"
        assert not [line for operation, line in shaped if operation not in IN_PLACE]


def test_what_it_takes_is_told():
    config, mesh = PRESETS["qwen3_8b"], jax.sharding.AbstractMesh((1, 8), ("data", "model"))
    sizes = Sizes(problems=16, slots=16384, attention_block=512)
    eight = dataclasses.replace(sizes, int8_pool=True)
    plain, small = (memory.estimate(config, s, mesh) for s in (sizes, eight))
    assert small.parts["pool"] / plain.parts["pool"] == (128 + 4) / 256
    assert "16384 slots x (128 bytes + 1 scales x 4 bytes)" in str(small)
    assert memory.largest(config, eight, 9 * GB, "slots", mesh) > 1.9 * memory.largest(
        config, sizes, 9 * GB, "slots", mesh
    )
    bounds = dict(prompt=6, tokens=40, threads=9, lanes=3, problems=1000)
    chosen = [memory.choose_sizes(CONFIG, 20_000_000, **bounds, int8_pool=on) for on in (False, True)]
    assert [c.int8_pool for c in chosen] == [False, True] and chosen[1].problems > chosen[0].problems


def test_what_an_int8_pool_is_not_for():
    for value in (2, "int8", None):
        with pytest.raises(ValueError, match=r"sizes.int8_pool = .*must be True or False"):
            Sizes(int8_pool=value)
    mesh = sharding.make_mesh()
    config = dataclasses.replace(CONFIG, head_dim=16)
    assert native.obstacle(config, jnp.float32, Sizes(), mesh) is None
    assert "int8_pool" in native.obstacle(config, jnp.float32, Sizes(int8_pool=True), mesh)
    with pytest.raises(ValueError, match="the CPU kernels cannot be used: sizes.int8_pool"):
        native.choose(True, config, jnp.float32, Sizes(int8_pool=True), mesh)
