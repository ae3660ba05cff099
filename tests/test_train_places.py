"""Where a training run writes, and what it keeps when its numbers are not finite."""

import asyncio
import dataclasses
import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.model import io, transformer
from apr_jax.model.config import PRESETS
from apr_jax.pretrained import load_pretrained
from apr_jax.tasks.countdown import problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig
from apr_jax.tasks.countdown.training import DataConfig, Part
from apr_jax.train import data, optimizer, sft, weights
from apr_jax.train.checkpoints import Checkpoints
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.step import initial_state
from experiments import train_sft

SEARCH = dict(setting=problems.PRESETS["three"], beam=(3, 3), sub_beam=(3, 3), order="canonical")
MODEL = dataclasses.replace(PRESETS["tiny"], layers=1, width=32, ffn=32, heads=2, kv_heads=2, head_dim=16)
WILD = OptimizerConfig(learning_rate=1e30, clip=1e30, warm_up=0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> sft.SftConfig:
    """A run of two steps."""
    folder = str(tmp_path_factory.mktemp("toy") / "data")
    drawn = DataConfig(folder, "apr", (Part(1.0, DemonstrationConfig(**SEARCH)),), 12, 2, 128, 16)
    data.make(drawn, lambda line: None)
    optimizer = OptimizerConfig(learning_rate=1e-3, warm_up=0)
    return sft.SftConfig(drawn, MODEL, optimizer, rows_per_batch=2, steps=2, log_every=1, tensorboard=False)


def at(config: sft.SftConfig, workdir: Path, **changes) -> sft.SftConfig:
    return dataclasses.replace(config, workdir=str(workdir), **changes)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those of Orbax, which notes when it was opened."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not (p.name != "metadata" and "checkpoints" in p.parts)
    }


# ---- what is exported


