"""The transformer against a plain NumPy forward pass, and its weights in and out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from apr_jax.model import io, transformer
from apr_jax.model.attention import masked_attention
from apr_jax.model.config import PRESETS, ModelConfig, padded_vocabulary

CONFIG = ModelConfig(vocabulary=11, width=12, layers=2, heads=4, kv_heads=2, head_dim=6, ffn=20, rope_theta=100.0)
VARIANTS = {
    "grouped": CONFIG,
    "qk_norm_untied": dataclasses.replace(CONFIG, qk_norm=True, tied=False),
    "one_kv_head": dataclasses.replace(CONFIG, kv_heads=1, qk_norm=True),
    "all_kv_heads_untied": dataclasses.replace(CONFIG, kv_heads=4, tied=False),
}


def perturbed(config: ModelConfig, seed: int = 0) -> transformer.Model:
    """A model in f64 whose parameters, norm scales included, are all of order 1: errors cannot hide."""
    model = transformer.init(config, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return transformer.Model(
        model.graph, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape)), model.params)
    )


def plain_norm(x, scale, eps):
    return x / np.sqrt(np.mean(x**2) + eps) * scale


def plain_rotation(x, position, theta):
    """Rotates pairs (i, i + h/2) of one head, one pair at a time."""
    half, out = len(x) // 2, np.zeros_like(x)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x))
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return out


def plain_forward(config, params, tokens, positions, mask):
    """Logits of one row, in loops over tokens and heads; mask[i][j] tells whether i sees j."""
    params = jax.tree.map(np.asarray, params)
    x = [params["embed"][token] for token in tokens]
    group = config.heads // config.kv_heads
    for layer in range(config.layers):
        block = params["layers"][str(layer)]
        weights = block["attention"]
        normed = [plain_norm(row, block["attention_norm"]["scale"], config.norm_eps) for row in x]

        def head(name, row, position, i, weights=weights, normed=normed):
            out = normed[row] @ weights[name][:, i]
            if name != "v" and config.qk_norm:
                out = plain_norm(out, weights[f"{name}_norm"]["scale"], config.norm_eps)
            return out if name == "v" else plain_rotation(out, position, config.rope_theta)

        for i in range(len(tokens)):
            for n in range(config.heads):
                q = head("q", i, positions[i], n)
                seen = [j for j in range(len(tokens)) if mask[i][j]]
                scores = np.array([q @ head("k", j, positions[j], n // group) for j in seen]) / np.sqrt(config.head_dim)
                shares = np.exp(scores) / np.sum(np.exp(scores))
                values = sum(s * head("v", j, 0, n // group) for s, j in zip(shares, seen, strict=True))
                x[i] = x[i] + values @ weights["out"][n]
            y, ffn = plain_norm(x[i], block["ffn_norm"]["scale"], config.norm_eps), block["ffn"]
            gate = y @ ffn["gate"]
            x[i] = x[i] + (gate / (1 + np.exp(-gate)) * (y @ ffn["up"])) @ ffn["down"]
    table = params["embed"].T if config.tied else params["head"]
    return np.stack([plain_norm(row, params["norm"]["scale"], config.norm_eps) @ table for row in x])


@jax.jit
def run(model, tokens, positions, mask):
    """Logits of rows [B, S] under one mask [S, S]."""
    attend = lambda q, k, v, cache: (masked_attention(q, k, v, mask), cache + 1)
    cache = tuple(range(model.config.layers))
    x, cache = transformer.hidden(model.graph, model.params, tokens, positions, attend, cache)
    assert cache == tuple(range(1, model.config.layers + 1))
    return transformer.logits(model.graph, model.params, x)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_a_plain_forward_pass(config):
    model = perturbed(config)
    rng = np.random.default_rng(1)
    tokens, positions = rng.integers(0, config.vocabulary, (2, 7)), rng.integers(0, 50, (2, 7))
    mask = (rng.random((7, 7)) < 0.5) & np.tri(7, dtype=bool) | np.eye(7, dtype=bool)
    got = run(model, jnp.asarray(tokens), jnp.asarray(positions), jnp.broadcast_to(mask, (2, 7, 7)))
    assert got.dtype == jnp.float64
    for row in range(2):
        want = plain_forward(config, model.params, tokens[row], positions[row], mask)
        np.testing.assert_allclose(got[row], want, atol=1e-10, rtol=1e-10)


def test_leading_axes_do_not_matter():
    model = perturbed(CONFIG)

    @jax.jit
    def run(tokens):
        attend = lambda q, k, v, cache: (q * jnp.sum(v, -2, keepdims=True), cache)
        return transformer.hidden(model.graph, model.params, tokens, tokens, attend, (None, None))[0]

    want = run(jnp.arange(6))
    for shape in ((6, 1), (1, 3, 2)):
        x = run(jnp.arange(6).reshape(shape))
        assert x.shape == (*shape, CONFIG.width)
        np.testing.assert_allclose(x.reshape(6, -1), want, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "param_dtype"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")]
)
def test_dtypes_and_gradients(dtype, param_dtype):
    config = dataclasses.replace(PRESETS["tiny"], layers=1, dtype=dtype, param_dtype=param_dtype)
    model = transformer.init(config, jax.random.key(0))
    assert {x.dtype.name for x in jax.tree.leaves(model.params)} == {param_dtype}
    mask = jnp.zeros((1, 5, 5), bool).at[:, 2:].set(True)  # the first two rows see nothing

    def loss(params):
        logits = run(transformer.Model(model.graph, params), jnp.arange(5)[None], jnp.arange(5)[None], mask)
        return jnp.mean(logits**2), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(model.params)
    assert logits.dtype == jnp.float32
    assert {x.dtype.name for x in jax.tree.leaves(gradients)} == {param_dtype}
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(gradients))
    assert all(float(np.max(np.abs(np.asarray(x, np.float32)))) > 0 for x in jax.tree.leaves(gradients))


def test_remat_changes_nothing():
    model = perturbed(CONFIG)
    attend = lambda q, k, v, cache: (masked_attention(q, k, v, jnp.tri(6, dtype=bool)[None]), cache)

    def loss(params, remat):
        tokens = jnp.arange(6)[None]
        return jnp.sum(transformer.hidden(model.graph, params, tokens, tokens, attend, (None, None), remat)[0] ** 3)

    # As users compile it (conftest.py turns this off): without, sums near 1 that cancel to 1e-5 come in another order. On jax
    # 0.7.2 they do even so; `atol` is then a rounding of such a sum.
    optimised = {"xla_backend_optimization_level": 3}
    gradient = jax.jit(jax.grad(loss), static_argnums=1, compiler_options=optimised)
    plain, again = (gradient(model.params, remat) for remat in ("everything_saveable", "nothing_saveable"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), plain, again)


def test_graph_is_static_and_params_are_plain():
    model, other = (transformer.init(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    assert model.graph == other.graph and hash(model.graph) == hash(other.graph)
    assert model.graph != transformer.graph_of(VARIANTS["one_kv_head"])
    calls = []

    @jax.jit
    def embed(model):
        calls.append(model.config)
        return model.params["embed"]

    embed(model), embed(other)
    assert calls == [CONFIG]
    assert {type(node) for node in (model.params, model.params["layers"], model.params["layers"]["0"])} == {dict}
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(model.params) == shapes(transformer.abstract_params(CONFIG))
    names = jax.tree.map(lambda x, axes: len(axes) == x.ndim, model.params, transformer.logical_axes(CONFIG))
    assert all(jax.tree.leaves(names))


def test_initialisation():
    params = transformer.init(PRESETS["tiny"], jax.random.key(0)).params
    block = params["layers"]["1"]
    for x in (params["embed"], block["attention"]["q"], block["attention"]["k"], block["ffn"]["gate"]):
        assert abs(float(jnp.std(x)) / 0.02 - 1) < 0.03
    for x in (block["attention"]["out"], block["ffn"]["down"]):
        assert abs(float(jnp.std(x)) / (0.02 / 8**0.5) - 1) < 0.03
    assert float(jnp.max(jnp.abs(block["ffn_norm"]["scale"] - 1))) == 0
    assert not np.array_equal(params["layers"]["0"]["ffn"]["gate"], block["ffn"]["gate"])


def test_memory_must_have_one_item_per_layer():
    model = perturbed(CONFIG)
    with pytest.raises(ValueError, match="cache has 1 items.*2"):
        transformer.hidden(model.graph, model.params, jnp.arange(2), jnp.arange(2), lambda q, k, v, m: (q, m), (None,))


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name):
    config = PRESETS[name]
    assert config.parameters == sum(x.size for x in jax.tree.leaves(transformer.abstract_params(config)))


def test_published_parameter_counts():
    assert round(PRESETS["apr_228m"].parameters_without_tables / 1e6) == 228
    assert round(PRESETS["apr_228m"].parameters / 1e6) == 293
    assert round(PRESETS["qwen3_600m"].parameters / 1e6) == 596
    assert round(PRESETS["qwen3_600m"].parameters_without_tables / 1e6) == 440


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "ModelConfig.width is 0"),
        ({"layers": -1}, "ModelConfig.layers is -1"),
        ({"kv_heads": 3}, r"kv_heads is 3, which does not divide heads=4; choose one of \[1, 2, 4\]"),
        ({"head_dim": 5}, "head_dim is 5"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"dtype": "float16"}, "dtype is 'float16'; it must be one of float32"),
    ],
)
def test_configurations_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_configuration_as_a_dict():
    config = VARIANTS["qk_norm_untied"]
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match=r"unknown fields \['hidden'\], missing fields \['width'\]"):
        ModelConfig.from_dict({("hidden" if k == "width" else k): v for k, v in config.to_dict().items()})
    assert [padded_vocabulary(n) for n in (1, 64, 65)] == [64, 64, 128]


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_save_and_load(config, tmp_path):
    model = transformer.init(config, jax.random.key(0))
    io.save(tmp_path / "model.safetensors", model, config)
    loaded = io.load(tmp_path / "model.safetensors")
    assert loaded.graph == model.graph and loaded.config == config
    jax.tree.map(np.testing.assert_array_equal, model.params, loaded.params)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_bf16_storage(tmp_path):
    model = transformer.init(CONFIG, jax.random.key(0))
    for storage in (None, "bfloat16"):
        io.save(tmp_path / str(storage), model, CONFIG, storage)
    loaded = io.load(tmp_path / "bfloat16").params
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), model.params)
    jax.tree.map(np.testing.assert_array_equal, loaded, rounded)
    sizes = [(tmp_path / name).stat().st_size for name in ("None", "bfloat16")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * CONFIG.parameters, abs=128)
    bf16 = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    io.save(tmp_path / "as_bf16", model, bf16)
    loaded = io.load(tmp_path / "as_bf16").params
    assert {x.dtype.name for x in jax.tree.leaves(loaded)} == {"bfloat16"}


def test_numbers_that_storage_does_not_hold_are_not_lost(tmp_path):
    model = transformer.init(CONFIG, jax.random.key(0))
    large = dict(model.params) | {"embed": model.params["embed"].at[0, 0].set(1e5)}
    with pytest.raises(ValueError, match="storage: float16 does not hold the largest numbers in embed; store float32"):
        io.save(tmp_path / "m", transformer.Model(model.graph, large), CONFIG, "float16")
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_are_refused(tmp_path):
    model = transformer.init(CONFIG, jax.random.key(0))
    path = tmp_path / "model"
    io.save(path, model, CONFIG)
    whole = path.read_bytes()
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load_file(path)

    def refuses(message, tensors=tensors, metadata=metadata):
        safetensors.numpy.save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match=message):
            io.load(path)

    refuses(r"missing \['norm.scale'\]", {k: v for k, v in tensors.items() if k != "norm.scale"})
    refuses(r"left over \['head'\]", tensors | {"head": np.zeros(3)})
    refuses(r"embed is \(11, 13\), not \(11, 12\)", tensors | {"embed": np.zeros((11, 13))})
    refuses("format 'pt'", metadata={"format": "pt"})
    for cut in (4, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            io.load(path)
    with pytest.raises(FileNotFoundError, match="no model file"):
        io.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"left over \['head'\]"):
        io.save(path, transformer.init(VARIANTS["all_kv_heads_untied"], jax.random.key(0)), VARIANTS["grouped"])


def test_equal_weights_are_equal_files(tmp_path):
    """The library writes the entries of the metadata in an order drawn by chance."""
    tensors = {"b": np.arange(6, dtype=np.float32), "a": np.ones((2, 3), np.float16)}
    metadata = {name: f'"{name}" \\ é' for name in ("format", "config", "one", "two", "three")}
    written = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        io.write_tensors(path, tensors, metadata)
        written.add(path.read_bytes())
    assert len(written) == 1
    read, found = io.read_tensors(path, metadata["format"])
    assert list(found) and found == metadata and all(np.array_equal(read[name], x) for name, x in tensors.items())
