"""Mathematics from a file: one question and its answer per line, judged by `math-verify`."""

import dataclasses
import decimal
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apr_jax import files
from apr_jax.tasks import timed
from apr_jax.tasks.language import answers
from apr_jax.tasks.language.task import LanguageTask, Question
from apr_jax.tasks.timed import Failure

EXAMPLE = '{"question": "What is 6 times 7?", "answer": "42"}'


@dataclasses.dataclass(frozen=True)
class Mathematics(LanguageTask):
    """Questions of a JSONL file with the fields `question` and `answer` (LaTeX, a number, or GSM8K's `... #### 18`).

    Attributes:
        problems_file: the file.
        count: number of questions, from the beginning of the file; 0: all.
    """

    problems_file: str = ""
    count: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.count < 0:
            raise ValueError(f"count is {self.count}; it must be at least 0 (all questions of the file)")

    def questions(self, seed: int) -> list[Question]:
        if not self.problems_file:
            raise ValueError(f"problems_file is empty; give a file with lines like {EXAMPLE}")
        found = read_jsonl(Path(self.problems_file))
        if self.count > len(found):
            raise ValueError(f"count is {self.count}; {self.problems_file} has {len(found)} questions (0: all of them)")
        return found[: self.count] if self.count else found

    def grade(self, pairs: Sequence[tuple[Question, str]]) -> list[bool | Failure]:
        calls = [(question.right, answer) for question, answer in pairs]
        return timed.run("apr_jax.tasks.language.verifiers:mathematics", {}, calls, self.seconds)

    def files(self) -> dict[str, str]:
        return {"problems_file": self.problems_file}


def read_jsonl(path: Path) -> list[Question]:
    """Read questions; blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a valid question, named by file and line number; or the file has no questions or is not UTF-8.
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
            questions.append(_parse(line, len(questions)))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if not questions:
        raise ValueError(f"{path}: no questions in it; expected lines like {EXAMPLE}")
    return questions


def _parse(line: str, number: int) -> Question:
    try:
        # The right number is the number as written, not its rounding to a double.
        record: Any = json.loads(line, parse_float=decimal.Decimal)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); expected {EXAMPLE}") from error
    if not isinstance(record, dict) or not {"question", "answer"} <= record.keys():
        raise ValueError(f"expected an object with the fields question and answer, got {line.strip()[:80]}")
    text = record["question"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"question: {text!r} is not a text")
    return Question(number, text, _right(record["answer"]))


def _right(given: Any) -> str:
    """The right answer in normal form."""
    if isinstance(given, float):  # JSON has no such number, but Python reads NaN and Infinity
        raise ValueError(f"answer: {given} is not a finite number")
    if isinstance(given, bool) or not isinstance(given, str | int | decimal.Decimal):
        raise ValueError(f"answer: {given!r} is neither a text nor a number")
    if isinstance(given, decimal.Decimal) and abs(given.adjusted()) > answers.LARGEST:
        raise ValueError(f"answer: {given} is beyond 10 to the power of {answers.LARGEST}; give it as a text in LaTeX")
    written = f"{given:f}" if isinstance(given, decimal.Decimal) else str(given)
    right = answers.normal(written.rpartition("####")[2])
    if not right:
        raise ValueError(f"answer: {given!r} is empty, or has nothing after its ####")
    return right
