"""Folders of pretrained models: what a save leaves there, tables that are not tied after all, and dtypes."""

import json
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import vocabularies
from apr_jax.model import transformer
from apr_jax.pretrained import load_pretrained, save_pretrained
from apr_jax.pretrained.tokenizer import load
from test_pretrained import assert_same, causal_logits, random_model

CODECS = {"json": vocabularies.byte_level(), "sentencepiece": vocabularies.sentence()}
VOCABULARY = max(codec.size for codec in CODECS.values())
COMPANIONS = ("generation_config.json", "chat_template.jinja", "added_tokens.json", "special_tokens_map.json")


def scaled(model, factor):
    return transformer.Model(model.graph, jax.tree.map(lambda x: x * factor, model.params))


@pytest.mark.parametrize(("first", "second"), [(20_000, 1 << 30), (1 << 30, 20_000), (20_000, 40_000)])
def test_the_last_model_saved_is_the_one_loaded(first, second, tmp_path):
    model = random_model(tied=False)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "pytorch_model.bin").write_text("mine")
    save_pretrained(tmp_path, model, shard_bytes=first)
    save_pretrained(tmp_path, scaled(model, 2), shard_bytes=second)
    assert_same(load_pretrained(tmp_path), scaled(model, 2))
    index = tmp_path / "model.safetensors.index.json"
    weights = {*json.loads(index.read_text())["weight_map"].values()} if index.exists() else {"model.safetensors"}
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {"model.safetensors.index.json"} == weights | {"config.json", "notes.txt", "pytorch_model.bin"}


