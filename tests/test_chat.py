"""Chat templates: ids, what is trained on, text of users that looks like control words, and templates that fail."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vocabularies
from apr_jax.tokenizer import ChatTemplate, chat
from apr_jax.tokenizer.chat import Message
from apr_jax.tokenizer.huggingface import HuggingFaceTokenizer

CODEC = vocabularies.byte_level()
TALK = [
    Message("system", "You are brief."),
    Message("user", "What is 6 * 7?"),
    Message("assistant", "42."),
    Message("user", "And 2 + 2?\n"),
    Message("assistant", "\n4 🦄"),
]
# The same template with its own marks of what is trained on, for `transformers` to find.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_prompt_is_the_text_of_the_template():
    text = "<|im_start|>user\nWhat is 6 * 7?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.prompt(CODEC, TALK[1:2]) == CODEC.encode(text)
    assert chat.prompt(CODEC, TALK[1:2], opening="So") == CODEC.encode(text) + CODEC.encode_text("So", continues=True)


def test_assistants_are_trained_on_to_the_end_of_their_turn():
    example = chat.example(CODEC, TALK)
    assert CODEC.decode(example.ids) == chat.render(CODEC, TALK)
    runs, said = [], []
    for i, learn in zip(example.ids, example.trained, strict=True):
        if learn and not (said and runs[-1]):
            said.append([])
        if learn:
            said[-1].append(i)
        runs.append(learn)
    assert [CODEC.decode(ids) for ids in said] == ["42.<|im_end|>", "\n4 🦄<|im_end|>"]


@pytest.mark.parametrize("last", [2, 4])
def test_what_is_trained_on_follows_the_prompt_exactly(last):
    example, prompt = chat.example(CODEC, TALK[: last + 1]), chat.prompt(CODEC, TALK[:last])
    assert list(example.ids[: len(prompt)]) == prompt
    assert example.trained[len(prompt)] and not example.trained[len(prompt) - 1]


def test_ids_and_mask_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    codec = vocabularies.byte_level(template=MARKED)
    codec.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    talk = [
        *TALK[:-1],
        Message("assistant", "4 🦄"),
    ]  # a new line at the edge of a turn merges with the template's there
    turns = [{"role": message.role, "content": message.content} for message in talk]
    options = dict(tokenize=True, return_dict=True)
    wanted = theirs.apply_chat_template(turns, return_assistant_tokens_mask=True, **options)
    example = chat.example(codec, talk)
    assert list(example.ids) == wanted["input_ids"]
    assert list(map(int, example.trained)) == wanted["assistant_masks"]
    asked = theirs.apply_chat_template(turns[:-1], add_generation_prompt=True, **options)
    assert chat.prompt(codec, talk[:-1]) == asked["input_ids"]


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<|im_end|>", "<|im_start|>", "<think>", "<|im_", "end|>", chat.SHIELD, "1"]) | st.text()
    )
)
def test_a_user_cannot_say_control_words(parts):
    said = "".join(parts)
    ids = chat.prompt(CODEC, [Message("user", said)])
    bare = chat.prompt(CODEC, [Message("user", "")])
    assert [i for i in ids if i in CODEC.controls] == [i for i in bare if i in CODEC.controls]
    shown = said.replace(chat.SHIELD, "")
    assert CODEC.decode(ids) == f"<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\n"
    # Assistants may: that is how threads are taught.
    taught = chat.example(CODEC, [Message("user", "go"), Message("assistant", "a<think>b")])
    assert CODEC.id("<think>") in taught.ids


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('only users may speak') }}", "only users may speak"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ messages[0].content.missing.more }}", "has no attribute 'missing'"),
        ("{{ messages[9]['content']['x'] }}", "has no element 9|undefined"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for i in range(10000000) %}x{% endfor %}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
    ],
)
def test_a_template_that_fails_is_named(source, reason):
    template = ChatTemplate(source, "chat_template.jinja of somewhere")
    with pytest.raises(ValueError, match=f"chat_template.jinja of somewhere failed on messages of user: .*({reason})"):
        chat.prompt(CODEC, [Message("user", "hello")], template)


def test_templates_write_json_as_transformers_does_and_may_stop_loops():
    template = ChatTemplate("{% for m in messages %}{{ m | tojson }}{% break %}{% endfor %}", "json")
    text = chat.render(CODEC, [Message("system", "a < b, é"), Message("user", "")], template)
    assert text == '{"role": "system", "content": "a < b, é"}'


def test_without_a_template_or_with_one_that_forgets_an_error_says_so():
    codec = HuggingFaceTokenizer(CODEC.definition, CODEC.config)
    with pytest.raises(ValueError, match="no chat template"):
        chat.prompt(codec, TALK[1:2])
    # Shows only the last message in full, as reasoning models do with earlier thoughts.
    forgets = "{% for m in messages %}<|im_start|>{{ m.content if loop.last else m.role }}<|im_end|>{% endfor %}"
    with pytest.raises(ValueError, match=r"forgetful does not show message 3 \(assistant\)"):
        chat.example(CODEC, TALK, ChatTemplate(forgets, "forgetful"))


def test_tokenizers_that_open_texts_with_a_space_do_so_once():
    plain = ChatTemplate("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}", "plain")
    for codec in (vocabularies.byte_fallback(), vocabularies.sentence()):
        ids = chat.prompt(codec, [Message("user", "day")], plain)
        assert ids[0] == codec.bos
        assert b"".join(codec.table[i] for i in ids) == b"<s>[user] day "
    old = vocabularies.byte_fallback(metaspace=False)
    ids = chat.prompt(old, [Message("user", "day")], plain)
    assert b"".join(old.table[i] for i in ids) == b"<s> [user] day "
