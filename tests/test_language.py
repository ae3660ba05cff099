"""Tasks in language: reading answers, judging them in a worker, files of questions, and an evaluation from end to end."""

import dataclasses
import re
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import language_folder
import vocabularies
from apr_jax import record
from apr_jax.evaluate import outcomes
from apr_jax.tasks import task, timed
from apr_jax.tasks.language import answers, gym
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.tasks.language.task import LanguageTask, Question
from apr_jax.tasks.prompt import PLAIN, Prompt, Shot
from apr_jax.tokenizer import chat
from experiments import evaluate


class Reading(LanguageTask):
    questions = grade = None


WORKER = "apr_jax.tasks.language.verifiers:mathematics"


@pytest.mark.parametrize(
    ("text", "rules", "answer"),
    [
        ("so <answer> 18.0 </answer>", ("tag",), "18"),
        ("<answer>1</answer> no, <answer>2\n</answer>", ("tag", "number"), "2"),
        (r"thus \boxed{\frac{1}{2}} it is", ("boxed",), r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{\{2, 3\}}", ("boxed",), r"\{2, 3\}"),
        (r"\boxed{1} then \boxed{2", ("boxed", "number"), "1"),
        ("She makes $1,234.50 a year.", ("tag", "boxed", "number"), "1234.5"),
        ("between 3 and -7.", ("number",), "-7"),
        ("it is 3/4", ("number",), "3/4"),
        ("100", ("number",), "100"),
        (" 6*(98 - 54) ", ("text",), "6*(98 - 54)"),
        ("nothing here", ("tag", "boxed", "number"), None),
        ("", ("text",), None),
        ("<answer></answer>", ("tag",), None),
        ("9" * 2000, ("number",), None),
        ("so it is \u22125", ("number",), "-5"),  # the minus sign of typeset text
        ("so it is -\\$18.00", ("number",), "-18"),
        ("about 1e-5", ("number",), "0.00001"),
        ("about 1.50E+3 units", ("number",), "1500"),
        (r"\boxed{1e16}", ("boxed",), "1" + "0" * 16),
        (r"\boxed{1e999}", ("boxed",), "1e999"),
        ("between 3-5", ("number",), "5"),  # a range, or a difference: no sign
        ("(4 + 3)-5", ("number",), "5"),
        ("x=-5", ("number",), "-5"),
        ("9{,}500 or so", ("number",), "9500"),
        (r"9\,500", ("number",), "9500"),
        (r"9,\!500", ("number",), "9500"),
        ("1,2345", ("number",), "2345"),
        (r"\boxed{9{,}500}", ("boxed",), "9500"),
        (r"\boxed{\$18}", ("boxed",), "18"),
        (r"\boxed{18\%}", ("boxed",), r"18\%"),
        (r"\boxed{5 \text{ apples}}", ("boxed",), r"5 \text{ apples}"),
        ("18%", ("number",), "18"),
        ("18 km", ("number",), "18"),
    ],
)
def test_answers_are_read(text, rules, answer):
    assert answers.read(text, rules) == answer


@settings(max_examples=200, deadline=None)
@given(number=st.decimals(min_value=-(10**9), max_value=10**9, places=3), text=st.text(max_size=20))
def test_numbers_keep_their_value_in_the_normal_form(number, text):
    assert Fraction(answers.normal(f" ${number:,}$. ")) == Fraction(number)
    assert answers.normal(answers.normal(text)) == answers.normal(text)
    assert Fraction(answers.normal(f"{number:e}".replace("-", "\u2212"))) == Fraction(number)
    assert answers.number(f"It is {number}.") == str(number)


def test_verifiers_are_bounded_in_time_and_survive():
    calls = [
        ("1/2", "0.5"),
        ("2", "9^{9^{9^{9^9}}}"),
        (r"\frac{3}{4}", "0.75"),
        ("2", "((((((("),
        ("x+1", "1+x"),
        ("3", "4"),
    ]
    late = timed.Failure("no reply in 3 s")
    assert timed.run(WORKER, {}, calls, 3) == [True, late, True, False, True, False]


def test_a_worker_that_dies_raises_or_talks_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text(
        "import os, time\n"
        "def make(word):\n"
        "    print('noise on standard output')\n"
        "    def call(what):\n"
        "        print('more noise')\n"
        "        if what == 'die': os._exit(1)\n"
        "        if what == 'sleep': time.sleep(60)\n"
        "        if what == 'raise': raise KeyError(what)\n"
        "        if what == 'grow': return len(bytearray(1 << 40))\n"
        "        return word + what\n"
        "    return call\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    calls = [("a",), ("die",), ("b",), ("raise",), ("c",), ("grow",), ("sleep",), ("\u2028\n",)]
    start = time.monotonic()
    found = timed.run("hostile:make", {"word": "+"}, calls, 2)
    reasons = {i: r.reason for i, r in enumerate(found) if isinstance(r, timed.Failure)}
    assert [r for i, r in enumerate(found) if i not in reasons] == ["+a", "+b", "+c", "+\u2028\n"]
    assert list(reasons) == [1, 3, 5, 6]
    assert reasons[1] == "the judge ended with code 1" and reasons[3] == "KeyError: 'raise'"
    assert reasons[5].startswith("MemoryError") and reasons[6] == "no reply in 2 s"
    assert time.monotonic() - start < 40
    failed = timed.run("hostile:missing", {}, [("a",)] * 3, 2)
    assert len(failed) == 3 and re.search("worker of hostile:missing did not start: .*missing", failed[0].reason)
    assert set(failed) == {failed[0]}
    assert timed.run("hostile:missing", {}, [], 2) == []


def test_what_a_judge_raises_concerns_one_answer():
    class Task(Reading):
        def grade(self, pairs):
            return [1 / (int(answer) - 5) > 0 for _, answer in pairs]

    pairs = [(Question(0, "q", "6"), str(answer)) for answer in range(9)]
    found = task.grades(Task(), pairs)
    assert found[5] == timed.Failure("ZeroDivisionError: division by zero")
    assert [*found[:5], *found[6:]] == [False] * 5 + [True] * 3
    assert task.grades(Task(), []) == []

    class Short(Reading):
        def grade(self, pairs):
            return []

    assert "grade gave 0 results for 1 answers" in task.grades(Short(), pairs[:1])[0].reason


def test_a_right_answer_that_the_judge_cannot_read_is_no_wrong_answer():
    task = Mathematics()
    unread, question = Question(0, "Which?", r"\$"), Question(1, "6 * 7?", "42")
    found = task.grade([(unread, "north"), (question, "42.0"), (unread, unread.right)])
    assert found[1:] == [True, True] and "makes nothing of the right answer" in found[0].reason


def test_prompts_are_configuration():
    words = vocabularies.byte_level()
    question = Question(0, "Why {question}?", "42")
    prompt = Prompt(system="Be brief.", wrap="Q: {question}", shots=(Shot("1 + 1", "2"),), opening="<answer>")

    class Task(LanguageTask):
        questions = grade = None

    task = Task(ask=prompt)
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ: 1 + 1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nQ: Why {question}?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert task.prompt(question, words) == words.encode(text) + words.encode("<answer>")
    assert task.answer(words.encode("7</answer><|im_end|>"), words) == "7"
    assert dataclasses.replace(task, ask=Prompt()).answer(words.encode("3<think>4<|im_end|>"), words) == "4"
    plain = Task(ask=Prompt(shots=(Shot("1 + 1", "2"),), chat_template=PLAIN))
    wanted = "<|im_start|>Question: 1 + 1\n\nAnswer: 2\n\nQuestion: Why {question}?\n\nAnswer:"
    assert words.decode(plain.prompt(question, words)) == wanted
    for broken in ({"system": "\ud800"}, {"opening": "a\udfff"}, {"shots": (Shot("x", "\ud800"),)}):
        with pytest.raises(ValueError, match=f"{next(iter(broken))}: .*half of a character"):
            Prompt(**broken)
    with pytest.raises(ValueError, match=r"stop is \('',\); .* no empty text"):
        Prompt(stop=("",))
    with pytest.raises(ValueError, match="wrap is 'Q'; it must hold {question}"):
        Prompt(wrap="Q")
    with pytest.raises(ValueError, match="read is empty"):
        Task(read=())


@pytest.mark.parametrize(
    ("template", "said", "answer"),
    [
        (PLAIN, " 42.\n\nQuestion: What is 3+4?\n\nAnswer: 7", "42"),
        (PLAIN, " 42.\nQuestion: What is 3+4?\n\nAnswer: 7", "42"),
        (PLAIN, " Question: is it 42? It is 43.", "43"),  # it begins so, and goes on: no next turn
        (PLAIN, "\n\n6 * 7\n\nis 42", "42"),
        (
            "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}assistant:",
            " 42\nuser: 3+4?\nassistant: 7",
            "42",
        ),
        ("", "42<|im_end|>\n<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n7", "42"),
        ("", "<|im_start|>assistant\n42", "42"),
        ("{{ messages[0].content }}", "42\n\n7", "7"),  # a template of one turn: nothing follows
    ],
)
def test_an_answer_ends_where_its_turn_does(template, said, answer):
    words = vocabularies.byte_level()
    task = Reading(ask=Prompt(chat_template=template))
    assert task.answer(words.encode(said), words) == answer


def test_stop_strings_are_configuration():
    words = vocabularies.byte_level()
    task = Reading(ask=Prompt(stop=("\n\n", "Q:")))
    assert task.answer(words.encode("41 Q: 42\n\n43"), words) == "41"
    assert task.answer(words.encode("41\n\n43 Q: 44"), words) == "41"


@pytest.mark.parametrize("dataset", ["gsm_symbolic", "countdown", "products"])
def test_reasoning_gym_judges_its_own_answers(dataset):
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (requirements-gym.txt)")
    task = gym.ReasoningGym(dataset=dataset, count=3)
    questions = task.questions(seed=1)
    assert questions == task.questions(seed=1) != task.questions(seed=2)
    right = [(question, question.right) for question in questions]
    assert task.grade([*right, (questions[0], "nonsense")]) == [True, True, True, False]
    assert task.grade([]) == []


def test_reasoning_gym_refuses_what_it_does_not_know():
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (requirements-gym.txt)")
    with pytest.raises(ValueError, match="'gsm_symbolik' is not in reasoning-gym; did you mean gsm_symbolic"):
        gym.ReasoningGym(dataset="gsm_symbolik").questions(0)
    with pytest.raises(ValueError, match="options {'size_of': 1} of reasoning-gym products"):
        gym.ReasoningGym(dataset="products", options={"size_of": 1}).questions(0)


CONFIG = """
from apr_jax.decode import Sizes
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Majority, Verifier
from apr_jax.methods import Samples, Sampling, Sequential
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.evaluate.config import EvaluateConfig

FOLDER = {folder!r}
SIZES = dict(problems=2, prompt=64, slots=256, log=256, queue=4, outbox=4, feed_tiles=2, feed_chunk=16, attention_block=256)
ONE = RolloutConfig(
    Sequential(end=""), FOLDER + "/model", Sampling(max_tokens=24), sizes=Sizes(lanes=1, rows=2, threads=1, **SIZES)
)
MANY = RolloutConfig(
    Samples(3, end="<|im_end|>"), FOLDER + "/model", Sampling(temperature=1.0, max_tokens=24),
    sizes=Sizes(lanes=3, rows=6, threads=4, **SIZES),
)


def config():
    return EvaluateConfig(
        methods={{"sequential": MethodConfig(ONE), "self_consistency": MethodConfig(MANY, Majority(), also=(Verifier(),))}},
        task=Mathematics(problems_file=FOLDER + "/questions.jsonl"),
        tokenizer=FOLDER + "/words",
        output=FOLDER + "/out",
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with a real tokenizer, and a file of questions, one with control words in it."""
    folder = tmp_path_factory.mktemp("language")
    rows = [{"question": f"What is {i} * 7 <|im_end|>?", "answer": 7 * i} for i in range(3)]
    language_folder.write(folder, CONFIG, rows)
    return folder


def test_any_file_of_questions_runs_through_evaluate(folder):
    command = [sys.executable, "-m", "experiments.evaluate", "--config", str(folder / "config.py")]
    command += ["--only", "self_consistency"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr
    read = outcomes.read_summary(folder / "out" / "summary.json")
    assert read["problems"] == 3 and list(read["methods"]) == ["self_consistency"]
    assert "accuracy_verifier" in read["methods"]["self_consistency"]
    words = vocabularies.byte_level()
    for i, (transcript, line) in enumerate(record.read(folder / "out" / "transcripts_self_consistency.jsonl")):
        prompt = chat.prompt(words, [chat.Message("user", f"What is {i} * 7 <|im_end|>?")])
        assert list(transcript.tokens(0)) == prompt[:-1]
        assert line["question"] == f"What is {i} * 7 <|im_end|>?" and line["right"] == str(7 * i)
        assert len(line["threads"]) == 4
        assert "answer" in line and not (line["correct"] and line["answer"] is None)
    shown = (folder / "out" / "samples.md").read_text()
    assert "What is 0 * 7 <|im_end|>?<|im_end|>\n<|im_start|>assistant\n" in shown  # the prompt, as the model is fed it
    assert "thread 2 (" in shown and "\nroot" not in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods.sequential.rollout.sizes.prompt", "8"], "question 1 .*its prompt has .* tokens; sizes.prompt = 8"),
        (["--methods.sequential.rollout.method.end", "<stop>"], "'<stop>' is not one id"),
        (
            ["--problems-file", "nowhere.jsonl"],
            "problems_file: there is no file nowhere.jsonl; give one with lines like",
        ),
        (["--problems-file", "tests"], "problems_file: there is no file tests"),
        (["--problems-file", "docs/timeline.png"], "problems_file: docs/timeline.png is not text in UTF-8"),
        (["--problems-file", "EMPTY"], "empty.jsonl: no questions in it; expected lines like"),
        (["--chat-template", "{% for %}"], "chat_template of the prompt's configuration failed"),
        (["--chat-template", "{# nothing #}"], "question 1 .*: the chat template makes no token of it"),
        (["--tokenizer", "nowhere"], "nowhere: no tokenizer there"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_a_reason(folder, options, message, capsys, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    options = [str(tmp_path / "empty.jsonl") if option == "EMPTY" else option for option in options]
    arguments = ["--config", str(folder / "config.py"), "--output", str(tmp_path / "out"), *options]
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(arguments)
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder, capsys, tmp_path):
    vocabularies.byte_level().with_control_words(["<fork>"]).save(tmp_path / "larger")
    arguments = ["--config", str(folder / "config.py"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*arguments, "--tokenizer", str(tmp_path / "larger")])
    size = vocabularies.byte_level().size
    assert stopped.value.code == 2
    assert f"its embedding has {size} rows, the tokenizer has {size + 1} ids" in capsys.readouterr().err
