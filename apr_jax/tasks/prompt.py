"""The prompt format of questions to a language model: system prompt, examples, wording, chat template."""

import dataclasses
import re

from apr_jax import settings
from apr_jax.tokenizer import ChatTemplate
from apr_jax.tokenizer.chat import Message

PLAIN = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ {'system': '', 'user': 'Question: ', 'assistant': 'Answer: '}[m.role] ~ m.content ~ '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
"""A chat template for models that were not trained to chat."""


def check_text(field: str, text: str) -> None:
    """Refuse a text that UTF-8 cannot encode.

    Raises:
        ValueError: the text has such a character; the message names the field and the character.
    """
    if broken := re.search(r"[\ud800-\udfff]", text):
        raise ValueError(
            f"{field}: {text!r} has {broken.group()!r}, half of a character (a lone surrogate), which no UTF-8 holds"
        )


@dataclasses.dataclass(frozen=True)
class Shot:
    """An example in a prompt: a question and its wanted answer."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt format.

    Attributes:
        system: the system prompt; empty: none.
        wrap: the user's turn; `{question}` stands for the question.
        shots: examples, as earlier turns.
        opening: the beginning of the answer.
        chat_template: Jinja source to use instead of the tokenizer's own template (`PLAIN`, for instance).
        stop: texts at which an answer ends, in addition to the template's text between an answer and the next question.
    """

    system: str = ""
    wrap: str = "{question}"
    shots: tuple[Shot, ...] = ()
    opening: str = ""
    chat_template: str = ""
    stop: tuple[str, ...] = dataclasses.field(default=(), metadata=settings.FREE)

    def __post_init__(self):
        for field in ("system", "wrap", "opening", "chat_template"):
            check_text(field, getattr(self, field))
        for shot in self.shots:
            check_text("shots", shot.question + shot.answer)
        if not all(self.stop):
            raise ValueError(f"stop is {self.stop!r}; it must hold no empty text, at which every answer would end")
        if "{question}" not in self.wrap:
            raise ValueError(f"wrap is {self.wrap!r}; it must hold {{question}}, where the question is put")

    def messages(self, question: str) -> list[Message]:
        """The conversation that ends with the question."""
        turns = [Message("system", self.system)] if self.system else []
        for shot in self.shots:
            turns += [
                Message("user", self.wrap.replace("{question}", shot.question)),
                Message("assistant", shot.answer),
            ]
        return [*turns, Message("user", self.wrap.replace("{question}", question))]

    @property
    def template(self) -> ChatTemplate | None:
        """The template of this format, None for the tokenizer's own."""
        source = self.chat_template
        return ChatTemplate(source, "chat_template of the prompt's configuration") if source else None
