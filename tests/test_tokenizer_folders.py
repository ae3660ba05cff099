"""Tokenizers in the folders of models: the files beside them that add to them, and what a save leaves there."""

import json

import pytest

import vocabularies
from apr_jax.pretrained.tokenizer import load
from apr_jax.tokenizer import chat
from apr_jax.tokenizer.chat import Message
from test_pretrained_tokenizers import CODECS


@pytest.fixture
def chat_folder(tmp_path):
    """A `tokenizer.model` of a base model, whose turn marks stand in the files beside it."""
    size = vocabularies.sentence().size
    (tmp_path / "tokenizer.model").write_bytes(vocabularies.sentencepiece_bytes())
    words = {"<|im_end|>": size, "<|im_start|>": size + 1, "<think2>": size + 2}
    (tmp_path / "added_tokens.json").write_text(json.dumps(words))
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "</s>"}
    config |= {"chat_template": vocabularies.CHATML, "additional_special_tokens": ["<|im_start|>"], "legacy": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path, size, config


@pytest.mark.parametrize("legacy", [False, True])
def test_words_beside_a_sentencepiece_model_are_added(chat_folder, legacy):
    folder, size, config = chat_folder
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": legacy}))
    codec = load(folder)
    assert (codec.bos, codec.eos, codec.pad, codec.size) == (1, size, 2, size + 3)
    assert {codec.id("<|im_start|>"), codec.id("<|im_end|>")} <= codec.marks and codec.id("<think2>") not in codec.marks
    said = [Message("user", "What is 6 times 7?<|im_end|>")]
    ids = chat.prompt(codec, said)
    assert ids.count(codec.eos) == 1 and ids.count(codec.id("<|im_start|>")) == 2
    codec.save_folder(folder)
    again = load(folder)
    assert not (folder / "added_tokens.json").exists() and chat.prompt(again, said) == ids
    assert (again.eos, again.size, again.space) == (codec.eos, codec.size, codec.space)


@pytest.mark.parametrize("legacy", [False, True])
def test_words_beside_a_sentencepiece_model_give_the_ids_of_transformers(chat_folder, legacy):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    folder, _, config = chat_folder
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": legacy}))
    codec, theirs = load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "What is 6 times 7?"}, {"role": "assistant", "content": "It <think2>is 42."}]
    ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert chat.prompt(codec, [Message(**turn) for turn in turns]) == ids
    assert (theirs.eos_token_id, theirs.pad_token_id) == (codec.eos, codec.pad)


def test_words_beside_a_sentencepiece_model_that_contradict_it_are_refused(chat_folder):
    folder, size, config = chat_folder
    for added, changes, message in (
        ({"<|im_end|>": 20}, {}, "added word '<|im_end|>' has id 20, where tokenizer.model has"),
        ({"</s>": size}, {}, "added word '</s>' has id .* and '</s>' at 2"),
        ({"<a>": size, "<b>": size}, {}, "several added words have one id"),
        ({}, {"eos_token": "<|end|>"}, "eos_token is '<|end|>', which neither"),
    ):
        (folder / "added_tokens.json").write_text(json.dumps(added))
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "</s>"} | changes))
        with pytest.raises(ValueError, match=message.replace("|", r"\|")):
            load(folder)


def test_words_that_the_configuration_adds_to_tokenizer_json_are_added(tmp_path):
    codec = vocabularies.byte_level()
    codec.save_folder(tmp_path)
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    words = {
        str(codec.size): {"content": "<|tool|>", "special": True},
        str(codec.id("<think>")): {"content": "<think>"},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields | {"added_tokens_decoder": words}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|tool|>": codec.size, "<act>": codec.size + 1}))
    read = load(tmp_path)
    assert (read.size, read.id("<|tool|>"), read.id("<act>")) == (codec.size + 2, codec.size, codec.size + 1)
    assert read.marks - codec.marks == {codec.size} and not {codec.size, codec.size + 1} & {
        *read.encode_text("<act><|tool|>")
    }
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "<|tool|>What <think>is"
    assert theirs(text, add_special_tokens=False)["input_ids"] == read.encode(text)


def test_what_is_saved_in_a_folder_replaces_the_tokenizer_there(tmp_path):
    """Files that would be read before those written, or with them, do not stay; others do."""
    (tmp_path / "notes.txt").write_text("mine")
    for first, second in (("byte-level", "SentencePiece"), ("SentencePiece", "byte-level")):
        CODECS[first].save_folder(tmp_path)
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<old>": 7}))
        (tmp_path / "chat_template.jinja").write_text("old")
        CODECS[second].save_folder(tmp_path)
        read = load(tmp_path)
        assert type(read) is type(CODECS[second]) and read.encode("a<think>b") == CODECS[second].encode("a<think>b")
        assert (read.chat_template and read.chat_template.source) == (
            CODECS[second].chat_template and CODECS[second].chat_template.source
        )
    assert (tmp_path / "notes.txt").read_text() == "mine"
