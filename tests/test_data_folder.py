"""Folders of training data: nothing that exists is replaced, and data know what they were made from."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import vocabularies
from apr_jax import record
from apr_jax.tasks.countdown import problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig
from apr_jax.tasks.countdown.training import DataConfig, Part
from apr_jax.train import data
from apr_jax.train.data import Dataset
from apr_jax.train.logs import LogData
from experiments import make_data
from synthetic import build, random_tree

SEARCH = dict(setting=problems.PRESETS["three"], beam=(3, 3), sub_beam=(3, 3), order="canonical")
DRAWN = DataConfig("", "apr", (Part(1.0, DemonstrationConfig(**SEARCH)),), 8, 2, 128, 16)
CODEC = vocabularies.byte_level()


def quiet(line: str) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def at(config, folder: Path):
    return dataclasses.replace(config, folder=str(folder))


# ---- folders


def test_a_folder_with_something_else_in_it_stays_as_it_is(tmp_path, capsys):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine").write_text("x")
    options = [
        "--data.folder",
        str(tmp_path / "d"),
        "--data.train",
        "4",
        "--data.held-out",
        "2",
        "--data.processes",
        "1",
    ]
    with pytest.raises(SystemExit) as stopped:
        make_data.main(["--config", "configs/sft_apr.py", *options])
    assert stopped.value.code == 2
    assert f"data.folder: {tmp_path / 'd'} is there and holds no data of this program" in capsys.readouterr().err
    assert contents(tmp_path) == {"d/mine": b"x"}


@pytest.mark.parametrize("text", ["[]", "{}", "no JSON", '{"config": {}}'])
def test_a_data_json_of_somebody_else_is_no_data(text, tmp_path):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match="holds no data of this program"):
        data.make(at(DRAWN, tmp_path), quiet)
    assert contents(tmp_path) == {"data.json": text.encode()}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "d").write_text("x")
    with pytest.raises(ValueError, match="data.folder: .*holds no data of this program"):
        data.make(at(DRAWN, tmp_path / "d"), quiet)


def test_what_no_row_holds_is_reported_and_an_error_above_a_share(tmp_path):
    short, told = dataclasses.replace(at(DRAWN, tmp_path / "d"), length=24, left_out=1.0), []
    counts = data.make(short, told.append)
    train = counts["train"]
    assert train.too_long > 0 and train.labels > 0
    assert any(f"{train.too_long} of {train.components} components of threads too long" in line for line in told)
    assert any(f"left out with {train.left_out:,} labels" in line for line in told)
    whole = data.make(at(DRAWN, tmp_path / "whole"), quiet)["train"]
    assert whole.left_out == 0 and whole.labels == train.labels + train.left_out
    share = max(count.left_out / (count.labels + count.left_out) for count in counts.values())
    assert data.make(dataclasses.replace(at(short, tmp_path / "just"), left_out=share), quiet) == counts
    message = r"data.left_out is .*; [\d,]+ of [\d,]+ labels of .* raise data.length or data.threads, or allow more"
    with pytest.raises(ValueError, match=message):
        data.make(dataclasses.replace(at(short, tmp_path / "none"), left_out=share - 1e-6), quiet)
    assert not (tmp_path / "none").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["d", "just", "whole"]
    with pytest.raises(ValueError, match="left_out is 1.5; it is a share, 0 to 1"):
        dataclasses.replace(short, left_out=1.5)


def test_data_that_are_there_are_taken_and_others_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "d").symlink_to("real")  # an empty folder, by way of a link
    config = at(DRAWN, tmp_path / "d")
    counts = data.make(config, quiet)
    (tmp_path / "d" / "mine").write_text("x")
    before, said = contents(tmp_path), []
    assert data.make(config, said.append) == counts and said == [f"{config.folder} holds these data already"]
    with pytest.raises(ValueError, match="seed: was 0, is now 1.*remove it to have it made anew"):
        data.make(dataclasses.replace(config, seed=1), quiet)
    assert contents(tmp_path) == before and (tmp_path / "d").is_symlink()


@dataclasses.dataclass(frozen=True)
class Raced(DataConfig):
    """Data that another program makes while this one does: the same, or others."""

    meanwhile: DataConfig | None = None

    def write(self, folder, report):
        data.make(dataclasses.replace(self.meanwhile, folder=self.folder), report)
        return super().write(folder, report)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_another_program_made_meanwhile_stays(seed, tmp_path):
    raced = Raced(**{f.name: getattr(DRAWN, f.name) for f in dataclasses.fields(DRAWN)}, meanwhile=None)
    config = at(dataclasses.replace(raced, meanwhile=dataclasses.replace(DRAWN, seed=seed)), tmp_path / "d")
    with pytest.raises(ValueError, match="made with other settings"):  # it was not made by Raced
        data.make(config, quiet)
    assert json.loads((tmp_path / "d" / "data.json").read_text())["config"]["seed"] == seed
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


# ---- transcripts


QUESTIONS = [f"question {i}" for i in range(12)]


def write_log(file: Path, seed: int, questions: list[str | None], right: bool = True) -> None:
    rng = np.random.default_rng(seed)
    records = [build(random_tree(rng, shared=i % 2 == 0), seed=seed + i, problem=i)[0] for i in range(len(questions))]
    # Of a question in the list, every token is its number.
    for i, question in enumerate(questions):
        if question:
            log = records[i].log
            token = np.full_like(log.token, QUESTIONS.index(question))
            records[i] = dataclasses.replace(records[i], log=dataclasses.replace(log, token=token))
    extra = [{"correct": right, **({"question": q} if q else {})} for q in questions]
    record.write(file, records, CODEC.decode, extra)


def logs(folder: Path, *names: str, held_out: int = 4) -> LogData:
    if not (folder / "model").exists():
        CODEC.save_folder(folder / "model")
    return LogData(
        folder=str(folder / "data"),
        transcripts=tuple(str(folder / name) for name in names),
        tokenizer=str(folder / "model"),
        held_out=held_out,
        length=1024,
        threads=256,
    )


@pytest.mark.parametrize("order", [("a.jsonl", "b.jsonl"), ("b.jsonl", "a.jsonl")])
def test_no_question_is_both_trained_on_and_held_out(order, tmp_path):
    """Two methods' files over the same questions: each question is on one side, whatever the order of the files."""
    write_log(tmp_path / "a.jsonl", 0, QUESTIONS)
    write_log(tmp_path / "b.jsonl", 100, QUESTIONS[3:])
    config = logs(tmp_path, *order)
    counts = data.make(config, quiet)
    assert counts["train"].transcripts + counts["held_out"].transcripts == 21
    opened, sides = Dataset.open(config), {}
    for name in ("train", "held_out"):
        store = getattr(opened, name)
        rows = store.read(np.arange(len(store)))
        sides[name] = {QUESTIONS[token] for token in rows.token[rows.owner >= 0]}
    assert not sides["train"] & sides["held_out"] and len(sides["held_out"]) == 3
    assert sides["train"] | sides["held_out"] == set(QUESTIONS)
    assert counts["held_out"].transcripts == sum(q in sides["held_out"] for q in QUESTIONS + QUESTIONS[3:])


