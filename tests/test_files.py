"""Paths that cannot be reached, and folders that programs may not write to, are refused before anything is computed."""

import dataclasses
import json
from pathlib import Path

import pytest

from apr_jax import files, record, settings
from apr_jax.model import io
from apr_jax.pretrained import load_pretrained
from apr_jax.pretrained.tokenizer import load
from apr_jax.train.checkpoints import Checkpoints
from experiments import evaluate, make_data, train_sft

BUCKET = "gs://bucket/run"


@pytest.mark.parametrize(
    "place", [BUCKET, "s3://b/k", "hf://org/model", "file:///tmp/x", "https://host/x", Path("gs://bucket/run")]
)
def test_a_place_elsewhere_is_named_with_what_to_do(place):
    with pytest.raises(ValueError, match=r"workdir: .*:/.* is elsewhere.*gcsfuse.*gcloud storage cp"):
        files.local(place, "workdir")


@pytest.mark.parametrize("place", ["work/run", "/tmp/a:/b", "C:/runs", "a b:/c", "what? see x://y or not"])
def test_local_paths_and_texts_pass(place):
    assert files.local(place, "workdir") == Path(place)


@pytest.mark.parametrize(
    ("program", "options"),
    [
        (train_sft, ["--workdir", BUCKET]),
        (train_sft, ["--export", BUCKET]),
        (train_sft, ["--start", BUCKET]),
        (make_data, ["--data.folder", BUCKET]),
        (evaluate, ["--output", BUCKET]),
        (evaluate, ["--problems-file", BUCKET]),
        (evaluate, ["--methods.apr.rollout.checkpoint", BUCKET]),
    ],
)
def test_programs_refuse_places_elsewhere(program, options, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(Path(settings.__file__).parents[1] / "configs")
    with pytest.raises(SystemExit) as stopped:
        program.main(options)
    assert stopped.value.code == 2
    field = options[0].removeprefix("--").replace("-", "_")
    assert f"{field}: {BUCKET} is elsewhere" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


@pytest.mark.parametrize(
    "use", [io.load, load_pretrained, load, Checkpoints, lambda path: list(record.read(Path(path)))]
)
def test_functions_refuse_places_elsewhere(use):
    with pytest.raises(ValueError, match="is elsewhere"):
        use(BUCKET)


# ---- folders of results


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 1
    output: str = ""


NAMES = ("report.md", "rollouts/*")
MODEL = {"config.json": '{"model_type": "llama"}', "model.safetensors": "weights", "notes.md": "mine"}


def fill(folder: Path, contents: dict) -> dict:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text)
    return contents


def claim(folder: Path):
    return settings.claim(Config(), folder, "output", NAMES)


def test_a_new_folder_one_of_ones_own_and_one_with_other_things_may_be_written_to(tmp_path):
    assert claim(tmp_path / "new") == tmp_path / "new" and not (tmp_path / "new").exists()
    fill(tmp_path / "other", {"questions.jsonl": "{}"})
    claim(tmp_path / "other")
    fill(tmp_path / "own", {"report.md": "old"})
    settings.save(Config(2), tmp_path / "own")
    claim(tmp_path / "own")
    fill(tmp_path / "older", {"report.md": "old", "config.json": json.dumps(settings.to_dict(Config()))})
    claim(tmp_path / "older")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (MODEL, r"output: .* holds a model \(config.json\)"),
        ({"config.json": '{"architectures": ["X"]}'}, r"holds a model \(config.json\)"),
        ({"model.safetensors.index.json": "{}"}, r"holds a model \(model.safetensors.index.json\)"),
        ({"report.md": "mine"}, r"output: .* holds report.md, which no earlier run of this program has left"),
        ({"settings.json": '{"editor.tabSize": 4}'}, "holds settings.json, which no earlier run"),
        (
            {"settings.json": '{"model": 1, "steps": 2}'},
            "holds settings.json, which no earlier run",
        ),  # another program's
    ],
)
def test_what_is_not_ones_own_is_never_written_over(contents, message, tmp_path):
    fill(tmp_path / "d", contents)
    with pytest.raises(ValueError, match=message):
        claim(tmp_path / "d")
    assert {path.name: path.read_text() for path in (tmp_path / "d").iterdir()} == contents


def test_a_file_is_no_folder(tmp_path):
    fill(tmp_path, {"file": ""})
    with pytest.raises(ValueError, match="output: .* is a file; give a folder"):
        claim(tmp_path / "file")


@pytest.mark.parametrize(
    ("program", "option", "folder"),
    [(evaluate, "--output", "M"), (train_sft, "--workdir", "M"), (make_data, "--data.folder", "M")],
)
def test_programs_leave_a_models_folder_as_it_is(program, option, folder, tmp_path, capsys):
    fill(tmp_path / "M", MODEL)
    with pytest.raises(SystemExit) as stopped:
        program.main([option, str(tmp_path / folder)])
    assert stopped.value.code == 2
    assert f"{option.removeprefix('--')}: {tmp_path / folder}" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in (tmp_path / "M").iterdir()} == MODEL
