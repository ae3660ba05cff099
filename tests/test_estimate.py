"""Memory told before anything is allocated, against what arrays really take."""

import dataclasses

import jax
import pytest

import forking
from apr_jax import sharding
from apr_jax.decode import Engine, Sizes, memory
from apr_jax.model import transformer
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.protocols import Samples

CONFIG = ModelConfig(vocabulary=16, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)
SIZES = Sizes(
    problems=3, lanes=2, rows=5, feed_tiles=2, feed_chunk=4, threads=8, slots=1024, page_size=8, log=512, log_page_size=8, queue=4,
    prompt=6, outbox=2, attention_block=256,
)  # fmt: skip
LARGE = dataclasses.replace(SIZES, problems=64, rows=64, slots=65536)
GB = 10**9


def on_first_device(tree) -> int:
    """Bytes that the first device holds of arrays."""
    pieces = [piece for leaf in jax.tree.leaves(tree) for piece in leaf.addressable_shards]
    return sum(piece.data.nbytes for piece in pieces if piece.device == jax.devices()[0])


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 4)])
def test_parameters_and_state_are_counted_exactly(shape):
    mesh = sharding.make_mesh(*shape)
    engine = Engine(transformer.init(CONFIG, jax.random.key(0)), Samples(2, end=0), SIZES, mesh)
    state, parts = engine.create(0), memory.estimate(CONFIG, SIZES, mesh).parts
    assert parts["parameters"] == on_first_device(engine.model.params)
    assert parts["pool"] == on_first_device(state.pool)
    assert parts["books"] == on_first_device((state.books, state.slots))
    assert (parts["logs"], parts["outbox"]) == (on_first_device(state.log), on_first_device(state.outbox))
    # Steps, seed and the like are left out.
    counted = sum(parts.values()) - parts["workspace"] - parts["parameters"]
    assert 0 <= on_first_device(state) - counted < 100


def test_the_workspace_is_about_what_xla_takes():
    engine = Engine(transformer.init(CONFIG, jax.random.key(0)), Samples(2, end=0), LARGE)
    temp = engine.compile().memory_analysis().temp_size_in_bytes
    assert temp / 1.5 < memory.estimate(CONFIG, LARGE).parts["workspace"] < 3 * temp


def test_costs_name_every_size_and_add_up():
    text = memory.costs(CONFIG, SIZES)
    assert "2 x 2 layers x 3 problems x 1024 slots x 16 numbers x 4 bytes" in text
    for name in memory.STEPS:
        assert memory.STEPS[name] in text
    one = memory.estimate(CONFIG, SIZES).parts["pool"] // 3
    grown = dataclasses.replace(SIZES, problems=4, rows=5)
    assert memory.estimate(CONFIG, grown).parts["pool"] == 4 * one


def test_sizes_that_cannot_fit_are_refused_with_the_arithmetic():
    config = PRESETS["qwen3_8b"]
    sizes = Sizes(problems=16, slots=16384, attention_block=512)
    with pytest.raises(ValueError) as refused:
        memory.require(config, sizes, 6 * GB, jax.sharding.AbstractMesh((1, 8), ("data", "model")))
    message = str(refused.value)
    assert "2 x 36 layers x 16 problems x 16384 slots x 128 numbers x 2 bytes" in message
    assert "each device, which has 6.0 GB" in message and "sizes.problems = 12 instead of 16" in message
    with pytest.raises(ValueError, match="use more devices"):
        memory.require(config, sizes, 10 * GB)


@pytest.mark.parametrize("name", ["problems", "slots", "outbox"])
def test_the_largest_size_fits_and_the_next_does_not(name):
    limit = memory.estimate(CONFIG, SIZES).total * 5
    most = memory.largest(CONFIG, SIZES, limit, name)
    step = SIZES.block if name == "slots" else 1
    assert most > getattr(SIZES, name)
    at = lambda value: memory.estimate(CONFIG, dataclasses.replace(SIZES, **{name: value})).total
    assert at(most) <= limit < at(most + step)
    assert memory.largest(CONFIG, SIZES, 1000, name) == 0


def test_chosen_sizes_hold_the_worst_problem_and_fit():
    bounds = dict(prompt=6, tokens=40, threads=9, lanes=3)
    sizes = memory.choose_sizes(CONFIG, 4_000_000, **bounds)
    assert sizes.slots >= 6 + 9 * (40 + sizes.page_size) and sizes.log >= 6 + 9 * 41
    assert memory.estimate(CONFIG, sizes).total <= 4_000_000
    more = dataclasses.replace(sizes, problems=sizes.problems + 1, outbox=sizes.outbox + 2, rows=sizes.rows + 3)
    assert memory.estimate(CONFIG, more).total > 4_000_000
    assert memory.choose_sizes(CONFIG, 10**9, problems=5, **bounds).problems == 5
    with pytest.raises(ValueError, match="these sizes need"):
        memory.choose_sizes(CONFIG, 100_000, **bounds)


def test_an_engine_that_cannot_fit_is_refused_before_it_allocates():
    words = forking.Words()
    huge = dataclasses.replace(SIZES, problems=4096, rows=4096, slots=2**20)
    with pytest.raises(ValueError, match=r"2 x 2 layers x 4096 problems x 1048576 slots x 16 numbers x 4 bytes"):
        Engine(transformer.init(CONFIG, jax.random.key(0)), Samples(2, end=words.end), huge)


def test_sizes_are_written_with_units():
    assert [memory.readable(n) for n in (0, 999, 1000, 17_179_869_184)] == ["0 B", "999 B", "1.0 kB", "17.2 GB"]
