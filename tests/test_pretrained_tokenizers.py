"""Tokenizers of pretrained models: against the libraries they come from, under any text and any ids."""

import json
import unicodedata

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

import vocabularies
from apr_jax import tokenizer
from apr_jax.tokenizer import Stream, TextCodec
from apr_jax.tokenizer.huggingface import HuggingFaceTokenizer
from apr_jax.tokenizer.load import check_fits, load

CODECS = {
    "byte-level": vocabularies.byte_level(),
    "byte-level, NFC-free Qwen pattern": vocabularies.byte_level("qwen2"),
    "byte-level, Llama 3 pattern": vocabularies.byte_level("llama-bpe"),
    "byte fallback, space first": vocabularies.byte_fallback(),
    "byte fallback, space always": vocabularies.byte_fallback(metaspace=False),
    "SentencePiece": vocabularies.sentence(),
    "compact": tokenizer.compact(),
}
HUGGING_FACE = {name: codec for name, codec in CODECS.items() if isinstance(codec, HuggingFaceTokenizer)}
LOSSLESS = {name: codec for name, codec in CODECS.items() if name != "compact"}
# SentencePiece writes spaces as U+2581, so it cannot tell the two apart.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=60)
FEW = settings(max_examples=60, deadline=None)


def streamed(codec: TextCodec, ids) -> str:
    stream = Stream(codec)
    return "".join([*map(stream.push, ids), stream.finish()])


def kept(name: str, text: str) -> str:
    """What a round trip leaves: Metaspace puts a space before text only if there is none, and always takes one away."""
    return text.removeprefix(" ") if name == "byte fallback, space first" else text


def mixed(codec: TextCodec) -> st.SearchStrategy[str]:
    """Text with control words and parts of them in it."""
    words = list(codec.controls.ids)
    parts = st.sampled_from([*words, *(word[:-1] for word in words), *(word[1:] for word in words), " ", "\n", "a1"])
    return st.lists(parts | TEXTS, max_size=8).map("".join)


@pytest.mark.parametrize("name", LOSSLESS)
@FEW
@given(text=TEXTS)
def test_text_survives_at_once_and_token_by_token(name, text):
    codec = CODECS[name]
    ids = codec.encode_text(text)
    assert codec.decode(ids) == streamed(codec, ids) == kept(name, text)


@pytest.mark.parametrize("name", CODECS)
@FEW
@given(data=st.data())
def test_whatever_is_sampled_streams_as_it_decodes(name, data):
    codec = CODECS[name]
    ids = data.draw(st.lists(st.integers(0, codec.size + 3), max_size=40))
    assert streamed(codec, ids) == codec.decode(ids)
    assert codec.decode(np.array(ids, np.int32)) == codec.decode(ids)


@pytest.mark.parametrize("name", LOSSLESS)
def test_no_piece_of_a_stream_is_broken(name):
    codec = CODECS[name]
    text = "naïve 🦄 👩‍👩‍👧 你好 \U0010ffff end"
    stream = Stream(codec)
    pieces = [stream.push(i) for i in codec.encode_text(text)]
    assert "\ufffd" not in "".join(pieces) and "".join(pieces) == text
    seldom = codec.encode_text("\U0010ffff")
    stream = Stream(codec)
    assert "".join(map(stream.push, seldom[:-1])) == "" and stream.finish() == "\ufffd"


@pytest.mark.parametrize("name", CODECS)
@FEW
@given(data=st.data())
def test_control_words_of_a_user_stay_text(name, data):
    codec = CODECS[name]
    text = data.draw(mixed(codec))
    ids = codec.encode_text(text)
    assert not [i for i in ids if i in codec.controls]
    if name in LOSSLESS:
        assert codec.decode(ids) == kept(name, text)


@pytest.mark.parametrize("name", HUGGING_FACE)
@FEW
@given(data=st.data())
def test_ids_are_those_of_the_library(name, data):
    """Trusted text, control words in it or not; decoding too, control words shown."""
    codec = HUGGING_FACE[name]
    library = tokenizers.Tokenizer.from_str(json.dumps(codec.definition))
    text = data.draw(mixed(codec))
    ids = library.encode(text, add_special_tokens=False).ids
    assert codec.encode(text) == ids
    plain = data.draw(TEXTS)
    assert codec.decode(codec.encode_text(plain)) == library.decode(codec.encode_text(plain), skip_special_tokens=False)


@FEW
@given(text=TEXTS)
def test_sentencepiece_ids_are_those_of_the_library(text):
    library = sentencepiece.SentencePieceProcessor(model_proto=vocabularies.sentencepiece_bytes())
    codec = vocabularies.sentence()
    assert codec.encode_text(text) == library.encode(text)
    assert codec.decode(codec.encode(text)) == library.decode(library.encode(text))


def test_text_that_goes_on_gets_no_space():
    for name in ("byte fallback, space first", "byte fallback, space always", "SentencePiece"):
        codec = CODECS[name]
        assert codec.encode_text("day", continues=True) != codec.encode_text("day")
        assert b"".join(codec.table[i] for i in codec.encode_text("day", continues=True)) == b"day"
        assert b"".join(codec.table[i] for i in codec.encode_text("day")) == b" day"


