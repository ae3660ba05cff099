"""The loop without threads decodes what the engine decodes."""

import jax
import numpy as np
import pytest

from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Samples
from benchmarks.bare import BareLoop, Layout

CONFIG = ModelConfig(
    vocabulary=64, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, qk_norm=True,
    dtype="float64", param_dtype="float64",
)  # fmt: skip
PROBLEMS, LANES, PROMPT, TOKENS = 3, 2, 5, 21


def test_greedy_tokens_are_the_engines():
    model = transformer.init(CONFIG, jax.random.key(0))
    # Logits that differ enough from token to token.
    model = transformer.Model(model.graph, jax.tree.map(lambda x: x * 20 if x.ndim > 1 else x, model.params))
    prompts = np.random.default_rng(0).integers(0, 64, (PROBLEMS, PROMPT), np.int32)
    sizes = Sizes(
        problems=PROBLEMS, lanes=LANES, rows=PROBLEMS * LANES, threads=4, slots=128, log=128, queue=4, prompt=8, outbox=4,
        feed_tiles=2, feed_chunk=4, attention_block=64,
    )  # fmt: skip
    problems = [Problem(i, prompt, max_tokens=TOKENS) for i, prompt in enumerate(prompts)]
    transcripts = {t.problem: t for t in Engine(model, Samples(LANES, end=64), sizes).decode(problems)}
    expected = np.array([[transcripts[i].generated(1 + w) for w in range(LANES)] for i in range(PROBLEMS)])
    assert len(np.unique(expected)) > 8, "the model says too little for the comparison to mean something"

    shared = BareLoop(model, Layout(PROBLEMS, LANES, PROMPT, TOKENS, block=16), temperature=0.0)
    state = shared.run(shared.run(shared.start(prompts, 0), 4), TOKENS)  # in two slices; steps beyond the last are none
    np.testing.assert_array_equal(state.sampled, expected)
    assert shared.traces == 1

    rows = BareLoop(model, Layout(PROBLEMS * LANES, 1, PROMPT, TOKENS, block=8), temperature=0.0)
    state = rows.run(rows.start(np.repeat(prompts, LANES, axis=0), 0), TOKENS)
    np.testing.assert_array_equal(state.sampled.reshape(expected.shape), expected)


def test_layout_refuses_nonsense():
    with pytest.raises(ValueError, match="layout.prompt = 1"):
        Layout(1, 1, prompt=1, tokens=4, block=8)
