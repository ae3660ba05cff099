"""What the clients of allocation methods share: texts over full forwards, draws by path, a model and problems that are worth it.

A client is the published rule in plain Python over whole texts: the next token follows from all tokens of a text, which is a prompt
and what one line said. The i-th child of a line draws with the key that the engine's contract gives it.
"""

import dataclasses
import functools

import jax
import numpy as np

import forking
import reference_model
from apr_jax.decode import Problem
from apr_jax.model import scorer, transformer
from test_engine import CONFIG

SEED, END, ANSWER, THOUGHTS, UNITS = 5, forking.Words().end, 8, (10, 13), 1024
HIDDEN = 6
WEIGHTS, OTHERS = (jax.tree.map(np.asarray, scorer.create(seed, CONFIG.width, HIDDEN)) for seed in (2, 3))

Tokens = tuple[int, ...]


@functools.cache
def model(dtype: str) -> transformer.Model:
    """One that names answers of few words, and ends them soon; that ends thoughts often; in f32 the CPU kernels serve it."""
    table = np.full((16, 16), -3.0)
    table[:, [9, 11]], table[:, list(THOUGHTS)], table[:, ANSWER], table[:, END] = 0.0, 0.5, -0.5, -1.0
    table[ANSWER, :] = -6.0
    table[ANSWER, [9, 11]] = 1.0
    head = CONFIG.head_dim if dtype == "float64" else 16
    config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype, head_dim=head)
    biased = forking.biased_model(config, 0, table, 1.0)
    return transformer.Model(biased.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), biased.params))


@functools.cache
def problems(count: int = 28) -> tuple[Problem, ...]:
    rng = np.random.default_rng(7)
    drawn = [
        Problem(i, rng.integers(0, 16, rng.integers(1, 7)).astype(np.int32), temperature=float(rng.choice([0.75, 1.0, 1.25])),
                top_k=int(rng.choice([0, 0, 6])), max_tokens=int(rng.integers(6, 30)))
        for i in range(count - 2)
    ]  # fmt: skip
    return (
        *drawn,
        Problem(count - 2, np.array([4, 2]), temperature=0.0, max_tokens=20),  # all say the same
        Problem(count - 1, np.array([9]), temperature=1.0, max_tokens=1),  # all end at once, the root reads nothing
    )


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A token, its log-probability, those of all tokens, the text that it was drawn after, and the weights of the scorer."""

    token: int
    logprob: float
    logprobs: np.ndarray
    after: Tokens
    weights: scorer.Weights

    @property
    def chance(self) -> float:
        """What the scorer makes of the hidden state that the token was drawn from."""
        state = state_after(self.after)
        hidden, out = self.weights["hidden"], self.weights["out"]
        logit = np.maximum(state @ hidden["kernel"] + hidden["bias"], 0) @ out["kernel"] + out["bias"]
        return float(1 / (1 + np.exp(-logit)))


class Client:
    """Full forwards for one problem."""

    def __init__(self, problem: Problem, weights: scorer.Weights = WEIGHTS):
        self.problem, self.weights, self.prompt = problem, weights, tuple(int(token) for token in problem.prompt)
        self.key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)
        self.keys: dict[Tokens, np.ndarray] = {}

    def uniforms(self, path: Tokens) -> np.ndarray:
        """The draws of the line with this path."""
        if path not in self.keys:
            key = self.key
            for ordinal in path:
                key = jax.random.fold_in(key, 1 + ordinal)
            self.keys[path] = np.asarray(reference_model.uniforms(key))
        return self.keys[path]

    def draw(self, path: Tokens, number: int, text: Tokens) -> Drawn:
        """The draw of this number of a line, after a text."""
        logits = logits_after(self.prompt + text)
        token, logprob, _ = reference_model.draw(logits, self.uniforms(path)[number], self.problem)
        return Drawn(token, logprob, reference_model.log_softmax(logits), self.prompt + text, self.weights)


@functools.cache
def _forwards() -> tuple[reference_model.Forward, reference_model.Forward]:
    """The logits and the hidden state after a token."""
    params, config = model("float64").params, model("float64").config
    return tuple(
        reference_model.transformer({**params, "head": head}, config) for head in (params["head"], np.eye(config.width))
    )


@functools.cache
def _fed(text: Tokens) -> reference_model.Fed:
    seen = [_fed(text[: i + 1]) for i in range(len(text) - 1)]
    last = reference_model.Fed(text[-1], len(text) - 1)
    last.sees = [*seen, last]
    return last


def logits_after(text: Tokens) -> np.ndarray:
    return _forwards()[0](_fed(text))


def state_after(text: Tokens) -> np.ndarray:
    """The hidden state after a text."""
    return _forwards()[1](_fed(text))


def units(value: float) -> int:
    return int(np.round(np.float32(value) * np.float32(UNITS)))


def mean(total: int, count: int) -> np.float32:
    """The mean of numbers whose sum is given in units."""
    return np.float32(total) / np.float32(UNITS * max(count, 1))