def test_questions_without_a_text_are_told_apart_by_their_numbers(tmp_path):
    write_log(tmp_path / "a.jsonl", 0, [None] * 8)
    write_log(tmp_path / "b.jsonl", 50, [None] * 8)
    counts = data.make(logs(tmp_path, "a.jsonl", "b.jsonl"), quiet)
    assert (counts["train"].transcripts, counts["held_out"].transcripts) == (12, 4)
    with pytest.raises(ValueError, match="of their questions 8 are left to train on, and one of 9 is to be held out"):
        data.make(
            dataclasses.replace(logs(tmp_path, "a.jsonl", "b.jsonl", held_out=9), folder=str(tmp_path / "no")), quiet
        )


@pytest.mark.parametrize("replaced", ["a.jsonl", "a.npz", "model/tokenizer.json"])
def test_data_know_what_they_were_made_from(replaced, tmp_path):
    write_log(tmp_path / "a.jsonl", 0, QUESTIONS)
    config = logs(tmp_path, "a.jsonl")
    data.make(config, quiet)
    assert data.is_made(config)
    before = contents(tmp_path / "data")
    file = tmp_path / replaced
    old = file.read_bytes()
    file.write_bytes(old + b" ")
    told = rf"{replaced}: was {len(old):,} bytes, SHA-256 .* is now {len(old) + 1:,}"
    message = rf"made with other settings or from other files \(.*{told}"
    for use in (data.is_made, Dataset.open, lambda c: data.make(c, quiet)):
        with pytest.raises(ValueError, match=message):
            use(config)
    assert contents(tmp_path / "data") == before
    file.unlink()  # taken along to another machine without its sources
    assert data.is_made(config)


def test_data_of_an_earlier_version_did_not_note_it(tmp_path):
    write_log(tmp_path / "a.jsonl", 0, QUESTIONS)
    config = logs(tmp_path, "a.jsonl")
    data.make(config, quiet)
    file = tmp_path / "data" / "data.json"
    facts = json.loads(file.read_text())
    del facts["made_from"]
    file.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="a.jsonl: was not noted, is now"):
        Dataset.open(config)
