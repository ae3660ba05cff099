"""Losses of a chunk of entries at a time: values, gradients and meshes as of whole rows, what is skipped, and memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.model import transformer
from apr_jax.model.config import PRESETS
from apr_jax.model.products import LowRank
from apr_jax.rl import scoring
from apr_jax.train import chunked, losses
from apr_jax.train.layout import MeshConfig

B, S, D, V = 2, 10, 16, 20
CONFIG = dataclasses.replace(
    PRESETS["tiny"], vocabulary=V, width=D, layers=1, heads=1, kv_heads=1, head_dim=16, ffn=16, tied=False
)
GRAPH = transformer.graph_of(CONFIG)


@pytest.fixture(scope="module")
def given():
    """Parameters, hidden states, labels (seven and three in a row), temperatures and the weights of what comes out, in f64."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), transformer.abstract_params(CONFIG))
    label = np.full((B, S), -1)
    label[0, [0, 2, 3, 5, 6, 8, 9]], label[1, [1, 4, 9]] = [3, 19, 0, 7, 7, 1, 2], [0, 5, 11]
    x = rng.normal(size=(B, S, D))
    label[0, 5] = (x[0, 5] @ params["head"]).argmax()  # one label is the most likely token
    parts = params, x, label, rng.uniform(0.5, 2, (B, S)), rng.normal(size=(3, B, S))
    return jax.tree.map(jnp.asarray, parts)


def both(logits, label, temperature):
    nll, correct = losses.cross_entropy(logits, label)
    scores = scoring._score(logits, label, temperature, (1, 2))
    return nll, correct, scores


def value(table, x, given, size: int):
    """A weighted sum of what `both` finds, and all of it."""
    params, _, label, temperature, weights = given
    params = params | {"head": table}
    found = chunked.at_labels(both, GRAPH, params, x, label, temperature.astype(x.dtype), size=size)
    parts = jnp.stack([found[0], found[2].logprob, found[2].entropy])
    return jnp.sum(parts * weights.astype(x.dtype)), found


def plain(table, x, given):
    """The same from the definitions."""
    _, _, label, temperature, weights = given
    real, target = label >= 0, jnp.maximum(label, 0)[..., None]
    logits = x @ table
    cold = jax.nn.log_softmax(logits / temperature.astype(x.dtype)[..., None])
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), target, -1)[..., 0]
    logprob = jnp.take_along_axis(cold, target, -1)[..., 0]
    parts = jnp.where(real, jnp.stack([nll, logprob, -jnp.sum(jnp.exp(cold) * cold, -1)]), 0)
    forks = real & (jnp.exp(cold[..., 1]) + jnp.exp(cold[..., 2]) > scoring.FORK)
    correct = real & (logits.argmax(-1) == target[..., 0])
    return jnp.sum(parts * weights.astype(x.dtype)), (parts[0], correct, scoring.Scores(parts[1], parts[2], forks))


def gradients(function, *static):
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True), static_argnums=static)


def close(found, wanted, rtol: float) -> None:
    """Relative to the largest number of each array: sums of numbers of both signs lose digits."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize(
    ("size", "dtype", "rtol"),
    [(3, "float64", 1e-12), (5, "float32", 1e-6), (S, "float64", 1e-12), (99, "float32", 1e-6)],
)
def test_chunks_give_the_values_and_gradients_of_whole_rows(given, size, dtype, rtol):
    table, x = given[0]["head"].astype(dtype), given[1].astype(dtype)
    found = gradients(lambda table, x: value(table, x, given, size))(table, x)
    wanted = gradients(lambda table, x: plain(table, x, given))(table, x)
    assert found[1][0].dtype == dtype and 0 < wanted[0][1][1].sum() < 10
    close(found, wanted, rtol)


def test_adapters_of_the_table_get_their_gradients(given):
    rng = np.random.default_rng(1)
    adapted = LowRank(given[0]["head"], *map(jnp.asarray, (rng.normal(size=(D, 2)), rng.normal(size=(2, V)))))
    found = gradients(lambda table, x: value(table, x, given, 4))(adapted, given[1])
    wanted = gradients(lambda table, x: plain(table.base + table.a @ table.b, x, given))(adapted, given[1])
    close(found, wanted, 1e-12)


def test_a_mesh_gives_the_same(given):
    layout = MeshConfig(2, 2).layout(transformer.logical_axes(CONFIG))
    params = layout.put(given[0])
    assert params["head"].sharding.shard_shape((D, V)) == (D // 2, V // 2)
    rows = layout.rows(given[1:4])

    def loss(params, x, label, temperature):
        return value(params["head"], x, (params, None, label, temperature, given[4]), 4)

    found = layout.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, *rows)
    wanted = gradients(lambda table, x: plain(table, x, given))(given[0]["head"], given[1])
    close((found[0], (found[1][0]["head"], found[1][1])), wanted, 1e-12)


@pytest.mark.parametrize(("size", "calls"), [(2, 4), (4, 2), (7, 1), (S, 1)])
def test_chunks_without_labels_are_skipped(given, size, calls):
    params, x, label, _, _ = given
    seen = []

    def function(logits, label):
        jax.debug.callback(lambda label: seen.append((label >= 0).sum()), label)
        return label + 1

    found = jax.jit(lambda x, label: chunked.at_labels(function, GRAPH, params, x, label, size=size))(x, label)
    jax.effects_barrier()
    np.testing.assert_array_equal(found, label + 1)
    assert len(seen) == calls and sum(seen) == 10


def test_rows_are_cut_only_where_logits_are_many():
    assert chunked.chunk_size((8, 512), 256, 128) == 512
    assert chunked.chunk_size((1, 4096), 151_936, 128) == 128
    assert chunked.chunk_size((8192, 64), 151_936, 128) == 64
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((8,), ("data",))):
        assert chunked.chunk_size((1, 4096), 151_936, 128) == 4096


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_large_vocabulary_are_never_held(tied):
    entries, vocabulary = 4096, 151_936
    config = dataclasses.replace(CONFIG, vocabulary=vocabulary, width=64, tied=tied)
    graph, params = transformer.graph_of(config), transformer.abstract_params(config)
    x, label = (jax.ShapeDtypeStruct(*of) for of in (((1, entries, 64), jnp.float32), ((1, entries), jnp.int32)))

    def loss(params, x, label):
        size = chunked.chunk_size(label.shape, vocabulary, 128)
        return jnp.sum(chunked.at_labels(losses.cross_entropy, graph, params, x, label, size=size)[0])

    memory = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x, label).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.2 * entries * vocabulary * 4
