"""The tokenizers of GGUF files: vocabularies of both kinds, and the rules by which text is cut."""

import json
import unicodedata

import gguf
import pytest
import tokenizers
from hypothesis import given
from sentencepiece import sentencepiece_model_pb2

import vocabularies
from apr_jax.pretrained.tokenizer import load
from test_pretrained_tokenizers import FEW, TEXTS


def write_gguf(path, **fields):
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_of_byte_level(path, codec, pre, more=()):
    """The vocabulary of a byte-level codec as GGUF files carry it."""
    pieces = sorted(codec.definition["model"]["vocab"].items(), key=lambda item: item[1])
    kinds = {**dict.fromkeys(vocabularies.MARKS, gguf.TokenType.CONTROL), "<think>": gguf.TokenType.USER_DEFINED}
    write_gguf(
        path,
        tokenizer_model="gpt2",
        **({"tokenizer_pre": pre} if pre else {}),
        token_list=[*(piece for piece, _ in pieces), "<think>", *(word for word, _ in more)],
        token_types=[
            *(kinds.get(piece, gguf.TokenType.NORMAL) for piece, _ in pieces),
            kinds["<think>"],
            *(kind for _, kind in more),
        ],
        token_merges=[" ".join(merge) for merge in codec.definition["model"]["merges"]],
        bos_token_id=codec.bos,
        eos_token_id=codec.eos,
        pad_token_id=codec.pad,
        chat_template=vocabularies.CHATML,
    )
    return load(path)


PRES = {name: name for name in ("smollm", "qwen2", "llama-bpe", "gpt-2", "default")}


@pytest.mark.parametrize(
    ("pre", "rule"),
    [*PRES.items(), ("deepseek-r1-qwen", "qwen2"), ("llama3", "llama-bpe"), ("llama-v3", "llama-bpe")],
)
def test_byte_level_vocabularies_of_gguf_files(tmp_path, pre, rule):
    codec = vocabularies.byte_level(rule)
    read = gguf_of_byte_level(tmp_path / "model.gguf", codec, pre)
    assert (read.size, read.bos, read.eos, read.pad) == (codec.size, codec.bos, codec.eos, codec.pad)
    assert read.controls.ids == codec.controls.ids and read.chat_template.source == vocabularies.CHATML

    @FEW
    @given(text=TEXTS)
    def agree(text):
        if rule == "qwen2":  # Qwen composes characters before it encodes them
            text = unicodedata.normalize("NFC", text)
        assert read.encode(f"<|im_start|>{text}") == codec.encode(f"<|im_start|>{text}")

    agree()


def test_a_letter_added_to_a_gguf_file_leaves_the_byte_that_it_names(tmp_path):
    codec, words = vocabularies.byte_level(), ("ã", "ő", "Straße")
    read = gguf_of_byte_level(
        tmp_path / "model.gguf", codec, "smollm", [(w, gguf.TokenType.USER_DEFINED) for w in words]
    )
    for text in ("こんにちは ã ő 🦄 Straße", "ãã"):
        assert read.decode(read.encode_text(text)) == read.decode(read.encode(text)) == text
    assert read.id("ő") in read.encode_text("Kőln") and read.id("Straße") in read.encode_text("Straße")


def test_a_gguf_file_that_does_not_say_how_text_is_cut_is_warned_of(tmp_path):
    codec = vocabularies.byte_level("default")
    with pytest.warns(UserWarning, match="model.gguf does not say how text is cut .*tokenizer.ggml.pre is missing"):
        read = gguf_of_byte_level(tmp_path / "model.gguf", codec, "")
    # llama.cpp's rule for such files, which is not that of GPT-2: punctuation by itself, three digits at a time.
    library = tokenizers.Tokenizer.from_str(json.dumps(read.definition))
    pieces = [piece for piece, _ in library.pre_tokenizer.pre_tokenize_str("a ++ 12345")]
    assert pieces == ["a", "Ġ", "++", "Ġ", "123", "45"]
    with pytest.raises(ValueError, match="tokenizer.ggml.pre is 'tekken'; known are .*smollm.*deepseek-r1-qwen"):
        gguf_of_byte_level(tmp_path / "other.gguf", codec, "tekken")


def test_sentencepiece_vocabularies_of_gguf_files(tmp_path):
    codec = vocabularies.sentence()
    proto = sentencepiece_model_pb2.ModelProto.FromString(codec.model)
    write_gguf(
        tmp_path / "model.gguf",
        tokenizer_model="llama",
        token_list=[piece.piece for piece in proto.pieces],
        token_scores=[piece.score for piece in proto.pieces],
        token_types=[piece.type for piece in proto.pieces],
        bos_token_id=codec.bos,
        eos_token_id=codec.eos,
    )
    read = load(tmp_path / "model.gguf")
    assert (read.size, read.bos, read.eos) == (codec.size, codec.bos, codec.eos)

    @FEW
    @given(text=TEXTS)
    def agree(text):
        assert read.encode(text) == codec.encode(text) and read.decode(read.encode(text)) == text

    agree()


def test_a_gguf_file_with_another_kind_of_vocabulary_is_named(tmp_path):
    write_gguf(tmp_path / "other.gguf", tokenizer_model="bert")
    with pytest.raises(ValueError, match="'bert'; gpt2 .* and llama"):
        load(tmp_path / "other.gguf")
