"""Mathematics from a file: a question and its answer a line, judged by `math-verify`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr_jax import files
from apr_jax.tasks import timed
from apr_jax.tasks.language import answers
from apr_jax.tasks.language.task import LanguageTask, Question

EXAMPLE = '{"question": "What is 6 times 7?", "answer": "42"}'


@dataclasses.dataclass(frozen=True)
class Mathematics(LanguageTask):
    """Questions of a JSONL file with the fields `question` and `answer` (LaTeX, a number, or GSM8K's `... #### 18`).

    Attributes:
        problems_file: the file.
        count: how many questions, from its beginning; 0: all.
    """

    problems_file: str = ""
    count: int = 0

    def questions(self, seed: int) -> list[Question]:
        if not self.problems_file:
            raise ValueError(f"problems_file is empty; give a file with lines like {EXAMPLE}")
        found = read_jsonl(Path(self.problems_file))
        return found[: self.count] if self.count else found

    def grade(self, pairs: Sequence[tuple[Question, str]]) -> list[bool]:
        calls = [(question.right, answer) for question, answer in pairs]
        return [bool(r) for r in timed.run("apr_jax.tasks.language.verifiers:mathematics", {}, calls, self.seconds)]


def read_jsonl(path: Path) -> list[Question]:
    """Read questions; blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is no such question, named by file and line number; a file without questions, or not in UTF-8.
    """
    path = files.local(path, "problems_file")
    if not path.is_file():
        raise FileNotFoundError(f"problems_file: there is no file {path}; give one with lines like {EXAMPLE}")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"problems_file: {path} is not text in UTF-8 ({error}); save it as that") from error
    questions: list[Question] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text, right = _parse(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        questions.append(Question(len(questions), text, right))
    if not questions:
        raise ValueError(f"{path}: no questions in it; expected lines like {EXAMPLE}")
    return questions


def _parse(line: str) -> tuple[str, str]:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); expected {EXAMPLE}") from error
    if not isinstance(record, dict) or not {"question", "answer"} <= record.keys():
        raise ValueError(f"expected an object with the fields question and answer, got {line.strip()[:80]}")
    text, right = record["question"], record["answer"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"question: {text!r} is not a text")
    if isinstance(right, bool) or not isinstance(right, str | int | float) or not str(right).strip():
        raise ValueError(f"answer: {right!r} is neither a text nor a number")
    return text, answers.normal(str(right).rpartition("####")[2])
