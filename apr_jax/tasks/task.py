"""The interface of a task: its questions, their prompts, and the reading and judging of answers."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from apr_jax.tasks.timed import Failure
from apr_jax.tokenizer import TextCodec

Question = TypeVar("Question")


class Task(abc.ABC, Generic[Question]):
    """A task; implementations are frozen dataclasses whose fields are its configuration."""

    @abc.abstractmethod
    def questions(self, seed: int) -> Sequence[Question]:
        """The questions, drawn or read.

        Raises:
            ValueError, FileNotFoundError: a question, or a file of questions, is missing or malformed.
        """

    def asking(self, ask: Any) -> "Task[Question]":
        """The same task with the prompt format `ask`, for a method with its own format.

        Raises:
            ValueError: the task has one format only.
        """
        raise ValueError(
            f"ask: {type(self).__name__} puts its questions in one way; only tasks in language take others"
        )

    @abc.abstractmethod
    def about(self, question: Question) -> Mapping[str, Any]:
        """The fields of a question for transcripts, as JSON values; the field `question` is its text."""

    @abc.abstractmethod
    def prompt(self, question: Question, codec: TextCodec) -> list[int]:
        """Token ids of the prompt."""

    def parts(self, question: Question, prompt: Sequence[int], codec: TextCodec) -> Mapping[str, tuple[int, int]]:
        """Ranges (begin, end) of a question's prompt by name, for methods that quote them; by default none.

        Raises:
            ValueError: the prompt does not show what a part should hold.
        """
        return {}

    @abc.abstractmethod
    def answer(self, ids: Sequence[int], codec: TextCodec) -> str | None:
        """The answer in the generated tokens of one thread, in normal form; None if there is no answer of valid format."""

    @abc.abstractmethod
    def grade(self, pairs: Sequence[tuple[Question, str]]) -> Sequence[bool | Failure]:
        """Whether each answer is right; a `Failure` if the judge cannot tell. May raise any exception, see `grades`."""

    def files(self) -> dict[str, str]:
        """The files of the questions, by the names of the task's fields that hold their paths."""
        return {}


def grades(task: Task[Question], pairs: Sequence[tuple[Question, str]]) -> list[bool | Failure]:
    """Judge answers; an exception of the judge makes only its own answer a `Failure`."""
    if not pairs:
        return []
    try:
        found = list(task.grade(pairs))
        if len(found) != len(pairs):
            raise ValueError(f"{type(task).__name__}.grade gave {len(found)} results for {len(pairs)} answers")
        return [grade if isinstance(grade, Failure) else bool(grade) for grade in found]
    except Exception as error:  # a judge may fail on any model output; the decoded rollout must not be lost
        if len(pairs) == 1:
            return [Failure(f"{type(error).__name__}: {error}")]
    half = len(pairs) // 2
    return grades(task, pairs[:half]) + grades(task, pairs[half:])
