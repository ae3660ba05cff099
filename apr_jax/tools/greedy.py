"""Greedy continuations by the engine, of a fixed length."""

from collections.abc import Sequence

import numpy as np

from apr_jax.decode import Engine, Problem, Sizes
from apr_jax.model.transformer import Model
from apr_jax.protocols import Sequential

NO_END = -1  # no token ends a thread, so that every thread uses its whole budget


def decode(model: Model, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    """Prompt and greedy continuation of each prompt, by the engine."""
    count, longest = len(prompts), max(map(len, prompts))
    slots = -(-(longest + new) // 64) * 64
    sizes = Sizes(
        problems=count, lanes=1, rows=count, threads=1, slots=slots, log=slots, prompt=longest, queue=count, outbox=count,
        attention_block=64,
    )  # fmt: skip
    asked = [Problem(i, np.array(prompt, np.int32), max_tokens=new) for i, prompt in enumerate(prompts)]
    found = {t.problem: t for t in Engine(model, Sequential(NO_END), sizes).decode(asked)}
    return [found[i].tokens(0).tolist() for i in range(count)]
