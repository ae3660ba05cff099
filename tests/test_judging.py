"""What was decoded outlives its judges, can be judged again, and is gone on with only where its files are those that made it."""

import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

import language_folder
from apr_jax import files, record, settings
from apr_jax.evaluate import methods, outcomes
from apr_jax.evaluate.kept import Asked
from apr_jax.evaluate.methods import RolloutConfig
from apr_jax.methods import Sequential
from apr_jax.model import io, transformer
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.train import data, rows
from apr_jax.train.logs import LogData
from experiments import evaluate

QUESTIONS = [{"question": f"What is {i} * 7?", "answer": 7 * i} for i in range(3)]
CONFIG = """
import dataclasses
from apr_jax.decode import Sizes
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Majority
from apr_jax.methods import Samples, Sampling
from apr_jax.tasks import timed
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.evaluate.config import EvaluateConfig

FOLDER = {folder!r}
SIZES = dict(problems=2, prompt=64, slots=256, log=256, queue=1, outbox=4, feed_tiles=2, feed_chunk=16, attention_block=256)

@dataclasses.dataclass(frozen=True)
class Twin(Samples):
    pass

MANY = RolloutConfig(
    Samples(2, end="<|im_end|>"), FOLDER + "/model", Sampling(temperature=1.0, max_tokens=8),
    sizes=Sizes(lanes=2, rows=4, threads=3, **SIZES),
)

@dataclasses.dataclass(frozen=True)
class Judged(Mathematics):
    def grade(self, pairs):
        calls = [(question.number, answer) for question, answer in pairs]
        return timed.run("judge_of_tests:make", {{}}, calls, self.seconds)

@dataclasses.dataclass(frozen=True)
class Alike(Judged):
    pass

def config():
    return EvaluateConfig(
        methods={{"first": MethodConfig(MANY), "vote": MethodConfig(MANY, Majority())}},
        task=Judged(problems_file=FOLDER + "/questions.jsonl", read=("text",)),
        tokenizer=FOLDER + "/words",
        output=FOLDER + "/out",
    )
"""
JUDGE = """
import os, signal, time
def make():
    def judge(number, answer):
        {what}
    return judge
"""


@pytest.fixture(scope="module")
def decoded(tmp_path_factory, compiled_once):
    """A folder with an evaluation whose judge cannot even be imported, and what its summary says."""
    folder = tmp_path_factory.mktemp("judging")
    language_folder.write(folder, CONFIG, QUESTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        (folder / "judge_of_tests.py").write_text("import no_such_verifier")
        assert evaluate.main(["--config", str(folder / "config.py")]) == 0
    return folder


@pytest.fixture
def folder(decoded, tmp_path, monkeypatch):
    """A copy of it, in its place."""
    monkeypatch.syspath_prepend(decoded)
    kept = tmp_path / "kept"
    shutil.copytree(decoded, kept)
    yield decoded
    shutil.rmtree(decoded)
    shutil.copytree(kept, decoded)


def again(folder, *options: str) -> int:
    return evaluate.main(["--config", str(folder / "config.py"), "--resume", "True", *options])


def results(folder) -> dict:
    return outcomes.read_summary(folder / "out" / "summary.json")["methods"]


def lines(folder) -> list[dict]:
    return [line for _, line in record.read(folder / "out" / "transcripts_vote.jsonl")]


def judge(folder, what: str) -> None:
    (folder / "judge_of_tests.py").write_text(JUDGE.format(what=what))


def answers(folder) -> list[dict]:
    return [answer for line in lines(folder) for answer in line["answers"] if answer["answer"] is not None]


def test_a_judge_that_cannot_be_imported_loses_nothing(folder, capsys):
    found, asked = results(folder)["vote"], answers(folder)
    assert found["accuracy"] == 0 and found["judge_failures"] == len(asked) > 0
    (reason,) = found["judge_failure_reasons"]
    assert "did not start: ModuleNotFoundError: No module named 'no_such_verifier'" in reason
    assert {answer["judge_failure"] for answer in asked} == {reason}
    report = (folder / "out" / "report.md").read_text()
    assert "| judge failed |\n" in report and f"vote: the judge failed on {len(asked)} answers" in report
    before = [line["threads"] for line in lines(folder)]

    judge(folder, "return True")
    assert again(folder) == 0
    captured = capsys.readouterr()
    assert "the judge failed" not in captured.err and "failed" not in captured.out
    found = results(folder)["vote"]
    assert found["accuracy"] == 1 and found["judge_failures"] == 0
    assert [line["threads"] for line in lines(folder)] == before
    assert all(answer["correct"] and "judge_failure" not in answer for answer in answers(folder))


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("return {}[answer] if number == 1 else True", "KeyError: "),
        ("return True if number != 1 else time.sleep(60)", "no reply in 1 s"),
        ("return True if number != 1 else os.kill(os.getpid(), signal.SIGKILL)", "signal 9 ended the judge"),
    ],
)
def test_a_failure_concerns_its_answer_alone(folder, what, reason, capsys):
    judge(folder, what)
    assert again(folder, "--seconds", "1", "--read", "text") == 0  # how it is judged may change
    found, failed = results(folder)["vote"], [a for a in answers(folder) if "judge_failure" in a]
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["judge_failures"] == len(failed) > 0 and all(reason in answer["judge_failure"] for answer in failed)
    assert sum(answer["correct"] for answer in answers(folder)) == len(answers(folder)) - len(failed)
    printed = capsys.readouterr()
    assert re.search(rf"vote: the judge failed on \d answers, which count as wrong: \d x .*{reason}", printed.err)
    assert "failed" in printed.out and "--resume True judges again" in printed.err


