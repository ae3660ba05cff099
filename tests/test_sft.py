"""Supervised training: the loss by hand, the order of data, learning, and resumed runs that equal unbroken ones."""

import dataclasses
import json
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax.model import io, transformer
from apr_jax.model.config import PRESETS
from apr_jax.tasks.countdown import problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig
from apr_jax.tasks.countdown.training import DataConfig, Part
from apr_jax.train import data, losses, optimizer, rows, sft
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.packing import pack
from tests.test_packing import simple

SEARCH = dict(setting=problems.PRESETS["three"], beam=(3, 3), sub_beam=(3, 3), order="canonical")


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every run compiles the same few programs: keep them on disk for the time of these tests."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.2), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> sft.SftConfig:
    """A run of seconds."""
    folder = tmp_path_factory.mktemp("toy")
    config = sft.SftConfig(
        data=DataConfig(str(folder / "data"), "apr", (Part(1.0, DemonstrationConfig(**SEARCH)),), 60, 6, 128, 16),
        model=dataclasses.replace(PRESETS["tiny"], layers=1, width=64, ffn=128, heads=2, kv_heads=2, head_dim=32),
        optimizer=OptimizerConfig(learning_rate=5e-3, warm_up=5),
        rows_per_batch=4,
        steps=24,
        log_every=4,
        evaluate_every=12,
        checkpoint_every=7,
        tensorboard=False,
    )
    data.make(config.data, lambda line: None)
    return config


def at(config: sft.SftConfig, folder: Path) -> sft.SftConfig:
    return dataclasses.replace(config, workdir=str(folder), export=str(folder / "model.safetensors"))


def equal(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1 / 3, 1 / 3, 1 / 3]]))
    label, weight = jnp.array([0, 2, 2, -1]), jnp.array([1.0, 2.0, 0.5, 7.0])
    sums = losses.add_up(*losses.cross_entropy(logits, label), label, weight, jnp.array([0, 0, 1]), 2)
    wanted = -(np.log(0.5) + 2 * np.log(0.1) + 0.5 * np.log(0.6))
    np.testing.assert_allclose(sums.nll, wanted, rtol=1e-6)
    np.testing.assert_allclose(sums.loss, wanted / 3.5, rtol=1e-6)
    assert (sums.labels.tolist(), sums.correct.tolist()) == ([1, 2], [1, 1])


def test_packed_loss_equals_the_loss_of_each_thread_alone():
    records = [simple([5, 3]), simple([4, 6, 2], 1)]
    model = transformer.init(dataclasses.replace(PRESETS["tiny"], layers=1), jax.random.key(0))
    packed, _, _ = pack(records, 12, 4)
    packed = jax.tree.map(jnp.asarray, packed)
    loss = jax.jit(lambda params: losses.rows_loss(model.graph, params, packed, np.zeros(256, np.int32), 1, chunk=5))
    _, sums = loss(model.params)

    @jax.jit
    def logp(tokens, positions):
        def attend(q, k, v, memory):
            return jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True)[0], memory

        x, _ = transformer.hidden(model.graph, model.params, tokens, positions, attend, (None,))
        return jax.nn.log_softmax(transformer.logits(model.graph, model.params, x))

    total = 0.0
    for record in records:
        for thread in range(len(record.threads)):
            tokens = record.tokens(thread)
            count = len(tokens) - 1
            padded = np.pad(tokens[:-1], (0, 8 - count))  # what follows is not seen
            total -= float(np.asarray(logp(padded, np.arange(8) + thread))[np.arange(count), tokens[1:]].sum())
    np.testing.assert_allclose(float(sums.nll), total, rtol=1e-5)
    assert int(sums.weight) == 5 + 3 + 4 + 6 + 2


def test_order_reads_every_row_once_an_epoch():
    taken = np.concatenate([rows.order(place, 7, 10, seed=3) for place in range(0, 70, 7)])
    epochs = taken.reshape(7, 10)
    assert epochs[0].tolist() == list(range(10))
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert epochs[1].tolist() != epochs[2].tolist()
    assert rows.order(35, 7, 10, seed=3).tolist() == taken[35:42].tolist()


def test_rows_on_disk(tmp_path):
    packed, _, _ = pack([simple([5, 3]), simple([4, 6, 2], 1)], 12, 5)
    assert rows.write(tmp_path, [packed[:1], packed[1:]], 12, 5) == len(packed)
    store = rows.RowStore.open(tmp_path)
    equal(store.read(np.arange(len(packed))), packed)
    assert (store.read(np.array([0, -1])).owner[1] == -1).all()
    with pytest.raises(ValueError, match="keep no weights"):
        rows.write(tmp_path, [dataclasses.replace(packed, weight=packed.weight / 2)], 12, 5)
    with pytest.raises(FileNotFoundError, match="no complete rows"):
        rows.RowStore.open(tmp_path / "nowhere")


