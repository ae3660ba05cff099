"""int8 weights against plain NumPy: what is rounded, what is computed with it, where it lies, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference_model
from apr_jax import sharding
from apr_jax.decode import Engine, Problem, Sizes, memory
from apr_jax.model import int8, io, transformer
from apr_jax.model.attention import masked_attention
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Sequential
from apr_jax.tasks.countdown.training import DataConfig
from apr_jax.train import lora
from apr_jax.train.sft import SftConfig

CONFIG = ModelConfig(
    vocabulary=32, width=24, layers=2, heads=4, kv_heads=2, head_dim=6, ffn=40, qk_norm=True,
    dtype="float64", param_dtype="float64",
)  # fmt: skip
UNTIED = dataclasses.replace(CONFIG, tied=False)
SIZES = Sizes(
    problems=2, lanes=1, rows=2, feed_tiles=2, feed_chunk=4, threads=1, slots=64, page_size=8, log=64, log_page_size=8, queue=4,
    prompt=9, outbox=4, attention_block=32,
)  # fmt: skip
# Axes that a channel's sum runs over, written once more.
SUMMED = {name: (0,) for name in ("q", "k", "v", "gate", "up", "down", "head")} | {"out": (0, 1), "embed": (1,)}
PROMPTS = [np.array([3, 1, 4, 1, 5, 9, 2, 6, 5]), np.array([2, 7, 1]), np.array([8, 2, 8, 1, 8])]
NO_END = -1


def model_of(config: ModelConfig) -> transformer.Model:
    """In f64, with parameters of order 1: errors cannot hide."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape))
    return transformer.Model(transformer.graph_of(config), jax.tree.map(draw, transformer.abstract_params(config)))


def plain_rounding(x: np.ndarray, summed: tuple[int, ...]) -> np.ndarray:
    """The numbers that int8 stands for, channel by channel."""
    out = np.zeros_like(x)
    kept = [axis for axis in range(x.ndim) if axis not in summed]
    for channel in np.ndindex(*(x.shape[axis] for axis in kept)):
        where = [slice(None)] * x.ndim
        for axis, number in zip(kept, channel, strict=True):
            where[axis] = number
        scale = np.abs(x[tuple(where)]).max() / 127
        out[tuple(where)] = np.rint(x[tuple(where)] / scale) * scale if scale else 0
    return out


def plain_rounded_params(params) -> dict:
    """The parameter tree with plain arrays of what int8 stands for."""
    flat = {name: np.asarray(leaf) for name, leaf in io.flatten(params).items()}
    summed = {name: SUMMED.get(name.rsplit(".", 1)[-1]) for name in flat}
    return io.nest({name: plain_rounding(x, summed[name]) if summed[name] else x for name, x in flat.items()})


@jax.jit
def forward(model: transformer.Model, tokens: jax.Array) -> jax.Array:
    """Logits [S, V] of one plain row."""
    mask = jnp.tri(tokens.shape[0], dtype=bool)[None]
    attend = lambda q, k, v, memory: (masked_attention(q, k, v, mask), memory)
    rows = jnp.broadcast_to(jnp.arange(tokens.shape[0]), (1, *tokens.shape))
    x, _ = transformer.hidden(model.graph, model.params, tokens[None], rows, attend, (None,) * model.config.layers)
    return transformer.logits(model.graph, model.params, x)[0]


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (2,)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_rounding(axes, dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 7, 3)), dtype).at[..., 1].set(0).at[0, 0].set(0)
    found = int8.quantise(x, axes)
    wide = np.asarray(x, found.scale.dtype)
    assert found.values.dtype == jnp.int8 and found.scale.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    stands_for = np.asarray(found.values, wide.dtype) * np.asarray(found.scale)
    if dtype != "bfloat16":  # in which some numbers lie just between two
        np.testing.assert_allclose(stands_for, plain_rounding(wide, axes), atol=1e-6)
    assert np.all(np.abs(stands_for - wide) <= np.asarray(found.scale) * 0.5001)
    np.testing.assert_allclose(found.scale, np.abs(wide).max(axis=axes, keepdims=True) / 127, rtol=1e-6)
    assert not np.any(np.isnan(stands_for)) and not np.any(stands_for[..., 1])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_logits_are_those_of_the_rounded_weights(config, fused):
    model = model_of(config)
    rounded = transformer.quantise(transformer.fuse(model) if fused else model)
    tokens, wanted = PROMPTS[0], plain_rounded_params(model.params)
    found = forward(rounded, jnp.asarray(tokens))
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(
        found, reference_model.all_logits(wanted, config, tokens, np.arange(len(tokens))), atol=1e-9
    )
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    blank = transformer.abstract_params(rounded.config, fused)
    assert jax.tree.structure(blank) == jax.tree.structure(rounded.params)
    assert [x.shape for x in jax.tree.leaves(blank)] == [x.shape for x in jax.tree.leaves(rounded.params)]
    again = transformer.fuse(transformer.quantise(model)) if fused else rounded
    jax.tree.map(np.testing.assert_array_equal, again.params, rounded.params)
    assert again.graph == rounded.graph and shapes(again.params) == shapes(rounded.params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_narrow_activations_lose_no_more_than_their_own_rounding(dtype):
    config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype)
    model = transformer.init(config, jax.random.key(0))
    rounded = transformer.quantise(model)
    born = transformer.init(rounded.config, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, born.params, rounded.params)
    tokens = PROMPTS[0]
    wide = jax.tree.map(
        lambda x: np.asarray(x, np.float64),
        plain_rounded_params(jax.tree.map(lambda x: x.astype(jnp.float32), model.params)),
    )
    wanted = reference_model.all_logits(wide, config, tokens, np.arange(len(tokens)))
    found = forward(rounded, jnp.asarray(tokens))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, wanted, atol={"float32": 1e-5, "bfloat16": 2e-2}[dtype] * np.abs(wanted).max())


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_engine_decodes_with_the_rounded_weights_on_any_mesh(config, shape):
    mesh, model = sharding.make_mesh(*shape), model_of(config)
    engine = Engine(transformer.quantise(model), Sequential(NO_END), SIZES, mesh)
    assert memory.estimate(engine.model.config, SIZES, mesh).parts["parameters"] == sum(
        piece.data.nbytes
        for leaf in jax.tree.leaves(engine.model.params)
        for piece in leaf.addressable_shards
        if piece.device == jax.devices()[0]
    )
    check_greedy(engine, plain_rounded_params(model.params), config)