@pytest.fixture
def ctrl_c():
    """Ctrl-C works, also where the tests were started with it ignored (in the background of a script)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_judging_is_interrupted_by_ctrl_c_and_repeated(folder, capsys):
    judge(folder, "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)")
    assert again(folder) == 130
    assert "what was decoded is kept, --resume True" in capsys.readouterr().err
    judge(folder, "return True")
    assert again(folder) == 0
    assert results(folder)["vote"]["accuracy"] == 1


def test_a_file_is_read_again_where_it_changed(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 100)
    os.utime(file, ns=(1, 1))
    before = files.identity(file)
    assert files.identity(file) == before and before.startswith("100 bytes, SHA-256 ")
    file.write_bytes(b"b" * 100)
    assert files.identity(file) != before
    assert files.identities(tmp_path / "nothing") == {}


def test_all_parts_of_a_split_model_are_noted(tmp_path):
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m.gguf", "words.model"):
        (tmp_path / name).write_text(name)
    rollout = RolloutConfig(Sequential(), str(tmp_path / "m-00002-of-00002.gguf"))
    noted = Asked.now(rollout, Countdown(), str(tmp_path / "words.model"), 0).files
    assert [name.rpartition("/")[2] for name in noted] == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
        "words.model",
    ]
    assert noted[str(tmp_path / "words.model")].startswith("11 bytes, SHA-256 ")


def test_a_second_ctrl_c_keeps_what_is_finished(folder):
    """One problem a call of the program; the second is broken off."""
    config = settings.load(folder / "config.py")
    words, rollout = load(config.tokenizer), config.methods["first"].rollout
    questions = config.task.questions(0)

    def watch(progress):
        if progress.finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(methods.Interrupted, match="1 of 3 questions are finished") as interrupted:
        methods.roll_out(config.task, questions, rollout, words, 0, watch)
    assert list(interrupted.value.kept.finished) == [0]


def labels(folder, **options) -> list[int]:
    """The labels of all rows that are made of the vote's transcripts."""
    file = str(folder / "out" / "transcripts_vote.jsonl")
    target = folder / f"data{options}"
    config = LogData(str(target), (file,), str(folder / "words"), held_out=2, length=128, threads=8, **options)
    data.make(config, lambda line: None)
    stores = [rows.RowStore.open(target / name) for name in ("train", "held_out")]
    found = np.concatenate([store.read(np.arange(len(store))).label.ravel() for store in stores])
    return sorted(found[found >= 0].tolist())


