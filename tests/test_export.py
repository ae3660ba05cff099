"""A pretrained model given back: what a GGUF file held, control words that were added, as folders that transformers loads."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vocabularies
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.pretrained import load_pretrained, save_pretrained, with_control_words
from apr_jax.pretrained.tokenizer import load
from apr_jax.tokenizer import chat
from apr_jax.tokenizer.chat import Message
from test_pretrained import causal_logits, write_gguf

WORDS = ("<spawn>", "<wait>", "<think>")  # the last is one id already
CODEC = vocabularies.byte_level()
CONFIG = ModelConfig(vocabulary=CODEC.size, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=64, norm_eps=1e-5)
TALK = [Message("user", "What is 6 * 7? 🦄"), Message("assistant", "<spawn>42<wait>"), Message("user", "No <spawn>")]


def with_tokenizer(writer: gguf.GGUFWriter, end: str = "eos") -> None:
    """The tokenizer of the tests as GGUF files carry it; with `end` eot, texts end otherwise than turns."""
    pieces = sorted(CODEC.definition["model"]["vocab"].items(), key=lambda item: item[1])
    kinds = {**dict.fromkeys(vocabularies.MARKS, gguf.TokenType.CONTROL), "<think>": gguf.TokenType.USER_DEFINED}
    writer.kv_data[0].pop("tokenizer.ggml.tokens")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*(piece for piece, _ in pieces), "<think>"])
    writer.add_token_types([*(kinds.get(piece, gguf.TokenType.NORMAL) for piece, _ in pieces), kinds["<think>"]])
    writer.add_token_merges([" ".join(merge) for merge in CODEC.definition["model"]["merges"]])
    writer.add_bos_token_id(CODEC.bos)
    writer.add_eos_token_id(CODEC.eos if end == "eos" else CODEC.pad)
    if end == "eot":
        writer.add_eot_token_id(CODEC.eos)
    writer.add_pad_token_id(CODEC.pad)
    writer.add_chat_template(vocabularies.CHATML)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A GGUF file of a random model with its tokenizer."""
    folder, rng = tmp_path_factory.mktemp("export"), np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)
    params = jax.tree.map(draw, transformer.abstract_params(CONFIG))
    save_pretrained(folder / "made", transformer.Model(transformer.graph_of(CONFIG), params))
    write_gguf(folder / "model.gguf", folder / "made", "llama", changes=[with_tokenizer])
    return folder / "model.gguf"


@pytest.mark.parametrize("added", [False, True])
def test_a_gguf_file_becomes_a_folder(file, added, tmp_path):
    model, codec = load_pretrained(file), load(file)
    if added:
        model, codec = with_control_words(model, codec, WORDS)
        assert [codec.id(word) for word in WORDS] == [CODEC.size, CODEC.size + 1, CODEC.id("<think>")]
        assert codec.size <= model.config.vocabulary
    save_pretrained(tmp_path, model, file, tokenizer=codec if added else None)
    again, read = load_pretrained(tmp_path), load(tmp_path)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert chat.prompt(read, TALK) == chat.prompt(codec, TALK)
    assert (read.size, read.bos, read.eos, read.pad) == (codec.size, codec.bos, codec.eos, codec.pad)

    torch = pytest.importorskip("torch", reason="torch is not installed: see requirements-peers.txt")
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: see requirements-peers.txt"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    turns = [{"role": message.role, "content": message.content} for message in TALK[:2]]
    ids = chat.prompt(codec, TALK[:2])
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"] == ids
    assert tokenizer.decode(ids) == codec.decode(ids)
    assert (tokenizer.eos_token_id, theirs.config.eos_token_id) == (codec.eos, codec.eos)
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(causal_logits(model, jnp.asarray([ids])), want, atol=2e-4)


def test_a_split_gguf_file_has_its_tokenizer_in_the_first_part(file, tmp_path):
    write_gguf(tmp_path / "m.gguf", file.parent / "made", "llama", changes=[with_tokenizer], split=15)
    for part in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"):
        assert chat.prompt(load(tmp_path / part), TALK) == chat.prompt(CODEC, TALK)
    save_pretrained(tmp_path / "folder", load_pretrained(file), tmp_path / "m-00002-of-00002.gguf")
    assert chat.prompt(load(tmp_path / "folder"), TALK) == chat.prompt(CODEC, TALK)


def test_words_that_are_one_id_keep_it_and_their_row(file):
    model, codec = load_pretrained(file), load(file)
    more, longer = with_control_words(model, codec, WORDS, gain=1.5)
    once, same = with_control_words(more, longer, WORDS)
    assert same.size == longer.size and once.config == more.config
    np.testing.assert_array_equal(once.params["embed"], more.params["embed"])
    before, after = np.asarray(model.params["embed"]), np.asarray(more.params["embed"])
    np.testing.assert_array_equal(after[: codec.size], before[: codec.size])
    np.testing.assert_allclose(after[longer.id("<wait>")], 1.5 * before[codec.encode("wait")].mean(axis=0), rtol=1e-5)
    with pytest.raises(ValueError, match=r"gain is 0; it must be above 0"):
        with_control_words(model, codec, WORDS, gain=0)


def test_what_ends_a_turn_ends_what_is_said(file, tmp_path):
    write_gguf(tmp_path / "model.gguf", file.parent / "made", "llama", changes=[lambda w: with_tokenizer(w, "eot")])
    codec = load(tmp_path / "model.gguf")
    assert codec.eos == CODEC.id("<|im_end|>") != CODEC.pad


def test_a_tokenizer_with_ids_that_the_model_has_not_is_not_saved(file, tmp_path):
    model, codec = load_pretrained(file), load(file)
    larger = codec.with_control_words(["<spawn>"])
    with pytest.raises(
        ValueError, match=f"its embedding has {codec.size} rows, the tokenizer has {codec.size + 1} ids"
    ):
        save_pretrained(tmp_path / "x", model, file, tokenizer=larger)
    assert not (tmp_path / "x").exists()


def test_sentencepiece_tokenizers_are_saved_with_their_template(tmp_path):
    codec = vocabularies.sentence().with_control_words(["<spawn>"])
    codec.save_folder(tmp_path)
    text = "<spawn>What is 6  times 7?\n 🦄"
    read = load(tmp_path)
    assert read.encode(text) == codec.encode(text) and (read.bos, read.eos) == (codec.bos, codec.eos)
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: see requirements-peers.txt"
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text, add_special_tokens=False)["input_ids"] == codec.encode(text)
    assert theirs.eos_token_id == codec.eos and len(theirs) == codec.size
