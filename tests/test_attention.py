"""Attention under visibility against a plain loop over queries, heads and visible keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.model.attention import masked_attention, packed_attend, packed_blocks


def plain_attention(q, k, v, mask):
    """[Q, H, h] of one row; queries that see nothing give 0."""
    out = np.zeros(q.shape)
    group = q.shape[1] // k.shape[1]
    for i, head in np.ndindex(q.shape[:2]):
        seen = np.flatnonzero(mask[i])
        if len(seen):
            scores = np.exp([q[i, head] @ k[j, head // group] / np.sqrt(q.shape[2]) for j in seen])
            out[i, head] = sum(s * v[j, head // group] for s, j in zip(scores, seen, strict=True)) / scores.sum()
    return out


def draw(rng, *shapes):
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def random_rows(seed, rows, length, threads):
    """Packed rows of threads with random visibility: owner, clock [B, S], sees [B, U, U]. Sorted by (clock, thread)."""
    rng = np.random.default_rng(seed)
    owner, clock = np.full((rows, length), -1, np.int32), np.zeros((rows, length), np.int32)
    for row in range(rows):
        filled = rng.integers(length // 2, length + 1)
        owners = rng.integers(0, threads, filled)
        clocks = np.zeros(filled, int)
        for thread in range(threads):
            steps = rng.integers(1, 3, np.sum(owners == thread))
            clocks[owners == thread] = rng.integers(0, 5) + np.cumsum(steps)
        order = np.lexsort((owners, clocks))
        owner[row, :filled], clock[row, :filled] = owners[order], clocks[order]
    sees = (rng.random((rows, threads, threads)) < 0.4) | np.eye(threads, dtype=bool)
    return owner, clock, sees


def plain_mask(owner, clock, sees):
    """Bool [S, S] of one row, straight from the rule."""
    mask = np.zeros((len(owner), len(owner)), bool)
    for i, j in np.ndindex(mask.shape):
        if owner[i] >= 0 and owner[j] >= 0 and sees[owner[i], owner[j]]:
            mask[i, j] = clock[j] < clock[i] or (owner[i] == owner[j] and clock[j] == clock[i])
    return mask


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_masked_attention_equals_a_plain_loop(heads, kv_heads):
    rng = np.random.default_rng(0)
    q, k, v = draw(rng, (2, 3, 5, heads, 4), (2, 3, 7, kv_heads, 4), (2, 3, 7, kv_heads, 4))
    mask = (rng.random((2, 3, 5, 7)) < 0.4) & (np.arange(5) != 2)[:, None]
    out = jax.jit(masked_attention)(q, k, v, mask)
    for b in np.ndindex(2, 3):
        np.testing.assert_allclose(out[b], plain_attention(q[b], k[b], v[b], mask[b]), atol=1e-13)
    assert not np.any(out[:, :, 2])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("queries", [1, 5])
def test_masked_attention_keeps_the_dtype_and_large_scores(dtype, queries):
    rng = np.random.default_rng(0)
    q, k, v = draw(rng, (2, queries, 4, 8), (2, 6, 2, 8), (2, 6, 2, 8))
    mask = jnp.asarray(rng.random((2, queries, 6)) < 0.7)
    attend = jax.jit(masked_attention)
    want, got = attend(q, k, v, mask), attend(*(x.astype(dtype) for x in (q, k, v)), mask)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(jnp.float64), want, atol=1e-6 if dtype == jnp.float32 else 0.05)
    assert np.isfinite(
        np.asarray(masked_attention(*(x.astype(dtype) for x in (1e4 * q, 1e4 * k, v)), mask), np.float64)
    ).all()


def test_gradients_are_finite_where_nothing_is_seen():
    rng = np.random.default_rng(0)
    q, k, v = draw(rng, (1, 4, 2, 8), (1, 6, 2, 8), (1, 6, 2, 8))
    mask = jnp.zeros((1, 4, 6), bool).at[:, 3, 1].set(True)
    gradients = jax.jit(jax.grad(lambda *x: jnp.sum(masked_attention(*x, mask) ** 2), (0, 1, 2)))(q, k, v)
    assert all(np.isfinite(x).all() for x in gradients)
    assert not np.any(gradients[0][:, :3]) and np.any(gradients[2][:, 1]) and not np.any(gradients[2][:, 2:])


@pytest.mark.parametrize(("threads", "chunk"), [(1, 8), (5, 8), (5, 7), (40, 16), (70, 64)])
def test_blocks_hold_what_the_rule_says(threads, chunk):
    length = 48
    owner, clock, sees = random_rows(threads, 2, length, threads)
    blocks = jax.jit(packed_blocks, static_argnums=3)(owner, clock, sees, chunk)
    assert [block.shape[1:] for block in blocks] == [
        (min(chunk, length - start), min(start + chunk, length)) for start in range(0, length, chunk)
    ]
    wide = np.concatenate([np.pad(block, ((0, 0), (0, 0), (0, length - block.shape[2]))) for block in blocks], axis=1)
    for row in range(2):
        np.testing.assert_array_equal(wide[row], plain_mask(owner[row], clock[row], sees[row]))


@pytest.mark.parametrize("chunk", [8, 20, 64])
def test_causal_attention_equals_masked_attention(chunk):
    rows = tuple(jnp.asarray(x) for x in random_rows(3, 2, 40, 6))
    q, k, v = draw(np.random.default_rng(1), (2, 40, 4, 8), (2, 40, 2, 8), (2, 40, 2, 8))
    mask = jnp.stack([jnp.asarray(plain_mask(*(np.asarray(x[row]) for x in rows))) for row in range(2)])

    @jax.jit
    def chunked(q, k, v):
        out, cache = packed_attend(*rows, chunk)(q, k, v, "untouched")
        assert cache == "untouched"
        return out

    @jax.jit
    def whole(q, k, v):
        return masked_attention(q, k, v, mask)

    np.testing.assert_allclose(chunked(q, k, v), whole(q, k, v), atol=1e-13)
    gradients = [
        jax.jit(jax.grad(lambda *x, f=f: jnp.sum(jnp.sin(f(*x))), (0, 1, 2)))(q, k, v) for f in (chunked, whole)
    ]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_padding_changes_nothing():
    owner, clock, sees = random_rows(4, 1, 24, 3)
    owner[:, 20:] = -1
    q, k, v = draw(np.random.default_rng(1), *[(1, 24, 2, 4)] * 3)
    rows = tuple(jnp.asarray(x) for x in (owner, clock, sees))
    attend = jax.jit(lambda q, k, v: packed_attend(*rows, 8)(q, k, v, None)[0])
    out, other = attend(q, k, v), attend(*(x.at[:, 20:].set(7) for x in (q, k, v)))
    assert not np.any(out[:, 20:])
    np.testing.assert_array_equal(out, other)
