"""Pretrained models in and out, against transformers and the package gguf."""

import dataclasses
import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from apr_jax import sharding
from apr_jax.model import io, transformer
from apr_jax.model.attention import packed_attend
from apr_jax.model.config import ModelConfig
from apr_jax.model.rope import RopeScaling, frequencies
from apr_jax.pretrained import load_pretrained, save_pretrained

CONFIG = ModelConfig(vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=64, norm_eps=1e-5)
LENGTH = 48
SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn_other": {
        "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16, "beta_fast": 8.0, "beta_slow": 0.5,
        "attention_factor": 1.2,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}  # fmt: skip
PEERS = {
    "llama": ("Llama", {}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "llama_biases": ("Llama", {"attention_bias": True}),
    **{f"llama_{name}": ("Llama", {"scaling": scaling}) for name, scaling in SCALINGS.items()},
    "qwen2": ("Qwen2", {}),
    "qwen2_tied_yarn": ("Qwen2", {"tie_word_embeddings": True, "scaling": SCALINGS["yarn"]}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_tied_yarn": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "scaling": SCALINGS["yarn"]}),
    "qwen3_biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
}


@jax.jit
def causal_logits(model, tokens):
    """Logits [B, S, V] of plain rows."""
    rows, length = tokens.shape
    attend = packed_attend(
        jnp.zeros_like(tokens), jnp.broadcast_to(jnp.arange(length), tokens.shape), jnp.ones((rows, 1, 1), bool)
    )
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    memory = (None,) * model.config.layers
    x, _ = transformer.hidden(model.graph, model.params, tokens, positions, attend, memory)
    return transformer.logits(model.graph, model.params, x)


def peer(family, extra):
    """A random model of transformers whose parameters, norms and biases included, all matter."""
    torch = pytest.importorskip("torch", reason="torch is not installed: see requirements-peers.txt")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: see requirements-peers.txt"
    )
    extra = dict(extra)
    scaling = extra.pop("scaling", {"rope_type": "default"})
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, rope_parameters={"rope_theta": 10000.0, **scaling},
        **{"tie_word_embeddings": False, **extra},
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model


@pytest.mark.parametrize(("family", "extra"), PEERS.values(), ids=PEERS)
def test_logits_and_round_trip_against_transformers(family, extra, tmp_path):
    theirs = peer(family, extra)
    import torch
    import transformers

    theirs.save_pretrained(tmp_path / "theirs")
    model = load_pretrained(tmp_path / "theirs")
    assert model.config.param_dtype == "float32"
    tokens = np.random.default_rng(0).integers(0, 64, (2, LENGTH))
    with torch.no_grad():
        want = theirs(torch.tensor(tokens)).logits.numpy()
    difference = np.abs(np.asarray(causal_logits(model, jnp.asarray(tokens))) - want).max()
    assert difference <= 2e-4, f"logits differ by {difference}, theirs reach {np.abs(want).max()}"

    save_pretrained(tmp_path / "ours", model, tmp_path / "theirs")
    before = safetensors.numpy.load_file(tmp_path / "theirs" / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert type(again) is type(theirs)
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.tensor(tokens)).logits.numpy(), want, atol=1e-5)


def random_model(**changes):
    config, rng = dataclasses.replace(CONFIG, **changes), np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)
    return transformer.Model(transformer.graph_of(config), jax.tree.map(draw, transformer.abstract_params(config)))


@pytest.fixture
def folder(tmp_path):
    """A folder of a random model, and the model."""
    model = random_model(tied=False)
    save_pretrained(tmp_path / "model", model)
    return tmp_path / "model", model


