"""Adapters trained by the program: on packed rollouts, with resuming, merging, and a folder that can be loaded."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vocabularies
from apr_jax import record
from apr_jax.model import io, transformer
from apr_jax.model.config import ModelConfig, padded_vocabulary
from apr_jax.pretrained import load_pretrained, save_pretrained, with_control_words
from apr_jax.pretrained.tokenizer import load
from apr_jax.train import data, lora, rows, sft
from apr_jax.train.logs import LogData
from apr_jax.train.lora import Lora
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.packing import pack
from apr_jax.train.step import initial_state
from experiments import train_sft
from synthetic import build, random_tree
from test_lora import logits
from test_sft import equal, interrupted
from tests.test_packing import simple

CODEC = vocabularies.byte_level()
WORDS = ("<spawn>", "<wait>")
SMALL = ModelConfig(vocabulary=CODEC.size, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=24, tied=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> sft.SftConfig:
    """A pretrained model in a folder, transcripts of an evaluation, and a run of seconds."""
    folder, rng = tmp_path_factory.mktemp("lora"), np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype)
    model = transformer.Model(transformer.graph_of(SMALL), jax.tree.map(draw, transformer.abstract_params(SMALL)))
    save_pretrained(folder / "model", model, tokenizer=CODEC)
    records = [build(random_tree(rng, shared=i % 2 == 0), seed=i, problem=i)[0] for i in range(24)]
    extra = [{"correct": i % 3 > 0} for i in range(24)]
    record.write(folder / "transcripts_fork.jsonl", records, CODEC.decode, extra)
    return sft.SftConfig(
        data=LogData(
            folder=str(folder / "data"),
            transcripts=(str(folder / "transcripts_fork.jsonl"),),
            tokenizer=str(folder / "model"),
            control_words=WORDS,
            gain=1.5,
            held_out=8,
            length=256,
            threads=64,
            left_out=1.0,  # a run of seconds needs only what short rows hold
        ),
        model=dataclasses.replace(SMALL, vocabulary=padded_vocabulary(CODEC.size + 2)),
        start=str(folder / "model"),
        lora=Lora(rank=2, alpha=4.0, tokens=(3, CODEC.size, CODEC.size + 1)),
        optimizer=OptimizerConfig(learning_rate=2e-2, warm_up=2),
        rows_per_batch=2,
        steps=12,
        log_every=2,
        evaluate_every=6,
        checkpoint_every=5,
        tensorboard=False,
    )


def at(config: sft.SftConfig, folder) -> sft.SftConfig:
    return dataclasses.replace(config, workdir=str(folder), export=str(folder / "model"))


def test_the_program_trains_resumes_merges_and_exports(run, tmp_path, monkeypatch):
    config = at(run, tmp_path / "whole")
    monkeypatch.setattr("apr_jax.settings.parse", lambda *_, **__: config)
    assert train_sft.main([]) == 0  # makes the data first
    counts = json.loads((tmp_path.parent / run.data.folder / "data.json").read_text())["counts"]
    assert counts["train"]["transcripts"] == 14 and counts["held_out"]["transcripts"] == 2  # of 16 that are right
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.05

    parts = at(run, tmp_path / "parts")
    first = interrupted(parts, after=4)
    assert not first.finished
    last = sft.run(parts)
    assert last.finished and last.step == 12
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        ours, theirs = (tmp_path / which / "model" / name for which in ("whole", "parts"))
        assert ours.read_bytes() == theirs.read_bytes(), name

    # What was saved is the model with its adapters; the rest of it is as it was.
    base, codec = with_control_words(load_pretrained(run.start), load(run.start), WORDS, gain=1.5)
    merged = load_pretrained(tmp_path / "parts" / "model")
    assert merged.config == base.config == run.model
    unmerged = lora.apply(run.lora, base.params, last.state.params)
    np.testing.assert_allclose(logits(merged.graph, merged.params), logits(base.graph, unmerged), atol=1e-5, rtol=0)
    changed = {name for name, x in io.flatten(merged.params).items() if np.any(x != io.flatten(base.params)[name])}
    tables = {"embed", "head"}
    assert changed == tables | {n for n in io.flatten(base.params) if n.split(".")[-1] in lora.PRODUCTS}
    for name, axis in (("embed", 1), ("head", 0)):
        rows_changed = np.flatnonzero(np.any(np.asarray(merged.params[name] != base.params[name]), axis=axis))
        assert set(rows_changed) <= set(run.lora.tokens) and len(rows_changed)
    saved = load(tmp_path / "parts" / "model")
    assert [saved.id(word) for word in WORDS] == [codec.id(word) for word in WORDS] == list(run.lora.tokens[1:])


@pytest.mark.parametrize("replaced", ["base/model.safetensors", "log.jsonl"])
def test_adapters_do_not_go_on_beside_another_base_or_on_other_data(replaced, run, tmp_path):
    """What a run that goes on reads again has to be what it began with: neither is in its checkpoints."""
    shutil.copytree(run.start, tmp_path / "base")
    for end in (".jsonl", ".npz"):
        shutil.copy(Path(run.data.transcripts[0]).with_suffix(end), tmp_path / f"log{end}")
    logs = dataclasses.replace(run.data, folder=str(tmp_path / "data"), transcripts=(str(tmp_path / "log.jsonl"),))
    config = dataclasses.replace(at(run, tmp_path / "run"), data=logs, start=str(tmp_path / "base"), steps=2)
    data.make(logs, lambda line: None)
    assert sft.run(config).finished
    if replaced == "log.jsonl":
        lines = (tmp_path / "log.jsonl").read_text().replace('"correct": false', '"correct": true', 1)
        (tmp_path / "log.jsonl").write_text(lines)
        shutil.rmtree(logs.folder)
        data.make(logs, lambda line: None)
    else:
        model = load_pretrained(tmp_path / "base")
        other = transformer.Model(model.graph, jax.tree.map(lambda leaf: leaf * 1.5, model.params))
        save_pretrained(tmp_path / "base", other, tokenizer=CODEC)
    with pytest.raises(ValueError, match=rf"made from other files \(.*{replaced}: was [\d,]+ bytes, SHA-256"):
        sft.run(config)


def test_only_adapters_are_in_the_state(run):
    state = jax.eval_shape(lambda: initial_state(run))
    assert {name.rsplit(".", 1)[-1] for name in io.flatten(state.params)} == {"a", "b", "rows"}
    assert set(lora.axes(run.lora, run.model)) == set(state.params)


def test_rows_of_large_vocabularies(tmp_path):
    packed, _, _ = pack([simple([5, 3]), simple([4, 6, 2], 1)], 12, 5)
    large = dataclasses.replace(
        packed, token=packed.token + 40_000, label=np.where(packed.label < 0, -1, packed.label + 40_000)
    )
    rows.write(tmp_path, [large], 12, 5, vocabulary=49_152)
    equal(rows.RowStore.open(tmp_path).read(np.arange(len(large))), large)
    with pytest.raises(ValueError, match="token goes from 4.* hold -1 to 32767"):
        rows.write(tmp_path, [large], 12, 5)


def test_what_does_not_fit_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="start is empty"):
        dataclasses.replace(run, start="")
    with pytest.raises(ValueError, match="16 are left to train on, and one of 20 is to be held out"):
        data.make(dataclasses.replace(run.data, folder=str(tmp_path / "few"), held_out=20), lambda line: None)
    with pytest.raises(FileNotFoundError, match="there is no file nowhere.jsonl"):
        data.make(
            dataclasses.replace(run.data, folder=str(tmp_path / "no"), transcripts=("nowhere.jsonl",)),
            lambda line: None,
        )
    with pytest.raises(ValueError, match="transcripts and tokenizer must be given"):
        LogData()
    with pytest.raises(ValueError, match=r"Lora.tokens is \(3, 3\)"):
        Lora(tokens=(3, 3))
    with pytest.raises(ValueError, match="the model has the ids 0 .. "):
        lora.init(Lora(tokens=(10_000,)), run.model, jax.random.key(0))
    if not data.is_made(run.data):
        data.make(run.data, lambda line: None)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, ffn=32))
    with pytest.raises(ValueError, match="start: .* holds another model .*ffn"):
        sft.run(at(other, tmp_path / "other"))
