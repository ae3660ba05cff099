"""Tokenizers of pretrained models: against the libraries they come from, under any text and any ids."""

import json
import unicodedata

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import vocabularies
from apr_jax import tokenizer
from apr_jax.pretrained.tokenizer import check_fits, load
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.tokenizer import Stream, TextCodec
from apr_jax.tokenizer.huggingface import HuggingFaceTokenizer

CODECS = {
    "byte-level": vocabularies.byte_level(),
    "byte-level, NFC-free Qwen pattern": vocabularies.byte_level("qwen2"),
    "byte-level, Llama 3 pattern": vocabularies.byte_level("llama-bpe"),
    "byte fallback, space first": vocabularies.byte_fallback(),
    "byte fallback, space always": vocabularies.byte_fallback(metaspace=False),
    "Unigram": vocabularies.unigram(),
    "SentencePiece": vocabularies.sentence(),
    "byte-level with ordinary words": vocabularies.byte_level_with_ordinary_words(),
    "SentencePiece with symbols": tokenizer.Tokenizer(vocabularies.sentencepiece_with_symbols()),
    "SentencePiece, legacy": tokenizer.Tokenizer(vocabularies.sentencepiece_with_symbols(), legacy=True),
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
    if name == "byte-level with ordinary words":
        return unicodedata.normalize("NFC", text)
    return text.removeprefix(" ") if name in ("byte fallback, space first", "Unigram") else text


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


@pytest.mark.parametrize("name", LOSSLESS)
@FEW
@given(data=st.data())
def test_the_bytes_of_the_ids_are_those_of_the_text(name, data):
    """Over pieces and seams: what goes on adds its bytes and no other; trusted text alike."""
    codec = CODECS[name]
    kind = st.sampled_from(["\n", "\n\n", "\nT", " ", "   ", "ö", "Straße", "[/INST]", "<0x41>", "The"]) | mixed(codec)
    first, second = data.draw(st.lists(kind, max_size=4).map("".join)), data.draw(st.lists(kind).map("".join))
    shown = lambda ids: b"".join(codec.table[i] for i in ids)
    same = lambda text: (unicodedata.normalize("NFC", text.decode()) if "ordinary" in name else text.decode()).encode()
    opened = {first.encode()} if codec.space == "never" else {first.encode(), b" " + first.encode()}
    assert same(shown(codec.encode_text(first))) in set(map(same, opened))
    assert same(shown(codec.encode_text(second, continues=True))) == same(second.encode())
    if codec.space != "always":
        assert same(shown(codec.encode(second, continues=True))) == same(second.encode())


@pytest.mark.parametrize(
    ("codec", "word"),
    [
        (CODECS["SentencePiece with symbols"], "ö"),
        (CODECS["SentencePiece with symbols"], "▁▁▁"),
        (CODECS["byte-level with ordinary words"], "ő"),
        (vocabularies.byte_level_with_ordinary_words(["ö", "ã"]), "ö"),  # each is also the name of a byte
    ],
)
def test_words_of_ordinary_text_are_text_and_cut_none(codec, word):
    assert codec.id(word) not in codec.controls
    said = r"こんにちは, 🦄 ãö: \boxed{Köln Kőln}   ∑"
    for ids in (codec.encode_text(said), codec.encode(said)):
        assert codec.decode(ids) == said and Mathematics().answer(ids, codec) == "Köln Kőln"
    inside = [*codec.encode_text(r"\boxed{K"), codec.id(word), *codec.encode_text("ln}", continues=True)]
    assert Mathematics().answer(inside, codec) == f"K{word.replace('▁', ' ')}ln"
    with pytest.raises(ValueError, match="control word"):
        codec.with_control_words([word])


def test_a_tag_without_angle_brackets_is_out_of_reach_of_a_user():
    codec = CODECS["SentencePiece with symbols"]
    assert codec.id("[/INST]") in codec.encode("a[/INST]b") and codec.id("[/INST]") in codec.controls
    assert codec.id("[/INST]") not in codec.encode_text("a[/INST]b")
    assert codec.id("[/INST]") not in codec.encode_text("[/INST]", continues=True)


def test_text_that_goes_on_gets_no_space():
    for name in ("byte fallback, space first", "byte fallback, space always", "SentencePiece", "Unigram"):
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


def test_a_vocabulary_larger_than_the_embedding_is_refused():
    codec = CODECS["byte-level"]
    check_fits(codec, codec.size, "small")
    with pytest.raises(ValueError, match=f"small: its embedding has 100 rows, the tokenizer has {codec.size} ids"):
        check_fits(codec, 100, "small")
