"""Files of questions: numbers as they are written, and what is no question, named by line and field."""

import json

import pytest

from apr_jax.tasks.language import mathematics
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.tasks.language.task import Question


def test_files_of_questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": "6 * 7?", "answer": 42}, {"question": "GSM\u2028?", "answer": "2 + 16 = 18\n#### 1,018"}]
    path.write_text("\n".join([json.dumps(rows[0]), "", json.dumps(rows[1], ensure_ascii=False)]), encoding="utf-8")
    assert mathematics.read_jsonl(path) == [Question(0, "6 * 7?", "42"), Question(1, "GSM\u2028?", "1018")]
    task = Mathematics(problems_file=str(path), count=1)
    assert [question.number for question in task.questions(0)] == [0]
    first = task.questions(0)[0]
    assert task.grade([(first, "84/2"), (first, "43")]) == [True, False]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'question': 1}", "questions.jsonl:2: not JSON"),
        ('{"question": "x"}', "questions.jsonl:2: expected an object with the fields question and answer"),
        ('["x", "y"]', "questions.jsonl:2: expected an object"),
        ('{"question": "", "answer": 1}', "questions.jsonl:2: question: '' is not a text"),
        ('{"question": "x", "answer": [1]}', r"questions.jsonl:2: answer: \[1\] is neither"),
        ('{"question": "x", "answer": true}', "questions.jsonl:2: answer: True is neither"),
        ('{"question": "x", "answer": null}', "questions.jsonl:2: answer: None is neither"),
        ('{"question": "x", "answer": {"value": 1}}', r"questions.jsonl:2: answer: {'value': .*} is neither"),
        ('{"question": "x", "answer": NaN}', "questions.jsonl:2: answer: nan is not a finite number"),
        ('{"question": "x", "answer": -Infinity}', "questions.jsonl:2: answer: -inf is not a finite number"),
        ('{"question": "x", "answer": 1e400}', r"questions.jsonl:2: answer: 1E\+400 is beyond"),
        ('{"question": "x", "answer": 1e-999999999}', "questions.jsonl:2: answer: 1E-999999999 is beyond"),
        ('{"question": "x", "answer": "####"}', "questions.jsonl:2: answer: '####' is empty"),
        ('{"question": "x", "answer": "so it is 4 #### "}', "questions.jsonl:2: answer: .* is empty"),
        ('{"question": "x", "answer": "$."}', "questions.jsonl:2: answer: .* is empty"),
        ('{"question": "x\\ud800", "answer": "1"}', r"questions.jsonl:2: question: .*\\ud800.* half of a character"),
        ('{"question": "x", "answer": "1\\udc80"}', r"questions.jsonl:2: answer: .*\\udc80.* half of a character"),
        ('{"question": "x", "answer": ' + "[" * 100_000, "questions.jsonl:2: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "x", "answer": "1"}\n' + line)
    with pytest.raises(ValueError, match=message):
        mathematics.read_jsonl(path)


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("0.00001", "0.00001"),
        ("1e-5", "0.00001"),
        ("1e16", "1" + "0" * 16),
        ("12345678901234567890.125", "12345678901234567890.125"),
        ("18.0", "18"),
        ("-0.50", "-0.5"),
        ('"1e-05"', "0.00001"),
        ('"\u22125"', "-5"),
    ],
)
def test_numbers_of_json_are_right_as_they_are_written(tmp_path, written, right):
    path = tmp_path / "questions.jsonl"
    path.write_text(f'{{"question": "x", "answer": {written}}}')
    assert mathematics.read_jsonl(path)[0].right == right


def test_counts_are_checked(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "x", "answer": 1}')
    with pytest.raises(ValueError, match="count is -1; it must be at least 0"):
        Mathematics(problems_file=str(path), count=-1)
    with pytest.raises(ValueError, match="count is 2; .*questions.jsonl has 1"):
        Mathematics(problems_file=str(path), count=2).questions(0)
    for seconds in (float("nan"), float("inf"), 0.0):
        with pytest.raises(ValueError, match=f"seconds is {seconds}; it must be above 0 and finite"):
            Mathematics(seconds=seconds)


def test_files_without_questions_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="empty.jsonl: no questions in it; expected lines like"):
        mathematics.read_jsonl(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="problems_file is empty"):
        Mathematics().questions(0)
    with pytest.raises(FileNotFoundError):
        mathematics.read_jsonl(tmp_path / "nowhere.jsonl")
