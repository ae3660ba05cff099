"""The interface of a task: its questions, their prompts, and how answers are read and judged."""

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
            ValueError, FileNotFoundError: a question, or a file of them, that is not as it should be.
        """

    def asking(self, ask: Any) -> "Task[Question]":
        """The same task with the prompt format `ask`, for a method that has a format of its own.

        Raises:
            ValueError: the task has one format only.
        """
        raise ValueError(
            f"ask: {type(self).__name__} puts its questions in one way; only tasks in language take others"
        )

    @abc.abstractmethod
    def about(self, question: Question) -> Mapping[str, Any]:
        """The fields of a question for transcripts, JSON only; `question` is its text."""

    @abc.abstractmethod
    def prompt(self, question: Question, codec: TextCodec) -> list[int]:
        """Token ids of the prompt."""

    @abc.abstractmethod
    def answer(self, ids: Sequence[int], codec: TextCodec) -> str | None:
        """The answer in what one thread generated, in its normal form; None if there is none of valid format."""

    @abc.abstractmethod
    def grade(self, pairs: Sequence[tuple[Question, str]]) -> Sequence[bool | Failure]:
        """Whether each answer is right; a `Failure` where the judge cannot tell. It may raise, see `grades`."""

    def files(self) -> dict[str, str]:
        """The files that the questions are read from, by the names of the fields that name them."""
        return {}


def grades(task: Task[Question], pairs: Sequence[tuple[Question, str]]) -> list[bool | Failure]:
    """Judge answers; where the judge raises, that concerns the answer that it raised on and no other."""
    if not pairs:
        return []
    try:
        found = list(task.grade(pairs))
        if len(found) != len(pairs):
            raise ValueError(f"{type(task).__name__}.grade gave {len(found)} results for {len(pairs)} answers")
        return [grade if isinstance(grade, Failure) else bool(grade) for grade in found]
    except Exception as error:  # whatever a judge makes of what a model wrote: what was decoded is not lost by it
        if len(pairs) == 1:
            return [Failure(f"{type(error).__name__}: {error}")]
    half = len(pairs) // 2
    return grades(task, pairs[:half]) + grades(task, pairs[half:])
