"""New parameters for a compiled engine: the same tokens as a fresh engine's, and nothing compiled anew."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import forking
from apr_jax import record, sharding
from apr_jax.decode import Engine, Problem, Sizes, assemble
from apr_jax.model import transformer
from apr_jax.model.attention import masked_attention
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import SpawnJoin

WORDS = forking.Words()
PROTOCOL = SpawnJoin(**{name: getattr(WORDS, name) for name in ("spawn", "wait", "result", "join", "end", "go")})
SIZES = Sizes(
    problems=2, lanes=3, rows=4, feed_tiles=2, feed_chunk=4, threads=16, slots=256, page_size=4, log=256, log_page_size=4,
    queue=8, outbox=8, prompt=6,
)  # fmt: skip
# Heads of 16 and widths that are multiples of 32: where the processor multiplies bfloat16, weights are packed too.
CONFIG = ModelConfig(
    vocabulary=16, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96, tied=False, dtype="bfloat16"
)


def model(seed: int, dtype: str = "bfloat16") -> transformer.Model:
    found = forking.biased_model(dataclasses.replace(CONFIG, dtype=dtype), seed, WORDS.bias())
    return transformer.Model(found.graph, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found.params))


def problems(temperature: float = 0.0) -> list[Problem]:
    prompts = np.random.default_rng(0).choice(WORDS.plain, size=(6, 4)).astype(np.int32)
    return [Problem(i, prompt, temperature=temperature, max_tokens=20) for i, prompt in enumerate(prompts)]


def tokens(engine: Engine) -> dict[int, list[int]]:
    return {found.problem: found.log.token.tolist() for found in engine.decode(problems())}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(model(0), PROTOCOL, SIZES)


def test_an_updated_engine_equals_a_fresh_one(engine):
    before, wanted = tokens(engine), tokens(Engine(model(1), PROTOCOL, SIZES))
    assert before != wanted and len(max(wanted.values(), key=len)) > 24
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model(1).params)
    engine.update(params)
    jax.tree.map(lambda leaf: leaf.delete(), params)  # as a training step does with arrays that are donated to it
    assert tokens(engine) == wanted
    engine.update(model(0).params)
    assert tokens(engine) == before
    assert engine.version == 2
    assert engine.traces == engine._run._cache_size() == 1


def test_an_update_waits_for_the_problems_in_flight(engine):
    running = engine.decode(problems(), slice_steps=5)
    next(running)
    with pytest.raises(RuntimeError, match="problems are in flight"):
        engine.update(model(1).params)
    running.close()
    engine.update(model(1).params)


def test_transcripts_tell_what_they_were_drawn_with(engine, tmp_path):
    engine.update(model(0).params, version=7)
    asked = [
        Problem(i, np.array(WORDS.plain[:4]), 0, 0.7 + i, i, 1 - i / 4, max_tokens=20 - i, child_max_tokens=5 * i)
        for i in range(2)
    ]
    found = sorted(engine.decode(asked), key=lambda each: each.problem)
    record.write(tmp_path / "done.jsonl", [dataclasses.replace(found[0], sampling={}, version=None), *found], str)
    unknown, *again = [each for each, _ in record.read(tmp_path / "done.jsonl")]
    assert unknown.version is None and not unknown.sampling and len(found[1].threads) > 1
    for given, *both in zip(asked, found, again, strict=True):
        for each in both:
            count = len(each.threads)
            expected = {name: np.full(count, getattr(given, name)) for name in ("temperature", "top_k", "top_p")}
            budgets = [
                given.max_tokens if not t.path else given.child_max_tokens or given.max_tokens for t in each.threads
            ]
            assert each.version == 7 and not each.adjusts and tuple(each.sampling) == record.SAMPLING
            for name, value in {**expected, "budget": budgets}.items():
                np.testing.assert_allclose(each.sampling[name], value, rtol=1e-7)
    with pytest.raises(ValueError, match="version is -1"):
        engine.update(model(0).params, version=-1)


def test_a_protocol_that_changes_logits_tells_how():
    found = assemble.adjusts(dataclasses.replace(PROTOCOL, width=2))
    assert found["protocol"] == "SpawnJoin" and found["width"] == 2 and found["spawn"] == WORDS.spawn
    assert json.loads(json.dumps(found)) == found and not assemble.adjusts(PROTOCOL)


def test_parameters_of_another_model_are_refused(engine):
    other = model(1).params
    with pytest.raises(ValueError, match="params: head has the shape .64, 17.; the engine's model has .64, 16."):
        engine.update({**other, "head": jnp.zeros((64, 17))})
    with pytest.raises(ValueError, match="params: norm.scale has the shape None"):
        engine.update({name: leaf for name, leaf in other.items() if name != "norm"})


def test_an_update_goes_where_the_parameters_were():
    """From the layout of training on the same mesh too: then nothing is compiled anew."""
    mesh = sharding.make_mesh(2, 2)
    engine = Engine(model(0, "float32"), PROTOCOL, SIZES, mesh=mesh)
    layout = lambda: jax.tree.map(lambda leaf: (leaf.sharding, leaf.dtype, leaf.weak_type), engine.weights)
    before, new = layout(), model(1, "float32").params
    for given in (new, sharding.shard_tree(new, transformer.logical_axes(CONFIG), mesh, sharding.TRAINING)):
        engine.update(model(0, "float32").params)
        engine.update(given)
        assert layout() == before
        jax.tree.map(np.testing.assert_array_equal, engine.weights.model, new)
    assert not given["norm"]["scale"].sharding.is_fully_replicated


def test_parameters_as_they_are_computed_with_give_the_same_bits():
    """Master weights in f32 and activations in bfloat16: every use casts the weights, so that the engine may keep them cast."""
    wide = model(0)
    narrow = transformer.as_computed(CONFIG, wide.params)
    assert narrow["embed"].dtype == jnp.bfloat16 and narrow["norm"]["scale"].dtype == jnp.float32
    run = jax.jit(lambda params: _logits(wide.graph, params))
    np.testing.assert_array_equal(run(wide.params), run(narrow))


def _logits(graph: transformer.Graph, params: transformer.Params) -> jax.Array:
    tokens = jnp.arange(6)[None]
    attend = lambda q, k, v, cache: (masked_attention(q, k, v, jnp.tri(6, dtype=bool)[None]), cache)
    x, _ = transformer.hidden(graph, params, tokens, tokens, attend, (None, None))
    return transformer.logits(graph, params, x)
