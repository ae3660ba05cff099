"""Numbers of a step, by hand, and where they go: JSON lines, TensorBoard, Weights & Biases, a table in the terminal."""

import dataclasses
import json
import struct
import sys
import threading
import types

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from apr_jax.evaluate.show import notebook, plots
from apr_jax.methods import SpawnJoin
from apr_jax.record import Stop
from apr_jax.rl import measures
from apr_jax.rl.rewards import Case
from apr_jax.train.metrics import Metrics, ProgressReport
from test_rl_rewards import BROKEN, NARROW, PLAIN, WIDE


@dataclasses.dataclass(frozen=True)
class Broken(SpawnJoin):
    """Every fork with more than one child breaks the format."""

    def format_errors(self, transcript):
        return {"wide": len(transcript.threads) - 2} if len(transcript.threads) > 2 else {}


def test_columns_by_hand():
    cases = [
        Case(WIDE, 1.0),
        Case(NARROW, 0.0),
        Case(dataclasses.replace(PLAIN, stop=Stop.LENGTH), 1.0),
        Case(BROKEN, 0.0),
    ]
    found = {name: column.tolist() for name, column in measures.columns(cases, Broken()).items()}
    assert found == {
        "accuracy": [1, 0, 1, 0],
        "critical_path": [5, 8, 4, 5],
        "threads": [4, 3, 1, 4],
        "forked": [1, 1, 0, 1],
        "width": [3, 2, 0, 3],
        "waves": [1, 1, 0, 1],
        "tokens": [11, 9, 4, 11],
        "malformed": [0, 0, 0, 1],
        "format_errors/wide": [2, 1, 0, 2],
        "stop/end": [1, 1, 0, 1],
        "stop/length": [0, 0, 1, 0],
    }


def test_accuracy_by_length_by_hand():
    """1 | 2 | 3 4 | 33 ... 64 | 65; nothing generated counts as one token."""
    path, correct = np.array([0, 1, 2, 3, 4, 33, 64, 64, 65.0]), np.array([0, 1, 1, 1, 0, 1, 1, 0, 0.0])
    assert measures.by_length(path, correct) == {
        "accuracy_by_length/1": 0.5, "samples_by_length/1": 2,
        "accuracy_by_length/2": 1, "samples_by_length/2": 1,
        "accuracy_by_length/4": 0.5, "samples_by_length/4": 2,
        "accuracy_by_length/64": pytest.approx(2 / 3), "samples_by_length/64": 3,
        "accuracy_by_length/128": 0, "samples_by_length/128": 1,
    }  # fmt: skip


def test_the_table_in_the_terminal(capsys):
    told = {"reward": 0.5, "accuracy": 0.25, "critical_path": 61.24, "threads": 4.125, "forked": 1.0, "seconds": 12.345}
    report = ProgressReport(30, terminal=False)
    for step in range(1, 22):
        report.row(step, measures.row(told))
    lines = capsys.readouterr().out.splitlines()
    heads = ["step", *measures.TABLE]
    assert len(lines) == 23 and lines[0] == lines[21] and lines[0].split("  ")[-1].strip() == "seconds"
    ends = [lines[0].index(head) + len(head) for head in heads]  # headings and cells end in the same places
    cells = [lines[1][a:b].strip() for a, b in zip([0, *ends], ends, strict=False)]
    assert dict(zip(heads, cells, strict=True)) == {
        "step": "1/30", "reward": "0.500", "right": "25.0%", "path": "61.2", "threads": "4.12", "forked": "100%",
        "entropy": "-", "at forks": "-", "mismatch": "-", "drawn/s": "-", "learnt/s": "-", "host": "-", "seconds": "12.3",
    }  # fmt: skip


def scalars(folder) -> dict[tuple[int, str], float]:
    """The numbers in TensorBoard's files: records of a length, its checksum, an event, and its checksum."""
    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            at += 16 + size
    return found


def test_numbers_go_to_tensorboard_too(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.write(1, {"reward": 0.5, "held_out/accuracy": 0.25})
        metrics.write(2, {"reward": 0.75})
    assert scalars(tmp_path) == {(1, "reward"): 0.5, (1, "held_out/accuracy"): 0.25, (2, "reward"): 0.75}


def test_what_a_killed_run_wrote_later_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "a": 1}\n{"step": 1, "a": 2}\n{"step": 2, "a": 3}\n{"step": 3, "a"'
    )
    read = lambda: [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for step, kept in ((1, [0, 1]), (0, [0]), (-1, [])):
        Metrics(tmp_path, step, tensorboard=False).__exit__()
        assert read() == kept


@dataclasses.dataclass(frozen=True)
class Running:
    """A run of two steps, of which the second is being written while the first picture is drawn."""

    workdir: str
    drawn: threading.Event
    ends: bool = True

    def run(self):
        with open(f"{self.workdir}/metrics.jsonl", "w") as file:
            file.write('{"step": 1, "loss": 3, "reward": 0.5}\n{"step": 2, "lo')
            file.flush()
            assert self.drawn.wait(60)
            if not self.ends:
                raise FloatingPointError("the loss is nan")
            file.write('ss": 2}\n')
        return "done"


def test_curves_grow_while_a_run_runs(tmp_path):
    pictures, drawn = [], threading.Event()
    update = lambda picture: (pictures.append(picture._repr_png_()), len(pictures) > 1 and drawn.set())
    shown = types.SimpleNamespace(update=update)
    assert notebook.watch(Running.run, Running(str(tmp_path), drawn), ("loss", "reward"), shown, 0.05) == "done"
    assert len(pictures) > 2 and all(data.startswith(b"\x89PNG") for data in pictures) and pictures[-1] != pictures[1]
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        notebook.watch(Running.run, Running(str(tmp_path), drawn, ends=False), ("loss",), shown, 0.05)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]]
    figure = plots.curves([*lines, {"step": 2, "loss": 2}], ("loss", "reward", "absent"))
    drawn = [axes.lines[0].get_xydata().tolist() for axes in figure.axes]
    assert drawn == [[[1, 3], [2, 2]], [[1, 0.5]], []]


def test_weights_and_biases_is_an_option(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb is 'mine', .* is not installed: pip install wandb, or leave it empty"):
        Metrics(tmp_path / "none", wandb="mine")
    assert not (tmp_path / "none").exists()

    begun, told = [], []
    run = types.SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end"))
    package = types.ModuleType("wandb")
    package.__spec__, package.init = types.SimpleNamespace(), lambda **given: begun.append(given) or run
    monkeypatch.setitem(sys.modules, "wandb", package)
    for step in (1, 2):
        with Metrics(tmp_path, step - 1, tensorboard=False, wandb="mine") as metrics:
            metrics.write(step, {"reward": 0.5})
    assert told == [(1, {"reward": 0.5}), "end", (2, {"reward": 0.5}), "end"]
    assert begun[0] == begun[1] and begun[0].keys() == {"project", "dir", "id", "resume"}
