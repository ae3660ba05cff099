"""The transformer once more, in NumPy and float64: one plain causal forward over a list of tokens.

Axes: T tokens of a context, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Context = tuple[tuple[int, int], ...]  # (token, position) of everything a thread sees, in order
Forward = Callable[[Context], np.ndarray]  # logits [V] that follow a context


def transformer(params: Any, config: Any) -> Forward:
    """The logits of a model as a function of a context, in float64, remembered by context."""
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    known: dict[Context, np.ndarray] = {}

    def forward(context: Context) -> np.ndarray:
        if context not in known:
            tokens, positions = (np.array(column) for column in zip(*context, strict=True))
            known[context] = all_logits(tree, config, tokens, positions)[-1]
        return known[context]

    return forward


def all_logits(params: Any, config: Any, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Logits [T, V] after every token of one causal sequence."""
    x = params["embed"][tokens]
    for number in range(config.layers):
        layer = params["layers"][str(number)]
        x = x + _attention(layer["attention"], config, _norm(x, layer["attention_norm"], config), positions)
        y = _norm(x, layer["ffn_norm"], config)
        gate, up = y @ layer["ffn"]["gate"], y @ layer["ffn"]["up"]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["ffn"]["down"]
    head = params["embed"].T if config.tied else params["head"]
    return _norm(x, params["norm"], config) @ head


def _attention(layer: Any, config: Any, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    size, group = config.head_dim, config.heads // config.kv_heads
    query, key, value = (np.tensordot(x, layer[name], 1) for name in ("q", "k", "v"))
    if config.qk_norm:
        query, key = _norm(query, layer["q_norm"], config), _norm(key, layer["k_norm"], config)
    query, key = _rotate(query, positions, config), _rotate(key, positions, config)
    later = np.triu(np.ones((len(x), len(x)), bool), 1)
    heads = []
    for head in range(config.heads):
        score = query[:, head] @ key[:, head // group].T / np.sqrt(size)
        score[later] = -np.inf
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        heads.append(weight / weight.sum(axis=1, keepdims=True) @ value[:, head // group])
    return np.tensordot(np.stack(heads, axis=1), layer["out"], 2)


def _norm(x: np.ndarray, layer: Any, config: Any) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * layer["scale"]


def _rotate(x: np.ndarray, positions: np.ndarray, config: Any) -> np.ndarray:
    """Turns coordinates (i, i + h/2) of each head, taken as complex numbers, by position * theta**(-2i/h)."""
    half = config.head_dim // 2
    speed = config.rope_theta ** (-2.0 * np.arange(half) / config.head_dim)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None, None] * speed)
    return np.concatenate([turned.real, turned.imag], axis=-1)
