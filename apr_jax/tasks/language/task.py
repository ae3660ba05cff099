"""Questions in language: how they are put, and how the answer is read."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from apr_jax.tasks.language import answers
from apr_jax.tasks.task import Task
from apr_jax.tokenizer import ChatTemplate, TextCodec, chat
from apr_jax.tokenizer.chat import Message

PLAIN = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ {'system': '', 'user': 'Question: ', 'assistant': 'Answer: '}[m.role] ~ m.content ~ '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
"""A chat template for models that were not trained to chat."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        number: its place in the data set.
        text: the question.
        right: the right answer, as the data set gives it.
    """

    number: int
    text: str
    right: str


@dataclasses.dataclass(frozen=True)
class Shot:
    """An example in a prompt: a question and the answer that is wanted."""

    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """How a question is put.

    Attributes:
        system: what the model is told first; empty: nothing.
        wrap: the user's turn; `{question}` stands for the question.
        shots: examples, as earlier turns.
        opening: how the answer begins.
        chat_template: Jinja source instead of the tokenizer's own template (`PLAIN`, for instance).
    """

    system: str = ""
    wrap: str = "{question}"
    shots: tuple[Shot, ...] = ()
    opening: str = ""
    chat_template: str = ""

    def __post_init__(self):
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


@dataclasses.dataclass(frozen=True)
class LanguageTask(Task[Question]):
    """What all tasks in language have in common.

    Attributes:
        ask: how a question is put.
        read: where the answer is looked for; the first rule that finds something decides.
        seconds: time limit of judging one answer.
    """

    ask: Prompt = Prompt()
    read: tuple[answers.Rule, ...] = ("tag", "boxed", "number")
    seconds: float = 5.0

    def __post_init__(self):
        if not self.read:
            raise ValueError(f"read is empty; name at least one of {', '.join(answers.RULES)}")
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds}; it must be above 0")

    def asking(self, ask: Prompt) -> "LanguageTask":
        return dataclasses.replace(self, ask=ask)

    def about(self, question: Question) -> dict[str, Any]:
        return {"question": question.text, "right": question.right}

    def prompt(self, question: Question, words: TextCodec) -> list[int]:
        source = self.ask.chat_template
        template = ChatTemplate(source, "chat_template of the prompt's configuration") if source else None
        return chat.prompt(words, self.ask.messages(question.text), template, self.ask.opening)

    def answer(self, ids: Sequence[int], words: TextCodec) -> str | None:
        # What stands on both sides of a control word is not one word or number.
        stretches = itertools.groupby(ids, lambda i: i in words.controls)
        text = "\n".join(words.decode(list(stretch)) for control, stretch in stretches if not control)
        return answers.read(self.ask.opening + text, self.read)
