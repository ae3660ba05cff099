"""Layout on a mesh: rules, refusals, and sharded logits equal to those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax import sharding
from apr_jax.model import transformer
from apr_jax.model.attention import masked_attention
from apr_jax.model.config import ModelConfig

P = jax.sharding.PartitionSpec
CONFIG = ModelConfig(vocabulary=16, width=12, layers=2, heads=4, kv_heads=2, head_dim=6, ffn=20, qk_norm=True)
needs_four = pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices (jax_num_cpu_devices)")


def abstract_mesh(data, model):
    """Sizes alone, so that rules can be tested with more devices than there are."""
    return jax.sharding.AbstractMesh((data, model), ("data", "model"))


def specs(config, mesh):
    axes = transformer.logical_axes(config)
    return jax.tree.map(
        lambda x, names: sharding.fitted_spec(x.shape, names, mesh), transformer.abstract_params(config), axes
    )


def test_rules():
    assert sharding.spec(("vocabulary", "width")) == P("model", None)
    assert sharding.spec(("batch", None, "heads")) == P("data", None, "model")
    other = sharding.TRAINING
    assert sharding.spec(("vocabulary", "width"), other) == P("model", "data")
    with pytest.raises(ValueError, match="no rule for the logical axis 'depth'"):
        sharding.spec(("depth",))


def test_heads_that_do_not_divide_are_replicated():
    attention = specs(CONFIG, abstract_mesh(1, 4))["layers"]["0"]["attention"]
    assert attention["q"] == P(None, "model", None) and attention["k"] == attention["v"] == P(None, None, None)
    assert attention["out"] == P("model", None, None)
    assert specs(CONFIG, abstract_mesh(4, 2))["layers"]["0"]["attention"]["k"] == P(None, "model", None)
    nine = dataclasses.replace(CONFIG, heads=9, kv_heads=3)  # as SmolLM2 has them
    layer = specs(nine, abstract_mesh(1, 4))["layers"]["0"]
    assert layer["attention"]["q"] == layer["attention"]["k"] == P(None, None, None)
    assert layer["attention"]["out"] == P(None, None, None) and layer["ffn"]["gate"] == P(None, "model")
    layout = sharding.explain(transformer.logical_axes(nine), transformer.abstract_params(nine), abstract_mesh(1, 4))
    assert layout == {
        "vocabulary": "16 over model=4",
        "heads": "9 replicated: model=4 does not divide it",
        "kv_heads": "3 replicated: model=4 does not divide it",
        "ffn": "20 over model=4",
    }


@pytest.mark.parametrize(
    ("change", "model", "message"),
    [
        ({}, 3, r"'vocabulary' of size 16 cannot be cut over model=3; use a mesh with model one of \[1, 2\]"),
        ({"vocabulary": 18}, 3, "axis 'ffn' of size 20 cannot be cut over model=3"),
        ({"ffn": 22}, 4, "axis 'ffn' of size 22 cannot be cut over model=4"),
    ],
)
def test_axes_that_do_not_divide_are_refused(change, model, message):
    with pytest.raises(ValueError, match=message):
        specs(dataclasses.replace(CONFIG, **change), abstract_mesh(1, model))


def test_refusals_name_the_parameter():
    params = transformer.abstract_params(dataclasses.replace(CONFIG, ffn=21))
    mesh = abstract_mesh(1, 2)
    with pytest.raises(ValueError, match=r"layers\.0\.ffn\.down: axis 'ffn' of size 21"):
        sharding.shardings(params, transformer.logical_axes(CONFIG), mesh)
    with pytest.raises(ValueError, match="embed has shape"):
        sharding.fitted_spec((2, 3), ("vocabulary",), mesh, name="embed")


def test_meshes_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"data=1000 x model=2 needs 2000 devices.*jax_num_cpu_devices"):
        sharding.make_mesh(1000, 2)
    with pytest.raises(ValueError, match="data=0"):
        sharding.make_mesh(0, 1)
    mesh = sharding.make_mesh()
    assert mesh.axis_names == ("data", "model") and set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@needs_four
@pytest.mark.parametrize(("shape", "tied"), [((4, 1), True), ((2, 2), False), ((1, 4), True)])
def test_sharded_logits_and_gradients_equal_those_of_one_device(shape, tied):
    model = transformer.init(dataclasses.replace(CONFIG, tied=tied), jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 16, (4, 5)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(5, dtype=jnp.int32), (4, 5))
    attend = lambda q, k, v, memory: (masked_attention(q, k, v, jnp.tri(5, dtype=bool)[None]), memory)

    def loss(params, tokens):
        x, _ = transformer.hidden(model.graph, params, tokens, positions, attend, (None, None))
        logits = transformer.logits(model.graph, params, x)
        return jnp.sum(jax.nn.softmax(logits) ** 3), logits

    mesh = sharding.make_mesh(*shape)
    params = sharding.shard_tree(model.params, transformer.logical_axes(model.config), mesh)
    assert len(params["layers"]["0"]["ffn"]["gate"].sharding.device_set) == 4
    rows = jax.device_put(tokens, jax.NamedSharding(mesh, sharding.spec(("batch", None))))
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    want, got = run(model.params, tokens), run(params, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), want, got)


@needs_four
def test_parameters_are_born_where_they_lie():
    mesh, key = sharding.make_mesh(2, 2), jax.random.key(0)
    init = lambda key: transformer.init_params(CONFIG, key)
    params = sharding.born(init, key, transformer.logical_axes(CONFIG), mesh)
    table = params["embed"]
    assert {piece.data.shape for piece in table.addressable_shards} == {(8, 12)} and len(table.sharding.device_set) == 4
    jax.tree.map(np.testing.assert_array_equal, params, transformer.init(CONFIG, key).params)


@needs_four
def test_local_parts_come_in_order_and_once():
    mesh = sharding.make_mesh(2, 2)
    values = np.arange(24).reshape(4, 3, 2)
    placed = sharding.put(values, jax.NamedSharding(mesh, P("data")))
    assert len(placed.addressable_shards) == 4
    np.testing.assert_array_equal(sharding.local(placed), values)
    np.testing.assert_array_equal(sharding.local(jnp.asarray(values)), values)


@needs_four
@pytest.mark.parametrize("rows", [4, 5])
def test_rows_are_drawn_whole(rows):
    """Whether `model` divides them or not, and in different shards on their own."""
    rng, mesh = np.random.default_rng(0), sharding.make_mesh(2, 2)
    logits = rng.normal(size=(2, rows, 8)).astype(np.float32)
    shift = rng.integers(0, 8, size=(2, rows)).astype(np.int32)
    draw = lambda logits, shift: (jnp.argmax(jnp.cumsum(logits, axis=1), axis=1) + shift, jnp.sum(logits, axis=1))

    def shard(logits, shift):
        return jax.tree.map(lambda x: x[None], sharding.by_rows(draw, logits[0], shift[0]))

    mine = {"in_specs": P("data"), "out_specs": P("data"), "axis_names": {"data"}, "check_vma": False}
    placed = jax.device_put(logits, jax.NamedSharding(mesh, P("data", None, "model")))
    token, total = jax.jit(jax.shard_map(shard, mesh=mesh, **mine))(placed, shift)
    np.testing.assert_array_equal(token, logits.cumsum(axis=2).argmax(axis=2) + shift)
    np.testing.assert_allclose(total, logits.sum(axis=2), atol=1e-5)
    np.testing.assert_array_equal(sharding.by_rows(draw, logits[0], shift[0])[0], token[0])  # no mesh