@pytest.mark.parametrize("name", CODECS)
def test_control_words_are_added_behind_the_vocabulary(name):
    codec = CODECS[name]
    more = codec.with_control_words(["<fork>", "<back>", "<fork>"])
    assert more.size == codec.size + 2
    assert more.encode("12<fork>3<back>").count(codec.size) == 1
    assert (more.id("<fork>"), more.id("<back>")) == (codec.size, codec.size + 1)
    assert more.decode([more.id("<back>"), more.eos]).startswith("<back>")
    for text in vocabularies.CORPUS[:3]:
        assert more.encode_text(text) == codec.encode_text(text)
    assert not set(more.encode_text("<fork>")) & {codec.size, codec.size + 1}
    assert (more.bos, more.eos, more.pad) == (codec.bos, codec.eos, codec.pad)
    assert more.with_control_words(["<fork>"]).size == more.size
    with pytest.raises(ValueError, match="'<fork>' is not one id"):
        codec.id("<fork>")


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_saved_folder_is_read_by_us_and_by_transformers(name, tmp_path):
    codec = HUGGING_FACE[name].with_control_words(["<fork>"])
    codec.save(tmp_path)
    again = load(tmp_path)
    text = "<fork>The answer is 42 🦄"
    assert again.encode(text) == codec.encode(text)
    assert (again.bos, again.eos, again.pad, again.size) == (codec.bos, codec.eos, codec.pad, codec.size)
    assert (again.chat_template is None) == (codec.chat_template is None)
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text, add_special_tokens=False)["input_ids"] == codec.encode(text)
    assert theirs.eos_token_id == codec.eos and len(theirs) == codec.size


def write_gguf(path, **fields):
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2"])
def test_byte_level_vocabularies_of_gguf_files(tmp_path, pre):
    codec = vocabularies.byte_level(pre)
    pieces = sorted(codec.definition["model"]["vocab"].items(), key=lambda item: item[1])
    kinds = {**dict.fromkeys(vocabularies.MARKS, gguf.TokenType.CONTROL), "<think>": gguf.TokenType.USER_DEFINED}
    write_gguf(
        tmp_path / "model.gguf",
        tokenizer_model="gpt2",
        tokenizer_pre=pre,
        token_list=[*(piece for piece, _ in pieces), "<think>"],
        token_types=[*(kinds.get(piece, gguf.TokenType.NORMAL) for piece, _ in pieces), kinds["<think>"]],
        token_merges=[" ".join(merge) for merge in codec.definition["model"]["merges"]],
        bos_token_id=codec.bos,
        eos_token_id=codec.eos,
        pad_token_id=codec.pad,
        chat_template=vocabularies.CHATML,
    )
    read = load(tmp_path / "model.gguf")
    assert (read.size, read.bos, read.eos, read.pad) == (codec.size, codec.bos, codec.eos, codec.pad)
    assert read.controls.ids == codec.controls.ids and read.chat_template.source == vocabularies.CHATML

    @FEW
    @given(text=TEXTS)
    def agree(text):
        if pre == "qwen2":  # Qwen composes characters before it encodes them
            text = unicodedata.normalize("NFC", text)
        assert read.encode(f"<|im_start|>{text}") == codec.encode(f"<|im_start|>{text}")

    agree()


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


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no tokenizer there"):
        load(tmp_path / "nowhere")
    vocabularies.byte_level().save(tmp_path / "broken")
    whole = (tmp_path / "broken" / "tokenizer.json").read_text()
    (tmp_path / "broken" / "tokenizer.json").write_text(whole[:1000])
    with pytest.raises(ValueError, match=r"broken/tokenizer\.json is not JSON.*cut off"):
        load(tmp_path / "broken")
    definition = json.loads(whole)
    with pytest.raises(ValueError, match="WordPiece.*ByteLevel, ByteFallback"):
        HuggingFaceTokenizer(
            {**definition, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
            {"eos_token": "<|im_end|>"},
        )
    with pytest.raises(ValueError, match="eos_token is missing"):
        HuggingFaceTokenizer(definition, {})
    with pytest.raises(ValueError, match="'</s>' is not one id"):
        HuggingFaceTokenizer(definition, {"eos_token": "</s>"})
    broken = {**definition, "model": {**definition["model"], "merges": [["q", "never"]]}}
    with pytest.raises(ValueError, match="tokenizers library cannot read it"):
        HuggingFaceTokenizer(broken, {"eos_token": "<|im_end|>"})
    (tmp_path / "no.gguf").write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(ValueError, match=r"no\.gguf is not a whole GGUF file"):
        load(tmp_path / "no.gguf")
    write_gguf(tmp_path / "other.gguf", tokenizer_model="bert")
    with pytest.raises(ValueError, match="'bert'; gpt2 .* and llama"):
        load(tmp_path / "other.gguf")


def test_a_vocabulary_larger_than_the_embedding_is_refused():
    codec = CODECS["byte-level"]
    check_fits(codec, codec.size, "small")
    with pytest.raises(ValueError, match=f"small: its embedding has 100 rows, the tokenizer has {codec.size} ids"):
        check_fits(codec, 100, "small")