def test_data_do_not_depend_on_the_block_or_on_other_runs(toy, tmp_path):
    again = dataclasses.replace(toy.data, folder=str(tmp_path / "again"))
    counts = data.make(again, lambda line: None)
    first, second = data.Dataset.open(toy.data), data.Dataset.open(again)
    assert counts["train"].transcripts == 60 and counts["train"].rows == len(first.train)
    numbers = np.arange(len(first.train))
    equal(first.train.read(numbers), second.train.read(numbers))
    with pytest.raises(ValueError, match="seed: was 0, is now 1"):
        data.Dataset.open(dataclasses.replace(again, seed=1))


def test_schedule():
    rate = optimizer.schedule(OptimizerConfig(learning_rate=1.0, warm_up=10, final=0.1), 110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(60), rate(110)], [0, 0.5, 1, 0.55, 0.1], atol=1e-6)


@pytest.mark.parametrize("change", [dict(clip=0), dict(beta1=1.0), dict(final=1.5)])
def test_optimizer_ranges(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        OptimizerConfig(**change)


def test_muon_orthogonalises_the_matrices_of_layers_only():
    """Against the definition: all singular values of such an update are alike; other parameters take an Adam step."""
    config = dataclasses.replace(PRESETS["tiny"], layers=1)
    params = transformer.init(config, jax.random.key(0)).params
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    gradient = jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    rate = 0.1
    tx = optimizer.make(OptimizerConfig(kind="muon", learning_rate=rate, warm_up=0, weight_decay=0.0), steps=10)
    updates, _ = tx.update(gradient, tx.init(params), params)
    inputs = {"q": 1, "k": 1, "v": 1, "out": 2, "gate": 1, "up": 1, "down": 1}
    seen = set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        names = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        kind = next((name for name in names if name in inputs), None)
        if kind is None:
            size = np.abs(update)  # Adam's first step goes by the gradient's sign (optax gives it Nesterov's momentum)
            np.testing.assert_allclose(size, size.max(), rtol=0.1)
            assert rate <= size.max() < 1.5 * rate
            continue
        seen.add(kind)
        matrix = np.asarray(update).reshape(int(np.prod(update.shape[: inputs[kind]])), -1)
        values = np.linalg.svd(matrix, compute_uv=False)
        # Five Newton-Schulz steps leave them within 0.7 and 1.2, but for those of a square matrix that were next to nothing.
        assert values.max() / np.quantile(values, 0.05) < 2.5
        np.testing.assert_allclose(np.sqrt(np.mean(matrix**2)), 0.2 * rate, rtol=0.25)
    assert seen == set(inputs)


def test_resumed_equals_uninterrupted_bit_for_bit(toy, tmp_path):
    whole = sft.run(at(toy, tmp_path / "whole"))
    assert whole.finished and whole.step == 24
    config = at(toy, tmp_path / "parts")
    parts, stops = None, 0
    while parts is None or not parts.finished:
        parts = interrupted(config, after=9 + 8 * stops)
        stops += 1
    assert stops >= 2
    equal(jax.tree.map(_plain, parts.state), jax.tree.map(_plain, whole.state))
    assert parts.held_out == whole.held_out
    again = [json.loads(line) for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in again if "loss" in line]
    assert steps == sorted(set(steps)) and steps[-1] == 24
    model = io.load(config.export)
    equal(dict(model.params), dict(whole.state.params))


def test_learns(toy, tmp_path):
    """Only the format can be learnt so fast; a uniform guess has 3.4 nats, the frequencies of tokens 2.9."""
    result = sft.run(
        at(dataclasses.replace(toy, steps=120, log_every=30, evaluate_every=150, checkpoint_every=150), tmp_path)
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line["loss"] for line in lines if "loss" in line]
    assert trained == sorted(trained, reverse=True), trained
    assert trained[-1] < 2.3
    assert result.held_out["held_out/loss"] < 2.3


def _plain(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def interrupted(config: sft.SftConfig, after: int) -> sft.Result:
    """Run, and send SIGTERM to this process once the metrics show that step `after` was reached."""
    path, stop = Path(config.workdir) / "metrics.jsonl", threading.Event()

    def watch():
        while not stop.wait(0.005):
            if path.exists() and any(json.loads(x)["step"] >= after for x in path.read_text().split("\n")[:-1]):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return sft.run(config)
    finally:
        stop.set()
        watcher.join()


def test_resume_refuses_another_configuration(toy, tmp_path):
    config = at(dataclasses.replace(toy, steps=2), tmp_path)
    sft.run(config)
    with pytest.raises(ValueError, match="optimizer.learning_rate: was 0.005, is now 0.1"):
        sft.run(dataclasses.replace(config, optimizer=OptimizerConfig(learning_rate=0.1, warm_up=5)))
    assert sft.run(dataclasses.replace(config, log_every=1)).finished


def test_a_loss_that_is_not_finite_stops_the_run(toy, tmp_path):
    config = dataclasses.replace(toy, optimizer=OptimizerConfig(learning_rate=1e30, clip=1e30, warm_up=0))
    with pytest.raises(FloatingPointError, match="lower --optimizer.learning-rate"):
        sft.run(at(config, tmp_path))


def test_a_vocabulary_too_small_is_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="model.vocabulary is 8"):
        sft.run(at(dataclasses.replace(toy, model=dataclasses.replace(toy.model, vocabulary=8)), tmp_path))
