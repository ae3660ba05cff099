"""LoRA: nothing changes at first, only adapters learn, merged is the same as unmerged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apr_jax import sharding
from apr_jax.model import io, transformer
from apr_jax.model.attention import packed_attend
from apr_jax.model.config import ModelConfig
from apr_jax.pretrained import save_pretrained
from apr_jax.train import lora

CONFIG = ModelConfig(vocabulary=32, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=24, qk_norm=True)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 12))


def logits(graph, params):
    tokens, positions = jnp.asarray(TOKENS), jnp.broadcast_to(jnp.arange(12), TOKENS.shape)
    attend = packed_attend(jnp.zeros_like(tokens), positions, jnp.ones((2, 1, 1), bool))
    x, _ = transformer.hidden(graph, params, tokens, positions, attend, (None,) * graph.config.layers)
    return transformer.logits(graph, params, x)


@pytest.mark.parametrize("targets", [lora.PRODUCTS, ("q", "v")])
def test_a_few_steps_move_only_the_adapters(targets):
    model = transformer.init(CONFIG, jax.random.key(0))
    shape = lora.Lora(rank=3, alpha=6.0, targets=targets)
    adapters = lora.init(shape, CONFIG, jax.random.key(1))
    assert {name.split(".")[-2] for name in io.flatten(adapters)} == set(targets)
    apply = lambda adapters: lora.apply(shape, model.params, adapters)
    run = jax.jit(lambda adapters: logits(model.graph, apply(adapters)))
    plain = jax.jit(logits, static_argnums=0)
    np.testing.assert_allclose(run(adapters), plain(model.graph, model.params), atol=1e-6, rtol=0)

    def loss(adapters):
        scores = logits(model.graph, apply(adapters))[:, :-1]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, jnp.asarray(TOKENS[:, 1:])))

    optimizer = optax.adam(3e-2)
    state, step, losses, first = optimizer.init(adapters), jax.jit(jax.value_and_grad(loss)), [], adapters
    before = jax.tree.map(np.array, model.params)
    for _ in range(6):
        value, gradients = step(adapters)
        assert jax.tree.structure(gradients) == jax.tree.structure(adapters)
        updates, state = optimizer.update(gradients, state)
        adapters = optax.apply_updates(adapters, updates)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.03
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), adapters, first)))
    jax.tree.map(np.testing.assert_array_equal, model.params, before)

    merged = lora.merge(shape, model.params, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(model.params)
    np.testing.assert_allclose(plain(model.graph, merged), run(adapters), atol=1e-5, rtol=0)
    changed = {name for name, x in io.flatten(merged).items() if np.any(x != io.flatten(model.params)[name])}
    assert changed == {name for name in io.flatten(model.params) if name.split(".")[-1] in targets}


def test_adapters_of_bf16_weights_are_f32_and_lie_on_a_mesh():
    config = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    shape = lora.Lora(rank=2)
    adapters = lora.init(shape, config, jax.random.key(0))
    assert {x.dtype.name for x in jax.tree.leaves(adapters)} == {"float32"}
    placed = sharding.shard_tree(adapters, lora.axes(shape, config), sharding.make_mesh(model=2))
    assert placed["layers"]["0"]["attention"]["q"]["b"].sharding.spec[1] == "model"
    assert placed["layers"]["1"]["ffn"]["down"]["a"].sharding.spec[0] == "model"
    merged = lora.merge(shape, transformer.init(config, jax.random.key(1)).params, adapters)
    assert {x.dtype.name for x in jax.tree.leaves(merged)} == {"bfloat16"}


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Lora.rank is 0"):
        lora.Lora(rank=0)
    with pytest.raises(ValueError, match=r"Lora.targets is \('query',\); it must name some of q, k, v, out"):
        lora.Lora(targets=("query",))
    model, shape = transformer.init(CONFIG, jax.random.key(0)), lora.Lora(rank=2)
    unmerged = lora.apply(shape, model.params, lora.init(shape, CONFIG, jax.random.key(1)))
    with pytest.raises(ValueError, match="left over .*layers.0.attention.q.a"):
        save_pretrained(tmp_path / "x", transformer.Model(model.graph, unmerged))
