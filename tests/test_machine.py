"""What decoded is told as it is: versions, devices, processor, and the kernels of each engine."""

import dataclasses
import json
import platform

import jax
import pytest

import processor
from apr_jax import sharding
from apr_jax.decode import Engine, Progress, Sizes, native
from apr_jax.evaluate import machine
from apr_jax.evaluate.kept import Kept
from apr_jax.evaluate.machine import Machine
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Sequential
from test_native import need_kernel

SHAPE = ModelConfig(
    vocabulary=64, layers=1, width=64, heads=1, kv_heads=1, head_dim=64, ffn=64, dtype="float32", param_dtype="float32"
)
SIZES = Sizes(problems=1, lanes=1, rows=1, threads=1, slots=128, log=128)


def engine(dtype: str = "float32", **options) -> Engine:
    config = dataclasses.replace(SHAPE, dtype=dtype, param_dtype=dtype)
    return Engine(transformer.init(config, jax.random.key(0)), Sequential(end=1), SIZES, **options)


def test_of_an_engine():
    ran = machine.of(engine(kernel=False, mesh=sharding.make_mesh(data=2)))
    assert (ran.python, ran.jax) == (platform.python_version(), jax.__version__)
    assert (ran.device, ran.devices, ran.processor) == ("cpu", 2, processor.name())
    assert (ran.attention, ran.products) == ("XLA", "XLA")
    assert set(ran.instructions) == set(machine.flags()) & set(machine.INSTRUCTIONS)
    assert Machine.of_entry(json.loads(json.dumps(dataclasses.asdict(ran)))) == ran


def test_kernels_of_an_engine():
    """Attention by the richest path for its dtype; products only in bfloat16, where the processor multiplies that."""
    need_kernel()
    exact, rounded = machine.of(engine(kernel=True)), machine.of(engine("bfloat16", kernel=True))
    assert exact.attention in ("AVX-512", "AVX2", "other") and exact.products == "XLA"
    assert rounded.attention == processor.paths()[0]
    assert rounded.products == (native.product_path() or "XLA")


def test_a_rollout_that_was_resumed_elsewhere_names_both_machines():
    here = machine.of(engine(kernel=False))
    there = dataclasses.replace(here, processor="another")
    progress = Progress(1, 2, 1, 1, 1, 1, 1.0, 1.0, (1,))
    first, second = Kept({0: None}, progress, 1, (there,)), Kept({1: None}, progress, 1, (here,))
    assert second.after(first).machines == (there, here)
    assert second.after(second).machines == (here,)


@pytest.mark.parametrize("described", [True, False])
def test_a_processor_that_is_not_described(monkeypatch, tmp_path, described):
    """Elsewhere than on Linux there is no such file, or it says other things."""
    if described:
        (tmp_path / "cpuinfo").write_text("processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n")
    monkeypatch.setattr(machine, "_INFO", tmp_path / "cpuinfo")
    assert machine.processor() and machine.flags() == ()
