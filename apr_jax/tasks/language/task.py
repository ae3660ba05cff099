"""Questions in language, and the reading of their answers."""

import bisect
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from apr_jax import settings
from apr_jax.tasks.language import answers
from apr_jax.tasks.prompt import Prompt, check_text
from apr_jax.tasks.task import Task
from apr_jax.tokenizer import ChatTemplate, TextCodec, chat
from apr_jax.tokenizer.chat import Message


@dataclasses.dataclass(frozen=True)
class Question:
    """A question.

    Attributes:
        number: index of the question in the data set.
        text: the question.
        right: the right answer, as in the data set.

    Raises:
        ValueError: UTF-8 cannot encode a text.
    """

    number: int
    text: str
    right: str

    def __post_init__(self):
        check_text("question", self.text)
        check_text("answer", self.right)


@dataclasses.dataclass(frozen=True)
class LanguageTask(Task[Question]):
    """The common part of all tasks in language.

    Attributes:
        ask: the prompt format.
        read: rules that look for the answer; the first rule that finds an answer decides.
        seconds: time limit of judging one answer.

    Answers of a saved rollout can be read and judged again: `read` and `seconds` may change when an evaluation is resumed.
    """

    ask: Prompt = Prompt()
    read: tuple[answers.Rule, ...] = dataclasses.field(default=("tag", "boxed", "number"), metadata=settings.FREE)
    seconds: float = dataclasses.field(default=5.0, metadata=settings.FREE)

    def __post_init__(self):
        if not self.read:
            raise ValueError(f"read is empty; name at least one of {', '.join(answers.RULES)}")
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds}; it must be above 0 and finite")

    def asking(self, ask: Prompt) -> "LanguageTask":
        return dataclasses.replace(self, ask=ask)

    def about(self, question: Question) -> dict[str, Any]:
        return {"question": question.text, "right": question.right}

    def prompt(self, question: Question, codec: TextCodec) -> list[int]:
        return chat.prompt(codec, self.ask.messages(question.text), self.ask.template, self.ask.opening)

    def parts(self, question: Question, prompt: Sequence[int], codec: TextCodec) -> dict[str, tuple[int, int]]:
        """`question`, and `turn`: what begins the assistant's turn, without the opening of the answer."""
        asked = self.ask.messages(question.text)[-1].content
        opening = codec.encode(self.ask.opening, continues=True) if self.ask.opening else ()
        turn = (shown(codec, prompt, asked)[1], len(prompt) - len(opening))
        return {"question": shown(codec, prompt, question.text), "turn": turn}

    def answer(self, ids: Sequence[int], codec: TextCodec) -> str | None:
        control, stops = turn_end(codec, self.ask.template)
        ids = list(ids)
        ids = ids[: ids.index(control)] if control in ids else ids
        # The texts before and after a control word must not form one word or number.
        stretches = itertools.groupby(ids, lambda i: i in codec.controls)
        text = "\n".join(codec.decode(list(stretch)) for control, stretch in stretches if not control)
        ends = [match.start() for stop in (*stops, *map(re.escape, self.ask.stop)) if (match := re.search(stop, text))]
        return answers.read(self.ask.opening + text[: min(ends, default=None)], self.read)


def shown(codec: TextCodec, prompt: Sequence[int], text: str) -> tuple[int, int]:
    """The range of a prompt's tokens that hold a text, where it stands last; white space at its ends may be missing.

    Raises:
        ValueError: the prompt does not show the text as it is.
    """
    pieces, wanted = [codec.token_bytes(i) for i in prompt], text.strip().encode()
    place = b"".join(pieces).rfind(wanted)
    if place < 0:
        raise ValueError(f"the prompt does not show the question {text!r} as it is; its chat template must")
    ends = list(itertools.accumulate(map(len, pieces)))
    return bisect.bisect_right(ends, place), 1 + bisect.bisect_left(ends, place + len(wanted))


def turn_end(codec: TextCodec, template: ChatTemplate | None) -> tuple[int | None, tuple[str, ...]]:
    """The end of an answer: the text that a template puts between an answer and the next question.

    Args:
        codec: the tokenizer.
        template: a template to use instead of the tokenizer's own.

    Returns:
        The id of a control word, or the pattern of a text (`PLAIN` has the line `Question:`). None and () if the template shows
        no second question, or no text before it.
    """
    if template is None and codec.chat_template is None:
        return None, ()
    talk = [Message("user", "Which?"), Message("assistant", "This one."), Message("user", "And which then?")]
    try:
        shown = chat.render(codec, talk, template)
    except ValueError:  # a template of one turn: no text follows an answer
        return None, ()
    between, found, _ = shown.partition("This one.")[2].partition("And which then?")
    parts = [(text, control) for text, control in codec.controls.split(between) if text.strip()] if found else []
    if not parts:
        return None, ()
    text, control = parts[0]
    if control is not None:
        return control, ()
    before = text[: len(text) - len(text.lstrip())]
    return None, ((r"\n\s*" if "\n" in before else r"\s*") + re.escape(text.strip().splitlines()[0].rstrip()),)