def check_greedy(engine: Engine, params, config: ModelConfig, tolerance: float = 1e-9) -> None:
    """Every token is the best of the plain forward pass, with its log-probability."""
    for found in engine.decode([Problem(i, prompt, max_tokens=7) for i, prompt in enumerate(PROMPTS)]):
        tokens, first = found.tokens(0), len(PROMPTS[found.problem])
        assert len(tokens) == first + 7
        logits = reference_model.all_logits(params, config, tokens, np.arange(len(tokens)))[first - 1 : -1]
        wanted = np.stack([reference_model.log_softmax(row) for row in logits])
        np.testing.assert_array_equal(tokens[first:], wanted.argmax(axis=1))
        np.testing.assert_allclose(found.log.logprob[first:], wanted.max(axis=1), atol=tolerance)


def test_scales_are_cut_with_their_channels():
    mesh = jax.sharding.AbstractMesh((1, 2), ("data", "model"))
    config = dataclasses.replace(UNTIED, int8_weights=True)
    places = sharding.shardings(transformer.abstract_params(config), transformer.logical_axes(config), mesh)
    layer, spec = places["layers"]["0"], jax.P
    cuts = lambda weight: (weight.values.spec, weight.scale.spec)
    assert cuts(layer["attention"]["k"]) == (spec(None, "model", None),) * 2
    assert cuts(layer["attention"]["out"]) == (spec("model", None, None), spec(None, None, None))
    assert cuts(layer["ffn"]["up"]) == (spec(None, "model"),) * 2
    assert cuts(layer["ffn"]["down"]) == (spec("model", None), spec(None, None))
    assert cuts(places["embed"]) == (spec("model", None),) * 2 and cuts(places["head"]) == (spec(None, "model"),) * 2
    assert layer["ffn_norm"]["scale"].spec == spec(None)


def test_what_int8_weights_are_not_for():
    model = model_of(CONFIG)
    rounded = transformer.quantise(model)
    with pytest.raises(ValueError, match="int8 already"):
        transformer.quantise(rounded)
    shape = lora.Lora(rank=2)
    adapted = lora.apply(shape, model.params, lora.init(shape, CONFIG, jax.random.key(0)))
    with pytest.raises(ValueError, match="merge the adapters first"):
        transformer.quantise(transformer.Model(model.graph, adapted))
    with pytest.raises(ValueError, match="save the model that `quantise` was given"):
        io.save("nowhere.safetensors", rounded, rounded.config)
    with pytest.raises(ValueError, match=r"model.int8_weights is True.*train with False"):
        SftConfig(DataConfig(), model=rounded.config)
    with pytest.raises(ValueError, match=r"int8_weights is 'yes'; it must be True or False"):
        dataclasses.replace(CONFIG, int8_weights="yes")