@pytest.mark.parametrize("chosen", [True, False])
def test_right_samples_alone_are_trained_on(folder, chosen):
    """Whether or not the sample that the vote chose is among them."""
    told = [[a for a in line["answers"] if a["answer"] is not None] for line in lines(folder)]
    right = [(given[0] if chosen else given[-1])["answer"] for given in told]
    assert all(len({a["answer"] for a in given}) == 2 for given in told)
    judge(folder, f"return answer == {right!r}[number]")
    assert again(folder) == 0
    assert results(folder)["vote"]["accuracy"] == float(chosen)
    wanted, every = [], []
    for transcript, line in record.read(folder / "out" / "transcripts_vote.jsonl"):
        threads = [answer["thread"] for answer in line["answers"] if answer["correct"]]
        assert len(threads) == 1
        wanted += transcript.generated(threads[0]).tolist()
        every += transcript.log.token[transcript.log.sampled].tolist()
    assert labels(folder) == sorted(wanted) and len(wanted) < len(every)
    assert labels(folder, correct=False) == sorted(every)


def test_samples_that_nobody_judged_are_refused(folder):
    """Files of an earlier version say only whether the answer that was chosen is right."""
    file = folder / "out" / "transcripts_vote.jsonl"
    old = [{k: v for k, v in line.items() if k != "answers"} | {"correct": True} for line in lines(folder)]
    file.write_text("".join(json.dumps(line) + "\n" for line in old))
    with pytest.raises(ValueError, match=r"transcripts: .*vote\.jsonl:1 does not say which of its 2 samples are right"):
        labels(folder)


def replace_model(folder):
    shape = io.load(folder / "model").config
    io.save(folder / "model", transformer.init(shape, jax.random.key(1)), shape)


def replace_template(folder):
    file = folder / "words" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"chat_template": config["chat_template"] + "{# the same #}"}))


def add_template(folder):
    text = json.loads((folder / "words" / "tokenizer_config.json").read_text())["chat_template"]
    (folder / "words" / "chat_template.jinja").write_text(text)


def replace_answers(folder):
    language_folder.write_questions(folder, [{**question, "answer": 1} for question in QUESTIONS])


@pytest.mark.parametrize(
    ("replace", "name"),
    [
        (replace_model, "model"),
        (replace_template, "words/tokenizer_config.json"),
        (add_template, "words/chat_template.jinja"),
        (replace_answers, "questions.jsonl"),
    ],
)
def test_a_file_that_was_replaced_is_named(folder, replace, name, capsys):
    judge(folder, "return True")
    kept = (folder / "out" / "rollouts" / "first.jsonl").read_bytes()
    replace(folder)
    with pytest.raises(SystemExit) as stopped:
        again(folder)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(
        rf"resume: .*first\.json was decoded with other files \(\S*/{name}: was .*, is now .* bytes, SHA-256", error
    )
    assert "leave out --resume" in error
    assert (folder / "out" / "rollouts" / "first.jsonl").read_bytes() == kept


def test_files_that_are_not_noted_are_not_trusted(folder, capsys):
    """What an earlier version has kept."""
    judge(folder, "return True")
    file = folder / "out" / "rollouts" / "first.json"
    note = json.loads(file.read_text())
    del note["asked"]["files"]
    file.write_text(json.dumps(note))
    with pytest.raises(SystemExit):
        again(folder)
    assert re.search(r"/model: was not noted, is now", capsys.readouterr().err)


def test_a_method_of_the_same_fields_is_another(folder, capsys):
    judge(folder, "return True")
    file = folder / "config.py"
    before = settings.load(file).methods["first"].rollout
    file.write_text(file.read_text().replace("Samples(2,", "Twin(2,"))
    assert settings.load(file).methods["first"].rollout != before  # nor are they decoded once for both
    with pytest.raises(SystemExit):
        again(folder)
    assert "rollout.method.class: was 'apr_jax.methods.samples.Samples', is now 'Twin'" in capsys.readouterr().err


def test_a_task_of_the_same_fields_is_another(folder, capsys):
    judge(folder, "return True")
    file = folder / "config.py"
    file.write_text(file.read_text().replace("task=Judged(", "task=Alike("))
    with pytest.raises(SystemExit):
        again(folder)
    assert "task.class: was 'Judged', is now 'Alike'" in capsys.readouterr().err
