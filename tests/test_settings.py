"""Configurations: files, options, errors a user can act on, and what may change when a run is resumed."""

import dataclasses
import json
from pathlib import Path

import pytest

from apr_jax import settings


@dataclasses.dataclass(frozen=True)
class Inner:
    learning_rate: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.95)

    def __post_init__(self):
        if not 0 < self.learning_rate <= 1:
            raise ValueError(f"learning_rate is {self.learning_rate}; allowed are above 0 and up to 1")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    steps: int = 5
    verbose: bool = False
    parts: tuple[Inner, ...] = (Inner(), Inner(0.2))
    folder: str = dataclasses.field(default="a", metadata=settings.FREE)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")


PRESETS = {"inner": {"slow": Inner(0.01), "fast": Inner(1.0)}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some_config.py"
    path.write_text(f"from {__name__} import Inner, Outer\ndef config():\n    return Outer(Inner(0.5), steps=7)\n")
    return path


def test_file_and_options(file):
    assert settings.parse([], file) == Outer(Inner(0.5), steps=7)
    options = ["--inner.learning-rate", "1e-3", "--inner.betas", "0.5", "0.6", "0.7", "--verbose", "True"]
    wanted = Outer(Inner(1e-3, (0.5, 0.6, 0.7)), 7, True)
    assert settings.parse(options, file) == wanted
    assert settings.parse(["--inner.learning_rate=1e-3", *options[2:]], file) == wanted
    assert settings.parse(["--config", str(file), "--parts.1.learning-rate", "0.3"], Outer()).parts == (
        Inner(),
        Inner(0.3),
    )


def test_another_function_of_a_file(file, capsys):
    file.write_text(file.read_text() + "def quick():\n    return Outer(steps=1)\n")
    assert settings.parse(["--config", f"{file}:quick", "--verbose", "True"], Outer()) == Outer(steps=1, verbose=True)
    with pytest.raises(SystemExit):
        settings.parse(["--config", f"{file}:slow"], Outer())
    assert "the file has no function slow()" in capsys.readouterr().err


def test_presets(file):
    config = settings.parse(["--inner", "slow", "--inner.betas", "0.1"], file, PRESETS)
    assert config.inner == Inner(0.01, (0.1,))
    assert config.steps == 7


@pytest.mark.parametrize(
    "options, text",
    [
        (["--inner.lerning-rate", "3"], "--inner.learning-rate"),  # the nearest known name is suggested
        (["--steps", "many"], "many"),
        (["--steps", "0"], "steps is 0; it must be at least 1"),
        (["--inner.learning-rate", "2"], "allowed are above 0 and up to 1"),
        (["--inner", "quick"], "--inner quick: allowed are slow, fast"),
        (["--config", "no_such.py"], "there is no such file"),
        (["--config"], "--config needs a value"),
    ],
)
def test_errors(file, capsys, options, text):
    with pytest.raises(SystemExit) as stop:
        settings.parse(options, file, PRESETS)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert text in " ".join((printed.err + printed.out).replace("│", " ").split())
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("text, error", [("x = 1", "no function config"), ("def config(): return 3", "returned int")])
def test_bad_files(tmp_path, capsys, text, error):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(SystemExit):
        settings.parse([], path)
    assert error in capsys.readouterr().err


def test_file_of_another_program(file, capsys):
    with pytest.raises(SystemExit):
        settings.parse(["--config", str(file)], Inner())
    assert "it describes Outer, this program wants Inner" in capsys.readouterr().err


def test_describe_and_save(tmp_path):
    path = settings.save(Outer(), tmp_path / "new")
    assert json.loads(path.read_text()) == settings.to_dict(Outer())
    lines = settings.describe(Outer()).splitlines()
    assert "inner.learning_rate   = 0.1" in lines
    assert "parts.1.learning_rate = 0.2" in lines


def test_differences():
    saved = json.loads(json.dumps(settings.to_dict(Outer())))
    assert settings.differences(Outer(folder="b"), saved) == []
    older = {name: value for name, value in saved.items() if name != "inner"} | {"inner": {}}
    assert settings.differences(Outer(), older) == []
    assert settings.differences(Outer(Inner(0.3)), older) == ["inner.learning_rate: was 'absent', is now 0.3"]
    changed = Outer(Inner(0.3), parts=(Inner(), Inner()))
    assert settings.differences(changed, saved) == [
        "inner.learning_rate: was 0.1, is now 0.3",
        "parts.1.learning_rate: was 0.2, is now 0.1",
    ]
    assert settings.differences(Outer(parts=(Inner(),)), saved)[0].startswith(
        "parts.1.learning_rate: was 0.2, is now 'absent'"
    )


@dataclasses.dataclass(frozen=True)
class Slower(Inner):
    """Another thing with the same fields."""


def test_a_class_is_part_of_what_is_compared(tmp_path):
    saved = json.loads(json.dumps(settings.to_dict(Outer())))
    changed = settings.differences(Outer(Slower(), parts=(Inner(), Slower(0.2))), saved)
    assert changed == [
        f"{name}.class: was '{__name__}.Inner', is now '{__name__}.Slower'" for name in ("inner", "parts.1")
    ]
    assert "class" not in settings.describe(Outer())
    shown = settings.describe(Outer(parts=(Slower(),))).splitlines()
    assert f"parts.0.class         = '{__name__}.Slower'" in shown and sum("class" in line for line in shown) == 1
    old = saved | {"inner": {"learning_rate": 0.1, "betas": [0.9, 0.95]}}  # of a version that did not say it
    assert settings.differences(Outer(), old) == []
    # The class of a configuration file is the same wherever the file lies.
    found = []
    for name in ("here.py", "there.py"):
        text = "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Mine:\n    x: int = 1\n"
        text += "def config():\n    return Mine()"
        (tmp_path / name).write_text(text)
        found.append(settings.to_dict({"part": settings.load(tmp_path / name)}))
    assert found == [{"part": {"x": 1, "class": "Mine"}}] * 2


FOLDERS = ("configs", "configs/sweeps", "configs/studies")
CONFIGURATIONS = [path for folder in FOLDERS for path in sorted(Path(folder).glob("[a-z]*.py"))]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=str)
def test_every_configuration_of_the_project_can_be_read(path):
    assert dataclasses.is_dataclass(settings.load(path))
