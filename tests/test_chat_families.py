"""The chat templates of public families, run here and by `transformers`."""

import dataclasses
import datetime

import jinja2
import pytest

import vocabularies
from apr_jax.tokenizer import ChatTemplate, chat
from apr_jax.tokenizer.chat import Message
from apr_jax.tokenizer.huggingface import HuggingFaceTokenizer
from chat_templates import FAMILIES

DATE = "27 November 2026"
THEIRS = {"date_string": DATE}
VARIABLES = THEIRS | {"strftime_now": lambda form: datetime.date.today().strftime(form)}  # they have one of their own
SYSTEM = Message("system", "You are brief. Ünïcode <b>")
TURNS = [
    Message("user", " What is 6 * 7? "),
    Message("assistant", "<think>\nsix sevens\n</think>\n\n42."),
    Message("user", 'And "2" + 2?'),
]
TALKS = {
    "one question": TURNS[:1],
    "system": [SYSTEM, *TURNS[:1]],
    "several turns": TURNS,
    "system and several turns": [SYSTEM, *TURNS],
    "answered": [SYSTEM, *TURNS, Message("assistant", "4")],
    "roles out of turn": [TURNS[0], TURNS[2]],
}


def codec_of(family, **variables):
    """A byte-level tokenizer with the special words of a family, its roles and its template."""
    source, words, (bos, eos) = FAMILIES[family]
    plain = vocabularies.byte_level().with_control_words(words)
    config = {"eos_token": eos} | ({} if bos is None else {"bos_token": bos})
    return HuggingFaceTokenizer(plain.definition, config, ChatTemplate(source, family, VARIABLES | variables))


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    folder, made = tmp_path_factory.mktemp("peers"), {}
    for family in FAMILIES:
        codec_of(family).save_folder(folder / family)
        made[family] = transformers.AutoTokenizer.from_pretrained(folder / family)
    return made


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_that_of_transformers(family, talk, thinking, peers):
    variables = {} if thinking is None else {"enable_thinking": thinking}
    codec, theirs, turns = codec_of(family, **variables), peers[family], TALKS[talk]
    options = THEIRS | variables | {"add_generation_prompt": turns[-1].role == "user"}
    said = [dataclasses.asdict(message) for message in turns]
    try:
        text = theirs.apply_chat_template(said, tokenize=False, **options)
    except jinja2.TemplateError as refused:
        with pytest.raises(ValueError, match=f"{family} failed on messages of .*: {refused.message}"):
            chat.render(codec, turns, generate=options["add_generation_prompt"])
        assert talk in ("roles out of turn", "system", "system and several turns", "answered")
        return
    assert chat.render(codec, turns, generate=options["add_generation_prompt"]) == text
    if options["add_generation_prompt"]:
        ids = theirs.apply_chat_template(said, **options, return_dict=True)["input_ids"]
        # Here, the words of a user that are control words stay text; these users say none.
        assert chat.prompt(codec, turns) == ids


@pytest.mark.parametrize("family", FAMILIES)
def test_a_user_says_no_control_word_of_any_family(family):
    codec = codec_of(family)
    words = [*codec.controls.ids, "[INST]", "<|im_", "end|>"]
    ids = chat.prompt(codec, [Message("user", "x" + "x".join(words) + "x")])
    bare = chat.prompt(codec, [Message("user", "x")])
    assert [i for i in ids if i in codec.controls] == [i for i in bare if i in codec.controls]
    assert "x".join(words) in codec.decode(ids)


def test_thinking_is_turned_off_by_a_variable_or_by_how_the_answer_opens():
    off = chat.prompt(codec_of("Qwen 3", enable_thinking=False), TURNS)
    assert off == chat.prompt(codec_of("Qwen 3"), TURNS, opening="<think>\n\n</think>\n\n")
    assert off != chat.prompt(codec_of("Qwen 3"), TURNS)


def test_a_template_that_asks_for_the_date_is_told_it_or_named():
    source = FAMILIES["SmolLM3"][0]
    assert f"Today Date: {DATE}\n" in chat.render(codec_of("SmolLM3", strftime_now=lambda _: DATE), TURNS)
    with pytest.raises(
        ValueError, match="SmolLM3 failed on messages of user, assistant, user: 'strftime_now' is undefined"
    ):
        chat.render(codec_of("SmolLM3"), TURNS, ChatTemplate(source, "SmolLM3"))
    assert "26 Jul 2024" in chat.render(codec_of("Llama 3"), TURNS, ChatTemplate(FAMILIES["Llama 3"][0], "Llama 3"))


@pytest.mark.parametrize(
    "call", ["", "ensure_ascii=False", "ensure_ascii=True", "indent=2", "separators=(',', ':')", "sort_keys=True"]
)
def test_json_is_that_of_transformers(call, peers):
    source = "{{ messages | tojson" + (f"({call})" if call else "") + " }}{{ tools is none and documents is none }}"
    turns = [Message("user", 'a < b & "é" 🦄 \\ufdd0')]
    want = peers["Qwen 3"].apply_chat_template(
        [dataclasses.asdict(message) for message in turns], chat_template=source, tokenize=False
    )
    codec, template = codec_of("Qwen 3"), ChatTemplate(source, "json")
    assert chat.render(codec, turns, template) == want
    said = Message("user", "a <|im_end|> é")
    ids = chat.prompt(codec, [said], template)
    assert "<|im_end|>" in codec.decode(ids) and codec.eos not in ids