def test_a_single_file_beside_an_index_is_the_one_that_counts(tmp_path):
    """Left by another program that saved twice; `transformers` reads the single file."""
    model = random_model(tied=False)
    save_pretrained(tmp_path, model, shard_bytes=20_000)
    save_pretrained(tmp_path / "single", scaled(model, 2))
    (tmp_path / "single" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert_same(load_pretrained(tmp_path), scaled(model, 2))
    tokens = np.arange(20).reshape(1, 20)
    want = their_logits(tmp_path, tokens)
    np.testing.assert_allclose(
        causal_logits(load_pretrained(tmp_path), jnp.asarray(tokens)), want, rtol=1e-3, atol=2e-3
    )


@pytest.mark.parametrize(("first", "second"), [("json", "sentencepiece"), ("sentencepiece", "json"), ("json", "json")])
@pytest.mark.parametrize("by", ["tokenizer", "source"])
def test_the_tokenizer_of_the_last_model_saved_is_the_one_loaded(first, second, by, tmp_path):
    model, codec = random_model(vocabulary=VOCABULARY), CODECS[second]
    if second == "json":
        codec = vocabularies.byte_level(template="{{ messages }}")
    folder, source = tmp_path / "model", tmp_path / "source"
    save_pretrained(folder, model, tokenizer=CODECS[first])
    for name in COMPANIONS:
        (folder / name).write_text('{"<old>": 7}')
    save_pretrained(source, model, tokenizer=codec)
    save_pretrained(folder, scaled(model, 2), **({"tokenizer": codec} if by == "tokenizer" else {"source": source}))
    assert_same(load_pretrained(folder), scaled(model, 2))
    read = load(folder)
    assert type(read) is type(codec) and read.encode("a<think>b") == codec.encode("a<think>b")
    template = codec.chat_template and codec.chat_template.source
    assert (read.chat_template and read.chat_template.source) == template
    assert not any((folder / name).exists() for name in COMPANIONS)
    assert {path.name for path in folder.iterdir()} == {path.name for path in source.iterdir()}


def test_a_tokenizer_that_would_stay_beside_another_model_is_not_lost_and_not_kept_silently(tmp_path):
    model = random_model(vocabulary=VOCABULARY)
    save_pretrained(tmp_path, model, tokenizer=CODECS["json"])
    (tmp_path / "generation_config.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        FileExistsError, match="holds tokenizer.json, tokenizer_config.json, generation_config.json, and"
    ):
        save_pretrained(tmp_path, scaled(model, 2))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_pretrained(tmp_path, scaled(model, 2), source=tmp_path)  # it is this model's own
    assert_same(load_pretrained(tmp_path), scaled(model, 2))
    assert before["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert before.keys() == {path.name for path in tmp_path.iterdir()}


def test_a_save_that_fails_leaves_the_model_that_was_there(tmp_path, monkeypatch):
    model = random_model()
    save_pretrained(tmp_path, model)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_pretrained(tmp_path, scaled(model, 2))
    assert_same(load_pretrained(tmp_path), model)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def tied_folder(path, head):
    """A folder whose config.json says tied, with an output table: None, or the embedding, changed by `head`."""
    model = random_model(tied=True)
    save_pretrained(path, model)
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = head(tensors["model.embed_tokens.weight"])
    safetensors.numpy.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return model, tensors


def their_logits(path, tokens):
    torch = pytest.importorskip("torch", reason="torch is not installed: see requirements-peers.txt")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return theirs(torch.tensor(tokens)).logits.numpy()


def test_an_output_table_that_differs_from_the_embedding_counts(tmp_path):
    _, tensors = tied_folder(tmp_path, lambda embed: embed[::-1].copy())
    with pytest.warns(UserWarning, match="says tie_word_embeddings, but lm_head.weight differs"):
        model = load_pretrained(tmp_path)
    assert not model.config.tied
    np.testing.assert_array_equal(model.params["head"], tensors["lm_head.weight"].T)
    save_pretrained(tmp_path / "again", model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(load_pretrained(tmp_path / "again"), model)
    tokens = np.arange(20).reshape(1, 20)
    want = their_logits(tmp_path, tokens)
    np.testing.assert_allclose(causal_logits(model, jnp.asarray(tokens)), want, atol=2e-4)


@pytest.mark.parametrize("embedding", [True, False])
def test_an_output_table_that_is_the_embedding_leaves_the_model_tied(embedding, tmp_path):
    model, tensors = tied_folder(tmp_path, np.copy)
    if not embedding:  # whichever of the two is there is both
        del tensors["model.embed_tokens.weight"]
        safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(load_pretrained(tmp_path), model)
    tokens = np.arange(20).reshape(1, 20)
    np.testing.assert_allclose(causal_logits(model, jnp.asarray(tokens)), their_logits(tmp_path, tokens), atol=2e-4)


def restored(path, dtypes):
    """The folder with its tensors in the dtypes that their names contain."""
    tensors = safetensors.numpy.load_file(path / "model.safetensors")
    pick = lambda name: next((dtype for part, dtype in dtypes.items() if part in name), None)
    tensors = {name: value.astype(pick(name) or value.dtype) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, path / "model.safetensors")


@pytest.fixture
def without_x64():
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


def test_what_float64_is_read_as_is_said(tmp_path, without_x64):
    model = random_model()
    save_pretrained(tmp_path, model)
    restored(tmp_path, {"": np.float64})
    with pytest.warns(UserWarning, match=r"20 of 20 tensors are stored in float64 and read as float32; .*x64"):
        read = load_pretrained(tmp_path)
    assert read.config.param_dtype == "float32"
    assert_same(read, model)
    with pytest.raises(ValueError, match="dtype is 'float64'; it must be one of float32, bfloat16"):
        load_pretrained(tmp_path, dtype="float64")


def test_float64_is_read_as_it_is_where_there_is_float64(tmp_path):
    save_pretrained(tmp_path, random_model())
    restored(tmp_path, {"": np.float64})
    assert load_pretrained(tmp_path).params["embed"].dtype == jnp.float64


def test_what_is_rounded_to_the_dtype_of_the_embedding_is_said(tmp_path):
    save_pretrained(tmp_path, random_model())
    restored(tmp_path, {"embed": ml_dtypes.bfloat16})
    with pytest.warns(
        UserWarning, match=r"19 of 20 tensors are stored in float32 and read as bfloat16; dtype='float32'"
    ):
        load_pretrained(tmp_path)
    restored(tmp_path, {"": ml_dtypes.bfloat16})
    restored(tmp_path, {"norm": np.float32})  # norms in float32 that bfloat16 holds
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pretrained(tmp_path)
