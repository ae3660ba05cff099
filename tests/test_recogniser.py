"""Control words in sampled tokens, against a plain matcher over symbols written from the rule, on all kinds of vocabularies."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vocabularies
from apr_jax.decode.recogniser import Names, Phrase, Recogniser
from apr_jax.decode.token_classes import byte_hash
from phrase_matcher import Plain, Table
from test_gguf_tokenizers import gguf_of_byte_level

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
PHRASES = (
    Phrase("open", "<Outlines>"), Phrase("close", "</Outlines>"), Phrase("outline", "<Outline>", ":"), Phrase("end", "</Thread>"),
    Phrase("box", "\\boxed{", "}"), Phrase("both", "né🦄"), Phrase("horn", "🦄"), Phrase("think", "<think>"),
)  # fmt: skip
LONGEST = 40  # tokens of a text, so that one program runs them all


def names(recogniser):
    """Event numbers to names."""
    table = {0: ""} | {recogniser.event(phrase.name): phrase.name for phrase in recogniser.phrases}
    capturing = [phrase.name for phrase in recogniser.phrases if phrase.until]
    return table | {recogniser.captured_event(name): f"{name} captured" for name in capturing}


@functools.cache
def program(recogniser):
    def run(tokens):
        def step(found, token):
            found, event = recogniser.step(found, token)
            number = () if found.captured == () else (found.captured.number, found.captured.numeric)
            return found, (event, found.captured, number)

        return jax.lax.scan(step, recogniser.start(), tokens)[1]

    return jax.jit(run)


def events(recogniser, tokens):
    """The named events of at most LONGEST tokens, and what was captured after each: (tokens, hash, number, numeric)."""
    padded = jnp.asarray([*tokens, *[0] * (LONGEST - len(tokens))], jnp.int32)
    found, captured, number = jax.tree.map(np.asarray, program(recogniser)(padded))
    named = [names(recogniser)[int(event)] for event in found[: len(tokens)]]
    if captured == ():
        return named, None
    return named, list(zip(captured.tokens, captured.hash, *number, strict=True))[: len(tokens)]


def number_of(text):
    """What a capture is as a number, and whether it is numeric; from the text."""
    text = text.strip(b" \t\n\r\v\f")
    whole = re.fullmatch(rb"[0-9]{1,9}", text)
    return int(text) if whole else -1, bool(re.fullmatch(rb"[0-9]+(\.[0-9]+)*", text))


def check(recogniser, codec, tokens):
    plain = Plain(codec, recogniser.phrases)
    found, captured = events(recogniser, tokens)
    for token, event, row in zip(tokens, found, captured, strict=True):
        assert plain.step(token) == event
        if plain.text is not None and b"\x00word" not in plain.text:
            assert tuple(row) == (plain.tokens, byte_hash(plain.text), *number_of(plain.text))
        elif plain.text:
            assert tuple(row[2:]) == (-1, False)
    return found


@functools.cache
def codecs():
    small = Table(
        [bytes([b]) for b in range(256)] + [b"><", b">\n", b"</", b"1:", b" 12", b"3.4", b"Out", b"lines>", b""]
    )
    tags = Table([bytes([b]) for b in range(256)], ["<Outlines>", "</Outlines>", "<Outline>", "</Thread>", "<other>"])
    return {
        "bytes": small,
        "tags": tags,
        "byte level": vocabularies.byte_level(),
        "byte fallback": vocabularies.byte_fallback(),
        "unigram": vocabularies.unigram(),
        "sentencepiece": vocabularies.sentence(),
        "sentencepiece, tags": vocabularies.sentence().with_control_words(["<Outline>", "</Outlines>"]),
    }  # fmt: skip


@functools.cache
def recogniser(kind):
    return Recogniser.of(codecs()[kind], PHRASES)


PARTS = st.sampled_from(
    [*(phrase.text for phrase in PHRASES), "1", "12", " 7 ", "1.2", ":", "}", "\n", "né", "Out", "<", "</", "x", "0123456789",
     "1..2", ". ", "<Outline", "<Outline>\n3 : plan", "\\boxed{4 2}"]
)  # fmt: skip
KINDS = ("bytes", "tags", "byte level", "byte fallback", "unigram", "sentencepiece", "sentencepiece, tags")


def pieces(codec, text, rng, controls_of_text):
    """A random way to cut the bytes of a text into tokens; control words stay whole if asked for, else they are bytes."""
    by_bytes = {}
    for i in range(codec.size):
        if i not in codec.controls and codec.table[i]:
            by_bytes.setdefault(codec.table[i], i)
    most, tokens = max(map(len, by_bytes)), []
    stretches = codec.controls.split(text) if controls_of_text else [(text, None)]
    for stretch, control in stretches:
        rest = b"" if control is not None else stretch.encode()
        tokens += [control] if control is not None else []
        while rest:
            fitting = [n for n in range(1, min(most, len(rest)) + 1) if rest[:n] in by_bytes]
            if not fitting:
                return None
            length = rng.choice(fitting)
            tokens.append(by_bytes[rest[:length]])
            rest = rest[length:]
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_events_are_those_of_a_plain_matcher(kind):
    codec, machine = codecs()[kind], recogniser(kind)
    happened = set()

    @FEW
    @given(parts=st.lists(PARTS, max_size=6), whole=st.booleans(), rng=st.randoms(use_true_random=False))
    def agree(parts, whole, rng):
        tokens = pieces(codec, "".join(parts), rng, whole) or codec.encode("".join(parts))
        happened.update(check(machine, codec, tokens[:LONGEST]))

    agree()
    happened.update(check(machine, codec, codec.encode("<Outlines><Outline> 1: a</Outlines>")))
    assert {"outline", "outline captured", "close"} <= happened

    @FEW
    @given(tokens=st.lists(st.integers(0, codec.size + 3), max_size=LONGEST))
    def agree_on_noise(tokens):
        check(machine, codec, tokens)

    agree_on_noise()


def test_gguf_vocabularies(tmp_path):
    codec = gguf_of_byte_level(tmp_path / "model.gguf", vocabularies.byte_level("qwen2"), "qwen2")
    machine = Recogniser.of(codec, PHRASES)
    found = check(machine, codec, codec.encode("<Outlines>\n<Outline>12: né🦄</Outlines><think>"))
    assert [event for event in found if event] == ["open", "outline", "outline captured", "both", "close", "think"]
    assert machine.vocabulary == Recogniser.of(vocabularies.byte_level("qwen2"), PHRASES).vocabulary


@pytest.mark.parametrize("kind", ["bytes", "byte level", "sentencepiece"])
def test_the_same_text_gives_the_same_events_however_it_is_cut(kind):
    """Where no token goes beyond the end of what it completes."""
    codec, machine = codecs()[kind], recogniser(kind)
    words = [phrase.text for phrase in PHRASES if phrase.name not in ("think", "both")]
    segments = st.lists(st.sampled_from([*words, "a\n", "12", ":", "}"]), min_size=1, max_size=5)

    @FEW
    @given(parts=segments, rng=st.randoms(use_true_random=False))
    def same(parts, rng):
        told = set()
        for _ in range(4):
            cut = [pieces(codec, part, rng, False) for part in parts]
            if None in cut or sum(map(len, cut)) > LONGEST:
                return
            found, captured = events(machine, [token for part in cut for token in part])
            happened = [(event, *row[1:]) for event, row in zip(found, captured, strict=True) if event]
            told.add(tuple(happened))
        assert len(told) == 1

    same()


def test_a_token_belongs_to_one_match():
    codec = Table([b"a", b"b", b"ba", b"bab", b"abab", b":", b"7", b"b7:", b"7:a", b"c", b":ab"])
    machine = Recogniser.of(codec, (Phrase("ab", "ab", ":"), Phrase("cab", "cab"), Phrase("ac", "ac")))
    assert check(machine, codec, [0, 2, 1]) == ["", "ab", ""]  # a|ba|b: the second a is of the first match
    assert check(machine, codec, [4, 1]) == ["ab", ""]
    assert check(machine, codec, [9, 0, 1]) == ["", "", "cab"]  # the longest of those that end together
    assert check(machine, codec, [0, 3, 0, 9]) == ["", "ab", "", "ac"]
    assert check(machine, codec, [4, 9]) == ["ab", ""]  # but what is left of abab is none of ac's
    assert check(machine, codec, [0, 7, 6, 5]) == [
        "",
        "ab",
        "",
        "ab captured",
    ]  # 7: in the token of the phrase is not captured
    assert check(machine, codec, [0, 1, 10]) == [
        "",
        "ab",
        "ab",
    ]  # the phrase breaks the capture off, though : came first
    assert check(machine, codec, [0, 1, 8, 1]) == [
        "",
        "ab",
        "ab captured",
        "ab",
    ]  # what stands behind the terminator counts again


def test_a_phrase_that_cannot_be_found_is_refused():
    codec = Table([b"a"])
    for phrases, message in (
        ((("long", "xaby"), ("in", "ab")), "long can never be found, because in ends inside it"),
        ((("first", "ab"), ("longer", "abc")), "longer can never be found, because first ends inside it"),
        ((("one", "ab"), ("two", "ab")), "one and two are the same"),
        ((), "no phrases"),
    ):
        with pytest.raises(ValueError, match=message):
            Recogniser.of(codec, [Phrase(*phrase) for phrase in phrases])
    with pytest.raises(ValueError, match="until is 'ab'"):
        Phrase("x", "y", "ab")
    with pytest.raises(ValueError, match="no phrase nothing; there are open"):
        recogniser("bytes").event("nothing")


def test_a_control_word_is_its_id_and_nothing_else():
    codec = codecs()["tags"]
    machine = recogniser("tags")
    assert check(machine, codec, [codec.controls.ids["<Outlines>"]]) == ["open"]
    assert set(check(machine, codec, list(b"<Outlines>"))) == {""}


def test_names_of_captures():
    machine, table = recogniser("bytes"), Names.numbers(12, nested=3)
    assert table.texts[11:15] == ("12", "1.1", "1.2", "1.3")

    def place(text):
        found = machine.start()
        for token in f"<Outline>{text}:".encode():
            found, _ = machine.step(found, jnp.int32(token))
        return int(table.find(found.captured)), bool(found.captured.numeric), int(found.captured.number)

    assert place(" 12\n") == (11, True, 12)
    assert place("2.3") == (12 + 5, True, -1)
    assert place("13") == (-1, True, 13)
    assert place("01") == (-1, True, 1)
    assert place("1 2") == (-1, False, -1)
    assert place("") == (-1, False, -1)
    assert place("1" * 9) == (-1, True, 111111111)
    assert place("1" * 10) == (-1, True, -1)


def test_recognisers_are_static():
    codec = codecs()["bytes"]
    again = Recogniser.of(codec, PHRASES)
    assert again == recogniser("bytes") and hash(again) == hash(recogniser("bytes"))
    assert again != Recogniser.of(codec, PHRASES[:3])
    assert again != Recogniser.of(Table([b"a"]), PHRASES)
    plain = Recogniser.of(codec, (Phrase("end", "</Thread>"),))
    found, event = plain.step(plain.start(), jnp.int32(0))
    assert found.captured == () and event == 0
