"""Converts messages to token ids by a model's chat template, and marks the tokens that a model is trained on.

Templates are programs that come with a model: they run in Jinja's sandbox, without access to the clock or to files.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from apr_jax.tokenizer.codec import ChatTemplate, Controls, TextCodec

Role = Literal["system", "user", "assistant", "tool"]
UNTRUSTED = ("user", "tool")
_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
SHIELD = "\ufdd0"
"""Marks control words that are to stay text while a template runs. Unicode keeps it out of texts; it is dropped from them."""


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn. In the turns of a user or a tool, control words are text; in other turns they are control tokens."""

    role: Role
    content: str


@dataclasses.dataclass(frozen=True)
class Example:
    """A conversation to train on.

    Attributes:
        ids: token ids of the conversation.
        trained: per token, whether the model is trained on it: assistants' texts and the tokens that end their turns.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


class _Generation(jinja2.ext.Extension):
    """Accepts the block `{% generation %}`, with which some templates mark assistants' texts."""

    tags = frozenset({"generation"})

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def prompt(
    codec: TextCodec, messages: Sequence[Message], template: ChatTemplate | None = None, opening: str = ""
) -> list[int]:
    """Ids of a conversation that the assistant is to continue.

    Args:
        codec: the tokenizer.
        messages: the conversation so far.
        template: a template to use instead of the tokenizer's own.
        opening: the beginning of the answer (trusted text).

    Raises:
        ValueError: there is no template, or it fails; the message names it.
    """
    text = render(codec, _shielded(messages, codec.controls), template, generate=True)
    return [*_ids(codec, text, False), *_ids(codec, opening, True)]


def example(codec: TextCodec, messages: Sequence[Message], template: ChatTemplate | None = None) -> Example:
    """Ids of a whole conversation, and which of them are trained on.

    An assistant's turn begins where its prompt ends, so ids of prompts and of training agree.

    Raises:
        ValueError: there is no template, it fails, or it renders a turn differently when other turns follow; named.
    """
    messages = _shielded(messages, codec.controls)
    text = render(codec, messages, template)
    ids: list[int] = []
    trained: list[bool] = []
    place = 0
    spans = list(_spans(codec, messages, template, text))
    for start, end in [*spans, (len(text), len(text))]:
        for stretch, learn in ((text[place:start], False), (text[start:end], True)):
            found = _ids(codec, stretch, continues=bool(ids))
            ids += found
            trained += [learn] * len(found)
        place = end
    return Example(tuple(ids), tuple(trained))


def render(
    codec: TextCodec, messages: Sequence[Message], template: ChatTemplate | None = None, generate: bool = False
) -> str:
    """The text of a conversation.

    Args:
        codec: the tokenizer: its template, and its words for `bos_token` and `eos_token`.
        messages: the conversation.
        template: a template to use instead of the tokenizer's own.
        generate: open the assistant's next turn.

    Raises:
        ValueError: there is no template, or it fails; the message names it.
    """
    template = template or codec.chat_template
    if template is None:
        raise ValueError(
            "the tokenizer has no chat template; give one as chat_template of the prompt's configuration (`PLAIN` of "
            "apr_jax.tasks.prompt suits models that do not chat)"
        )
    words = {"bos_token": codec.bos, "eos_token": codec.eos, "pad_token": codec.pad}
    seen: dict[str, Any] = {name: codec.token_bytes(i).decode() for name, i in words.items() if i is not None}
    # Templates test whether these variables are none; transformers always defines them.
    seen |= {"tools": None, "documents": None, "add_generation_prompt": generate}
    seen |= {"messages": [dataclasses.asdict(message) for message in messages]}
    try:
        return _compiled(template.source).render(seen | dict(template.variables))
    except _FAILURES as error:
        roles = ", ".join(message.role for message in messages)
        raise ValueError(f"{template.name} failed on messages of {roles or 'nobody'}: {error}") from error


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    """The compiled template, in the environment of `transformers` without the clock."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """A filter with the arguments of that of `transformers`; Jinja's own filter writes JSON for HTML, with `<` escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    # Shields are not escaped, because escaped ones would not be found again.
    escaped = lambda found: json.dumps(found[0])[1:-1]
    return re.sub(f"[^\x00-\x7f{SHIELD}]", escaped, text) if ensure_ascii else text


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _spans(
    codec: TextCodec, messages: Sequence[Message], template: ChatTemplate | None, text: str
) -> Iterator[tuple[int, int]]:
    """The ranges of assistants' turns in the text: from the end of their prompt to the control word that ends the turn."""
    for number, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = render(codec, messages[:number], template, generate=True)
        after = render(codec, messages[: number + 1], template)
        if not (after.startswith(before) and text.startswith(after)):
            name = (template or codec.chat_template).name
            raise ValueError(
                f"{name} does not show message {number + 1} (assistant) as the continuation of its prompt, or shows it "
                "otherwise once others follow; train on conversations that end there"
            )
        said = after[len(before) :]
        ends = [match.end() for match in codec.controls.pattern.finditer(said)] if codec.controls.pattern else []
        closed = bool(ends) and not said[ends[-1] :].strip()
        yield len(before), len(before) + (ends[-1] if closed else len(said))


def _shielded(messages: Sequence[Message], controls: Controls) -> list[Message]:
    return [
        dataclasses.replace(
            message, content=_shield(message.content, controls) if message.role in UNTRUSTED else message.content
        )
        for message in messages
    ]


def _shield(text: str, controls: Controls) -> str:
    """Replace the control words of a text by numbers between shields, so that only the template's own control words remain."""
    text = text.replace(SHIELD, "")
    return "".join(
        stretch if control is None else f"{SHIELD}{control}{SHIELD}" for stretch, control in controls.split(text)
    )


def _unshield(text: str, controls: Controls) -> str:
    words = {str(i): word for word, i in controls.ids.items()}
    return re.sub(f"{SHIELD}([0-9]+){SHIELD}", lambda found: words[found[1]], text)


def _ids(codec: TextCodec, text: str, continues: bool) -> list[int]:
    ids: list[int] = []
    for stretch, control in codec.controls.split(text):
        ids += [control] if control is not None else codec.encode_text(_unshield(stretch, codec.controls), continues)
        continues = codec.space != "always"
    return ids
