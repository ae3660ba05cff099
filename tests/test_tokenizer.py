"""The compact vocabulary, round trips, and refusals."""

import pytest

from apr_jax import tokenizer
from apr_jax.tokenizer import CONTROL_WORDS, SIGNS, SPECIALS, Tokenizer

TEXTS = (
    "<s>27:22,26,31,53<go>",
    "<spawn>27:53-26=27,22,31<spawn>27:53-22=31,26,31<wait>",
    "<result><result>53-22=31;31/31=1;26+1=27<go>",
    "<node>31/31=1,26+27-25*26/26+27<goal><join>53-22=31<end></s>",
    "<sub>1*2=2,3<exit><exit>",
)


@pytest.mark.parametrize(("whole", "size"), [(9, 32), (199, 222)])
def test_compact_ids_are_those_of_the_format(whole, size):
    words = tokenizer.compact(whole)
    pieces = [*SPECIALS, *CONTROL_WORDS, *map(str, range(whole + 1)), *SIGNS]
    assert words.size == size and [words.piece(i) for i in range(words.size)] == pieces
    assert [words.id(piece) for piece in pieces] == list(range(size))
    assert (words.pad, words.bos, words.eos) == (0, 2, 3)
    for piece in pieces[2:]:
        assert words.encode(piece) == [words.id(piece)] and words.decode([words.id(piece)]) == piece


def test_numbers_are_one_id_as_far_as_the_vocabulary_goes():
    assert [len(tokenizer.compact().encode(number)) for number in ("7", "42", "100", "199", "200", "4321")] == [
        1,
        1,
        1,
        1,
        2,
        2,
    ]
    assert [len(tokenizer.compact(9).encode(number)) for number in ("7", "42", "100")] == [1, 2, 3]
    with pytest.raises(ValueError, match="whole is 8; at least 9"):
        tokenizer.compact(8)


def test_tokens_that_hold_a_text_are_found():
    codec = tokenizer.compact()
    assert codec.holding("field", ("<node>", "<goal>")) == tuple(sorted((codec.id("<node>"), codec.id("<goal>"))))
    held = codec.holding("field", ("7",))
    assert held == tuple(i for i in range(codec.size) if b"7" in codec.token_bytes(i)) and len(held) > 1
    assert not any(i in codec.controls for i in held)
    for text in ("no such text", ""):
        with pytest.raises(ValueError, match=f"field: no token of this tokenizer holds '{text}'"):
            codec.holding("field", (text,))


@pytest.mark.parametrize("text", TEXTS)
def test_texts_survive_the_round_trip_symbol_by_symbol(text):
    words = tokenizer.compact()
    ids = words.encode(text)
    assert words.decode(ids) == text
    assert "".join(words.piece(i) for i in ids) == text
    # Nothing is added, nothing is merged: encoding is a homomorphism over symbols.
    assert ids == [i for piece in map(words.piece, ids) for i in words.encode(piece)]


def test_padding_shows_nothing_and_strange_ids_are_shown():
    words = tokenizer.compact()
    assert words.decode([words.id("<go>"), words.pad, words.pad]) == "<go>"
    assert words.encode("27x") == [*words.encode("27"), 1]
    assert words.decode([words.id("<go>"), 240]) == "<go><unused 240>"
    with pytest.raises(ValueError, match="'<fork>' is not one id"):
        words.id("<fork>")


def test_training_is_deterministic_and_blind_to_frequency(tmp_path):
    one = tokenizer.train(["b a<go>", "é  aaaa"], ["<go>"], path=tmp_path / "one")
    two = tokenizer.train(["é", "bbb<go> a"], ["<go>"], path=tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert [one.piece(i) for i in range(4, one.size)] == ["<go>", "▁", "a", "b", "é"]
    for text in (" a  b <go>", "aa", " ", ""):
        assert two.decode(two.encode(text)) == text


def test_files(tmp_path):
    tokenizer.compact().save(tmp_path / "words.model")
    loaded = Tokenizer.from_file(tmp_path / "words.model")
    assert loaded.encode(TEXTS[0]) == tokenizer.compact().encode(TEXTS[0])
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_file(tmp_path / "nowhere")
    (tmp_path / "broken").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="11 bytes.*not a SentencePiece model"):
        Tokenizer.from_file(tmp_path / "broken")


def test_symbols_that_cannot_be_kept_are_refused():
    with pytest.raises(ValueError, match="did not keep"):
        tokenizer.train(["a\nb"])
    with pytest.raises(ValueError, match="at least one character"):
        tokenizer.train(["<go>"])
    with pytest.raises(ValueError, match="distinct"):
        tokenizer.train(["a"], ["<go>", "<go>"])