def assert_same(a, b):
    assert a.config == b.config
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_shards_and_meshes_and_dtypes(folder, tmp_path):
    whole, model = folder
    save_pretrained(tmp_path / "shards", model, whole, shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert_same(load_pretrained(tmp_path / "shards"), model)
    mesh = sharding.make_mesh(data=2, model=2)
    cut = load_pretrained(whole, mesh)
    assert_same(cut, model)
    wanted = sharding.shardings(model.params, transformer.logical_axes(model.config), mesh)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), cut.params, wanted))
    half = load_pretrained(whole, dtype="bfloat16")
    assert half.config.dtype == half.config.param_dtype == "bfloat16"
    assert_same(half, transformer.Model(half.graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)))
    save_pretrained(tmp_path / "half", half)
    assert_same(load_pretrained(tmp_path / "half"), half)
    with pytest.raises(ValueError, match="float16"):
        load_pretrained(whole, dtype="float16")
    with pytest.raises(ValueError, match=r"axis 'vocabulary' of size 64 cannot be cut over model=3"):
        load_pretrained(whole, jax.sharding.AbstractMesh((1, 3), ("data", "model")))


def test_the_tokenizer_and_harmless_fields_travel(folder, tmp_path):
    source, model = folder
    fields = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(fields | {"eos_token_id": 7, "max_position_embeddings": 99}))
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_text("never copied, never read")
    save_pretrained(tmp_path / "copy", model, source)
    assert sorted(p.name for p in (tmp_path / "copy").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    saved = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert saved["eos_token_id"] == 7 and saved["max_position_embeddings"] == 99


def test_folders_that_do_not_fit_are_refused(folder, tmp_path):
    path, _ = folder
    weights, fields = path / "model.safetensors", json.loads((path / "config.json").read_text())
    whole, tensors = weights.read_bytes(), safetensors.numpy.load_file(weights)

    def refuses(message, error=ValueError, tensors=None, **changes):
        (path / "config.json").write_text(json.dumps({k: v for k, v in (fields | changes).items() if v != "drop"}))
        if tensors is not None:
            safetensors.numpy.save_file(tensors, weights)
        with pytest.raises(error, match=message):
            load_pretrained(path)
        weights.write_bytes(whole)

    refuses("model_type is 'gpt2'; models of llama, qwen2, qwen3", model_type="gpt2")
    refuses("the field hidden_size is missing", hidden_size="drop")
    refuses("hidden_act is 'gelu'", hidden_act="gelu")
    refuses("quantization_config is", quantization_config={"quant_method": "gptq"})
    refuses("layer_types is", layer_types=["full_attention", "sliding_attention"])
    refuses("RoPE scaling is 'dynamic'", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    refuses("RoPE scaling 'yarn' has {'mscale': 0.7}", rope_scaling={"type": "yarn", "factor": 2.0, "mscale": 0.7})
    refuses("missing.*model.layers.2", num_hidden_layers=3)
    refuses("left over .*layers.1.mlp.down_proj.weight", num_hidden_layers=1)
    refuses("embed_tokens.weight is \\(64, 32\\), not \\(65, 32\\)", vocab_size=65)
    refuses("missing.*lm_head.weight", tensors={k: v for k, v in tensors.items() if k != "lm_head.weight"})
    refuses("left over .'score.weight'", tensors=tensors | {"score.weight": np.zeros(3, np.float32)})
    refuses("model.norm.weight has dtype I32", tensors=tensors | {"model.norm.weight": np.zeros(32, np.int32)})
    for cut, message in ((4, "truncated"), (100, "truncated"), (len(whole) - 1, "truncated: .* ends at byte")):
        weights.write_bytes(whole[:cut])
        refuses(message)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not JSON"):
        load_pretrained(path)
    weights.unlink()
    (path / "pytorch_model.bin").write_bytes(b"pickle")
    refuses("are pickles, which are never read", FileNotFoundError)
    (path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        load_pretrained(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_pretrained(tmp_path / "nowhere")


def test_an_index_that_does_not_fit_is_refused(folder, tmp_path):
    _, model = folder
    save_pretrained(tmp_path / "shards", model, shard_bytes=20_000)
    index = tmp_path / "shards" / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    last = max(places.values())
    index.write_text(json.dumps({"weight_map": places | {"model.norm.weight": "model-00001-of-00099.safetensors"}}))
    with pytest.raises(FileNotFoundError, match="model-00001-of-00099"):
        load_pretrained(tmp_path / "shards")
    index.write_text(json.dumps({"weight_map": places | {"model.embed_tokens.weight": last}}))
    with pytest.raises(ValueError, match="'model.embed_tokens.weight'. are not where it says"):
        load_pretrained(tmp_path / "shards")


def test_a_model_that_no_family_computes_is_not_saved(tmp_path):
    model = random_model(qk_norm=True, bias="qkv")
    with pytest.raises(ValueError, match="no family is like that"):
        save_pretrained(tmp_path / "x", model)
    assert not (tmp_path / "x").exists()


def write_gguf(path, folder, family, quantised=(), rope=None, changes=None, split=0):
    """A GGUF file (or several, of `split` tensors each) of a folder, made with the package gguf as ggml itself does it."""
    fields, weights = (
        json.loads((folder / "config.json").read_text()),
        safetensors.numpy.load_file(folder / "model.safetensors"),
    )
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[family], fields["num_hidden_layers"]
    )
    writer = gguf.GGUFWriter(path, family, split_max_tensors=split)
    writer.add_block_count(fields["num_hidden_layers"])
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_key_value_heads"])
    writer.add_key_length(fields["head_dim"])
    writer.add_rope_freq_base(fields["rope_theta"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    writer.add_token_list(["a", "b", "ü"])
    for name, value in weights.items():
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = fields["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if name in quantised else gguf.GGMLQuantizationType.F32
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), gguf.quantize(value, kind), raw_dtype=kind)
    if rope is not None:
        writer.add_tensor("rope_freqs.weight", rope.astype(np.float32))
    for change in changes or ():
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_gguf_files_give_the_same_parameters(family, tmp_path):
    kinds = {"llama": {"tied": False}, "qwen2": {"bias": "qkv"}, "qwen3": {"qk_norm": True, "head_dim": 16}}
    model = random_model(**kinds[family])
    save_pretrained(tmp_path / "folder", model)
    write_gguf(tmp_path / "model.gguf", tmp_path / "folder", family)
    assert_same(load_pretrained(tmp_path / "model.gguf"), model)
    save_pretrained(tmp_path / "again", load_pretrained(tmp_path / "model.gguf"), tmp_path / "model.gguf")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("folder", "again"))
    assert first == second


def test_quantised_tensors_and_rope_of_gguf(tmp_path):
    path, model = tmp_path / "folder", random_model(tied=False, rope_theta=5e5)
    save_pretrained(path, model)
    rows = "model.layers.0.self_attn.q_proj.weight"
    rope = RopeScaling("llama3", 32.0, 8192)
    factors = frequencies(5e5, 8, RopeScaling()) / frequencies(5e5, 8, rope)
    write_gguf(tmp_path / "q.gguf", path, "llama", {rows}, factors)
    loaded = load_pretrained(tmp_path / "q.gguf")
    # The frequencies of a head of 8 dimensions: the slowest pair is stretched by the whole factor.
    assert factors[-1] == 32 and loaded.config == dataclasses.replace(model.config, rope=rope)
    stored = safetensors.numpy.load_file(path / "model.safetensors")[rows]
    kind = gguf.GGMLQuantizationType.Q8_0
    want = gguf.dequantize(gguf.quantize(stored, kind), kind).T.reshape(32, 4, 8)
    np.testing.assert_array_equal(loaded.params["layers"]["0"]["attention"]["q"], want)
    write_gguf(tmp_path / "odd.gguf", path, "llama", rope=np.array([1, 2, 3, 9.0]))
    with pytest.raises(ValueError, match="rope_freqs.weight does not hold the factors of Llama 3.1"):
        load_pretrained(tmp_path / "odd.gguf")
    yarn = (
        lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
        lambda writer: writer.add_rope_scaling_factor(4.0),
        lambda writer: writer.add_rope_scaling_orig_ctx_len(16),
    )
    write_gguf(tmp_path / "yarn.gguf", path, "llama", changes=yarn)
    rope = load_pretrained(tmp_path / "yarn.gguf").config.rope
    assert (rope.kind, rope.factor, rope.original) == ("yarn", 4.0, 16)
    assert rope.magnitude == pytest.approx(RopeScaling("yarn", 4.0, 16).magnitude)
    old = [lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0)]  # before files named the kind
    write_gguf(tmp_path / "old.gguf", path, "llama", changes=old)
    assert load_pretrained(tmp_path / "old.gguf").config.rope == RopeScaling("linear", 4.0)
    write_gguf(tmp_path / "bare.gguf", path, "llama", changes=yarn[:1])
    with pytest.raises(ValueError, match="rope.scaling.type is 'yarn', but rope.scaling.factor is missing"):
        load_pretrained(tmp_path / "bare.gguf")


def test_split_gguf_files_are_read_whole_whichever_part_is_named(folder, tmp_path):
    path, model = folder
    write_gguf(tmp_path / "m.gguf", path, "llama", split=8)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3 and parts[0].name == "m-00001-of-00003.gguf"
    for part in parts:
        assert_same(load_pretrained(part), model)
    save_pretrained(tmp_path / "again", model, parts[1])
    assert_same(load_pretrained(tmp_path / "again"), model)
    other = parts[2].rename(tmp_path / "other.gguf")
    with pytest.raises(FileNotFoundError, match="part of a model in 3 files; m-00003-of-00003.gguf are missing"):
        load_pretrained(parts[0])
    with pytest.raises(
        ValueError, match=r"other.gguf is a part of a model in 3 files; name it as it was, ...-00001-of-"
    ):
        load_pretrained(other)
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(ValueError, match=r"m-00003-of-00003.gguf says that it is part 1 \(from 0\) of 3, not 2 of 3"):
        load_pretrained(parts[0])


def test_gguf_files_that_do_not_fit_are_refused(folder, tmp_path):
    path, _ = folder
    write_gguf(tmp_path / "m.gguf", path, "llama")
    whole = (tmp_path / "m.gguf").read_bytes()
    for content, message in (
        (whole[:3], "truncated"),
        (whole[:200], "truncated: its header"),
        (whole[:-5000], "truncated: .* ends at byte"),
        (b"GGML" + whole[4:], "no GGUF file"),
        (whole[:4] + b"\x09" + whole[5:], "GGUF of version 9"),
        (whole.replace(b"llama", b"mamba"), "general.architecture is 'mamba'; models of llama, qwen2, qwen3"),
        (whole.replace(b"llama.block_count", b"llama.block_comic"), "the field block_count is missing"),
        (whole.replace(b"blk.1.ffn_up.", b"blk.1.ffn_uq."), r"missing \['blk.1.ffn_up.weight'\].*left over.*ffn_uq"),
    ):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_pretrained(tmp_path / "bad.gguf")


def test_biases_are_counted_and_cut():
    for bias in ("qkv", "qkvo"):
        config = dataclasses.replace(CONFIG, bias=bias)
        abstract = transformer.abstract_params(config)
        assert config.parameters == sum(x.size for x in jax.tree.leaves(abstract))
        axes = io.flatten(abstract).keys()
        names = jax.tree.leaves(transformer.logical_axes(config), is_leaf=lambda x: isinstance(x, tuple))
        assert len(axes) == len(names)
    with pytest.raises(ValueError, match="ModelConfig.bias is 'all'; it must be one of none, qkv, qkvo"):
        dataclasses.replace(CONFIG, bias="all")
    with pytest.raises(ValueError, match="RopeScaling.kind is 'ntk'"):
        RopeScaling("ntk")
    with pytest.raises(ValueError, match="RopeScaling.original is 0; yarn needs"):
        RopeScaling("yarn", 2.0)
