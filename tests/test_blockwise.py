"""Blockwise attention over packed rows against attention under the whole mask: values, gradients, skipped blocks, memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.model import attention
from apr_jax.model.attention import masked_attention, packed_attend
from apr_jax.model.blockwise import blockwise_attention, live_blocks, reached
from apr_jax.model.config import PRESETS
from apr_jax.train.config import SftConfig
from apr_jax.train.layout import MeshConfig
from apr_jax.train.logs import LogData
from apr_jax.train.packing import pack
from apr_jax.train.step import born, layout_of, step_program
from tests.test_attention import plain_mask, random_rows
from tests.test_packing import simple


def mask_of(rows):
    return np.stack([plain_mask(*(np.asarray(x[row]) for x in rows)) for row in range(len(rows[0]))])


def heads(dtype, length, rows=2, seed=1):
    rng = np.random.default_rng(seed)
    shapes = [(rows, length, count, 8) for count in (4, 2, 2, 4)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def both(function):
    """The result of attention, and gradients for q, k and v of its product with `slope`."""

    def weighed(q, k, v, slope):
        out = function(q, k, v)
        return jnp.sum(out.astype(slope.dtype) * slope), out

    return jax.jit(lambda *given: jax.value_and_grad(weighed, (0, 1, 2), has_aux=True)(*given))


def close(found, wanted, tolerance):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, atol=tolerance * max(np.abs(other).max(), 1))


@pytest.mark.parametrize(("dtype", "chunk", "tolerance"), [
    ("float64", 8, 1e-12), ("float64", 7, 1e-12), ("float32", 16, 1e-5), ("bfloat16", 8, 0.03),
])  # fmt: skip
def test_blocks_give_the_values_and_gradients_of_the_whole_mask(dtype, chunk, tolerance):
    length = 40
    rows = tuple(map(jnp.asarray, random_rows(3, 2, length, 40)))
    mask = jnp.asarray(mask_of(rows))
    assert not mask.any(axis=2).all() and not mask.any(axis=1).all(), "padding"
    given = heads(dtype, length)
    found = both(lambda q, k, v: blockwise_attention(q, k, v, live_blocks(*rows, chunk)))(*given)
    wanted = both(lambda q, k, v: masked_attention(q, k, v, mask))(*(x.astype("float64") for x in given))
    assert found[0][1].dtype == dtype and found[1][0].dtype == dtype
    assert not np.any(found[0][1][~mask.any(axis=2)]), "a query that sees nothing gives 0"
    close(found, wanted, tolerance)
    assert (live_blocks(*rows, chunk).count < np.arange(1, -(-length // chunk) + 1)).any(), "nothing was skipped"


@pytest.mark.parametrize(("seed", "chunk"), [(0, 8), (1, 8), (2, 7), (3, 1), (4, 64)])
def test_live_blocks_are_those_with_a_visible_pair(seed, chunk):
    rows = random_rows(seed, 3, 40, 9)
    found = jax.jit(reached, static_argnums=3)(*rows, chunk)
    more = -40 % chunk
    mask = np.pad(mask_of(rows), ((0, 0), (0, more), (0, more)))
    blocks = mask.shape[1] // chunk
    np.testing.assert_array_equal(found, mask.reshape(3, blocks, chunk, blocks, chunk).any(axis=(2, 4)))


def test_blocks_that_nobody_sees_are_not_read():
    """NaN in the keys and values of such blocks would spoil every sum that they enter."""
    owner = jnp.asarray([[0] * 8 + [1] * 8 + [2] * 8])
    clock = jnp.asarray([[*range(8), *range(8, 16), *range(8, 16)]])
    sees = jnp.asarray([[[True, False, False], [True, True, False], [True, False, True]]])
    q, k, v, _ = heads("float64", 24, 1)
    broken = lambda x: x.at[:, 8:16].set(jnp.nan)
    attend = jax.jit(lambda q, k, v: blockwise_attention(q, k, v, live_blocks(owner, clock, sees, 8)))
    found, clean = attend(q, broken(k), broken(v)), attend(q, k, v)
    apart = np.r_[0:8, 16:24]
    np.testing.assert_array_equal(found[:, apart], clean[:, apart])
    assert np.isnan(found[:, 8:16]).all()


def test_long_rows_take_it():
    short, long = (tuple(map(jnp.asarray, random_rows(5, 1, length, 3))) for length in (64, attention.LONG + 1))
    shapes = [jax.ShapeDtypeStruct((1, 1, 1, 8), "float32")] * 3

    def program(rows):
        given = [x.update(shape=(1, rows[0].shape[1], 1, 8)) for x in shapes]
        return str(jax.make_jaxpr(lambda *x: packed_attend(*rows)(*x, None)[0])(*given))

    assert "while" not in program(short) and "while" in program(long)


def test_a_mesh_gives_the_same_and_moves_no_heads():
    rows = tuple(map(np.asarray, random_rows(6, 4, 40, 6)))
    given = heads("float64", 40, 4)
    layout = MeshConfig(2, 2).layout({})
    cut = jax.NamedSharding(layout.mesh, jax.P("data", None, "model"))

    def weighed(q, k, v, slope, rows):
        return jnp.sum(blockwise_attention(q, k, v, live_blocks(*rows, 8)) * slope)

    program = layout.jit(jax.grad(weighed, (0, 1, 2)), (cut,) * 3)
    placed = (*(jax.device_put(x, cut) for x in given), layout.rows(rows))
    found = program(*placed)
    wanted = jax.jit(jax.grad(weighed, (0, 1, 2)))(*given, tuple(map(jnp.asarray, rows)))
    close(found, wanted, 1e-12)
    text = program.lower(*placed).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


def test_no_array_of_all_pairs_at_16384_entries():
    """By the compiler's own figure; a mask of bytes alone would take 256 MiB, scores in f32 2 GiB."""
    length, threads = 16_384, 64
    rows = [jax.ShapeDtypeStruct((1, length), "int32")] * 2 + [jax.ShapeDtypeStruct((1, threads, threads), "bool")]
    given = [jax.ShapeDtypeStruct((1, length, 2, 32), "float32")] * 3

    def loss(q, k, v, *rows):
        return jnp.sum(packed_attend(*rows, 128)(q, k, v, None)[0] ** 2)

    memory = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*given, *rows).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 48 * 2**20


def test_a_step_on_long_rows_is_that_on_short_ones():
    """Eight threads of 513 entries in one row, and in a row each."""
    records = [simple([513], number) for number in range(8)]
    small = dict(layers=1, width=16, ffn=16, heads=1, kv_heads=1, head_dim=16)
    config = SftConfig(LogData(transcripts=("none",), tokenizer="none"), dataclasses.replace(PRESETS["tiny"], **small))

    def step(length):
        packed, _, count = pack(records, length, 8)
        used = dataclasses.replace(config, rows_per_batch=count.rows, chunk=513)
        layout = layout_of(used)
        program = step_program(used, layout, np.zeros(256, np.int32), 1)
        return program(born(used, layout), jax.tree.map(jnp.asarray, packed), None)[1]

    long, short = step(8 * 513), step(513)
    assert "skipped_blocks" not in short
    np.testing.assert_allclose(long["skipped_blocks"], 1 - 8 / 36, rtol=1e-6)
    for name in ("nll", "weight", "labels", "correct"):
        np.testing.assert_allclose(getattr(long["sums"], name), getattr(short["sums"], name), rtol=1e-5)
    np.testing.assert_allclose(long["gradient_norm"], short["gradient_norm"], rtol=1e-5)