def test_the_export_lies_in_the_working_folder_and_is_known_again(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = at(toy, "runs/one")
    monkeypatch.setattr("apr_jax.settings.parse", lambda *_, **__: config)
    assert train_sft.main([]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    before = contents(tmp_path)
    exported = io.load("runs/one/model.safetensors")
    assert train_sft.main([]) == 0  # it is finished
    assert contents(tmp_path) == before and exported.config == MODEL

    (tmp_path / "runs/one/model.safetensors").unlink()
    config = at(toy, str(tmp_path / "runs/one"))  # the same folder
    assert train_sft.main([]) == 0
    again = io.load("runs/one/model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, dict(again.params), dict(exported.params))

    before = contents(tmp_path)
    other = at(toy, "runs/two", export="runs/one/model.safetensors")
    with pytest.raises(
        ValueError, match=r"export: runs/one/model.safetensors is there, and the run in runs/two has not"
    ):
        sft.run(other)
    assert not (tmp_path / "runs/two").exists() and contents(tmp_path) == before


@pytest.mark.parametrize(
    ("export", "message"),
    [
        ("{workdir}", "is the working folder or holds it"),
        ("{workdir}/..", "is the working folder or holds it"),
        ("file/model.safetensors", "export: .*file/model.safetensors cannot be written"),
        ("start", "export: .*start is there, and the run in"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_the_first_step(export, message, toy, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "model.safetensors").write_text("x")
    before = contents(tmp_path)
    export = export if export.startswith("{") else str(tmp_path / export)
    with pytest.raises(ValueError, match=message):
        sft.run(at(toy, tmp_path / "run", export=export))
    assert contents(tmp_path) == before


def test_what_appears_in_the_place_of_the_export_meanwhile_stays(toy, tmp_path):
    config = at(toy, tmp_path / "run", export=str(tmp_path / "model.safetensors"))
    sft.run(dataclasses.replace(config, export=""))
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(ValueError, match="has not written it; give another --export"):
        sft.run(config)
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    assert sft.run(dataclasses.replace(config, export="{workdir}/model")).finished
    assert load_pretrained(tmp_path / "run" / "model").config.width == MODEL.width


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/7/metadata"])
def test_a_working_folder_with_files_of_somebody_else_is_refused(name, toy, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine\n")
    with pytest.raises(
        ValueError, match=f"workdir: .* holds {name.rpartition('/metadata')[0] or name}, which no earlier run"
    ):
        sft.run(at(toy, tmp_path))
    assert contents(tmp_path) == {name: b"mine\n"}


# ---- where it runs


def test_it_runs_outside_of_the_main_thread(toy, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(sft.run(at(toy, tmp_path))))
    thread.start()
    thread.join()
    assert found and found[0].finished


def test_it_runs_where_an_event_loop_runs_already(toy, tmp_path):
    async def cell():  # of a notebook
        return sft.run(at(toy, tmp_path))

    assert asyncio.run(cell()).finished


# ---- what is not finite


def checkpoints_of(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize(("steps", "every"), [(2, 1), (2, 250), (6, 1), (6, 4)])
def test_nothing_that_is_not_finite_is_kept_and_the_advice_can_be_followed(steps, every, toy, tmp_path):
    wild = at(toy, tmp_path, steps=steps, checkpoint_every=every, optimizer=WILD)
    with pytest.raises(
        FloatingPointError, match=r"give a lower --optimizer.learning-rate \(now 1e\+30\) with the same --workdir"
    ):
        sft.run(wild)
    assert not (tmp_path / "model.safetensors").exists()
    for step in checkpoints_of(tmp_path):
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            saved = checkpoints.restore(jax.eval_shape(lambda: initial_state(wild)), step).state
        assert not weights.not_finite((saved.params, saved.optimizer))
    lower = dataclasses.replace(wild, optimizer=dataclasses.replace(WILD, learning_rate=1e-3, clip=1.0, warm_up=1))
    result = sft.run(lower)
    assert result.finished and np.isfinite(result.held_out["held_out/loss"])
    assert not weights.not_finite(io.load(tmp_path / "model.safetensors").params)
    with pytest.raises(ValueError, match="optimizer.learning_rate: was 0.001, is now 0.1"):  # it is not wild any more
        sft.run(dataclasses.replace(lower, optimizer=dataclasses.replace(lower.optimizer, learning_rate=0.1)))


def test_the_last_good_state_stays(toy, tmp_path, monkeypatch):
    """A rate that goes wild in the middle: the run goes on from the checkpoint before, with another optimiser only."""
    config = at(toy, tmp_path, steps=6, checkpoint_every=1)
    calm = optimizer.schedule
    leap = lambda options, steps: lambda step: jnp.where(step == 3, 1e30, calm(options, steps)(step))
    with monkeypatch.context() as patched:
        patched.setattr(optimizer, "schedule", leap)
        with pytest.raises(FloatingPointError, match="and the run goes on from step 3, the last good state"):
            sft.run(config)
    assert checkpoints_of(tmp_path)[-1] == 3
    assert json.loads((tmp_path / "diverged.json").read_text())["checkpoint"] == 3
    with pytest.raises(ValueError, match="seed: was 0, is now 1"):
        sft.run(dataclasses.replace(config, seed=1))
    lower = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=5e-4))
    assert sft.run(lower).finished
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]


def test_a_start_that_is_not_finite_is_refused(toy, tmp_path):
    model = transformer.init(MODEL, jax.random.key(0))
    params = dict(model.params) | {"embed": model.params["embed"].at[0, 0].set(jnp.nan)}
    io.save(tmp_path / "bad.safetensors", transformer.Model(model.graph, params), MODEL)
    with pytest.raises(ValueError, match="start: .*bad.safetensors holds numbers that are not finite, in embed; "):
        sft.run(at(toy, tmp_path / "run", start=str(tmp_path / "bad.safetensors")))


def test_a_finished_run_of_numbers_that_are_not_finite_is_not_exported(toy, tmp_path):
    """As earlier versions left them."""
    config = at(toy, tmp_path, checkpoint_every=1)
    sft.run(dataclasses.replace(config, export=""))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        saved, cursor = (
            checkpoints.restore(jax.eval_shape(lambda: initial_state(config))).state,
            checkpoints.cursor(),
        )
        checkpoints.delete(2)
        bad = dataclasses.replace(saved, params=jax.tree.map(lambda leaf: leaf * jnp.nan, saved.params))
        checkpoints.save(2, bad, cursor)
    with pytest.raises(
        FloatingPointError, match=r"step 2: numbers are not finite in \d+ arrays .* goes on from step 1"
    ):
        sft.run(config)
    assert checkpoints_of(tmp_path) == [1] and not (tmp_path / "model.safetensors").exists()
    assert sft.run(config).finished
