"""The transformer and its sampling once more, in NumPy and float64.

The transformer once row by row: a token that is fed lists those it sees, whose K and V were made under their own
visibility and stay as they are. And once as one forward over a whole sequence under a mask, which says whether the rows
are right.

Axes: Q rows, T tokens that are seen, V vocabulary, H heads, K kv heads, h head size, D width.
"""

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DRAWS = 64  # uniforms computed at once per thread


@dataclasses.dataclass(eq=False)
class Fed:
    """A token that a model is fed, those that it sees, itself included, in any order, and those of them that see it as well."""

    token: int
    position: int = -1
    branch: int = 0
    sees: "Sequence[Fed]" = dataclasses.field(default=(), repr=False)
    mates: "Sequence[Fed]" = dataclasses.field(default=(), repr=False)


Forward = Callable[[Fed], np.ndarray]  # logits [V] that follow a token


@dataclasses.dataclass(eq=False)
class _Row:
    keys: list[np.ndarray]  # [K, h] of every layer
    values: list[np.ndarray]
    logits: np.ndarray


def transformer(params: Any, config: Any) -> Forward:
    """The logits of a model as a function of a fed token, in float64, remembered by all that it depends on."""
    tree = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rows: weakref.WeakKeyDictionary[Fed, _Row] = weakref.WeakKeyDictionary()
    known: dict[tuple, list[_Row]] = {}  # by tokens, positions and the rows they see

    def row(fed: Fed) -> _Row:
        if fed not in rows:
            group = fed.mates or [fed]
            others = [[row(other) for other in one.sees if other not in group] for one in group]
            parts = zip(group, others, strict=True)
            key = tuple((one.token, one.position, one.branch, *map(id, seen)) for one, seen in parts)
            if key not in known:
                known[key] = _rows(tree, config, group, others)
            rows.update(zip(group, known[key], strict=True))
        return rows[fed]

    return lambda fed: row(fed).logits


def _rows(params: Any, config: Any, group: Sequence[Fed], others: Sequence[Sequence[_Row]]) -> list[_Row]:
    """Tokens that see each other and each some others."""
    rows, branches = [_Row([], [], np.zeros(0)) for _ in group], np.array([fed.branch for fed in group])
    angles = _angles(params, config, np.array([fed.position for fed in group]), branches)
    x = params["embed"][[fed.token for fed in group]]
    for number in range(config.layers):
        layer = params["layers"][str(number)]
        inputs = _norm(x, layer["attention_norm"], config)
        query, key, value = _project(layer["attention"], config, inputs, angles, branches)
        for place, row in enumerate(rows):
            row.keys.append(key[place])
            row.values.append(value[place])
        for place, seen in enumerate(others):
            keys = np.stack([row.keys[number] for row in (*seen, *rows)])
            values = np.stack([row.values[number] for row in (*seen, *rows)])
            one, every = slice(place, place + 1), np.ones((1, len(keys)), bool)
            x[one] += _attend(layer["attention"], config, query[one], keys, values, every)
        x = x + _ffn(layer, config, x)
    for row, logits in zip(rows, _head(params, config, x), strict=True):
        row.logits = logits
    return rows


def all_logits(
    params: Any,
    config: Any,
    tokens: np.ndarray,
    positions: np.ndarray,
    sees: np.ndarray | None = None,
    branches: np.ndarray | None = None,
) -> np.ndarray:
    """Logits [T, V] after every token of one sequence under a mask `sees` [T, T], causal without it."""
    sees = np.tri(len(tokens), dtype=bool) if sees is None else sees
    branches = np.zeros(len(tokens), int) if branches is None else branches
    angles = _angles(params, config, positions, branches)
    x = params["embed"][tokens]
    for number in range(config.layers):
        layer = params["layers"][str(number)]
        parts = _project(layer["attention"], config, _norm(x, layer["attention_norm"], config), angles, branches)
        x = x + _attend(layer["attention"], config, *parts, sees)
        x = x + _ffn(layer, config, x)
    return _head(params, config, x)


def _project(
    layer: Any, config: Any, x: np.ndarray, angles: np.ndarray, branches: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Query [T, H, h], key and value [T, K, h] of inputs [T, D]."""
    query, key, value = (np.tensordot(x, layer[name], 1) for name in ("q", "k", "v"))
    if config.qk_norm:
        query, key = _norm(query, layer["q_norm"], config), _norm(key, layer["k_norm"], config)
    if config.branch_embedding:
        told = layer["branch_embedding"][branches][:, None]
        key, value = key + told, value + told
    return _rotate(query, angles), _rotate(key, angles), value


def _attend(
    layer: Any, config: Any, query: np.ndarray, key: np.ndarray, value: np.ndarray, sees: np.ndarray
) -> np.ndarray:
    """Attention of Q rows over T tokens under `sees` [Q, T], projected back to [Q, D]."""
    heads = []
    for head in range(config.heads):
        group = head // (config.heads // config.kv_heads)
        score = query[:, head] @ key[:, group].T / np.sqrt(config.head_dim)
        score[~sees] = -np.inf
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        heads.append(weight / weight.sum(axis=1, keepdims=True) @ value[:, group])
    return np.tensordot(np.stack(heads, axis=1), layer["out"], 2)


def _ffn(layer: Any, config: Any, x: np.ndarray) -> np.ndarray:
    y = _norm(x, layer["ffn_norm"], config)
    gate, up = y @ layer["ffn"]["gate"], y @ layer["ffn"]["up"]
    return (gate / (1 + np.exp(-gate)) * up) @ layer["ffn"]["down"]


def _head(params: Any, config: Any, x: np.ndarray) -> np.ndarray:
    return _norm(x, params["norm"], config) @ (params["embed"].T if config.tied else params["head"])


def _norm(x: np.ndarray, layer: Any, config: Any) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * layer["scale"]


def _angles(params: Any, config: Any, positions: np.ndarray, branches: np.ndarray) -> np.ndarray:
    """By how much each pair of coordinates of a head is turned, [T, h/2]: position * theta**(-2i/h), and more by the branch."""
    speed = config.rope_theta ** (-2.0 * np.arange(config.head_dim // 2) / config.head_dim)
    lanes = params["branch_factor"] * config.branch_stride * speed if config.branch_stride else 0 * speed
    return positions[:, None] * speed + branches[:, None] * lanes


def _rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turns coordinates (i, i + h/2) of each head, taken as complex numbers."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles[:, None])
    return np.concatenate([turned.real, turned.imag], axis=-1)


# ---- sampling


@jax.jit
def uniforms(key: jax.Array) -> jax.Array:
    """The first draws of a thread."""
    draws = jax.random.fold_in(key, 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(draws, jnp.arange(DRAWS))
    return jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def kept(logits: np.ndarray, problem: Any, slack: float = 0.0) -> np.ndarray:
    """Probabilities [V] after temperature, top-k, then top-p, renormalised; 0 for what was cut off.

    `slack` is added to top-p: near ties at its edge fall either way in f32.
    """
    scaled = np.asarray(logits, np.float64) / problem.temperature
    order = np.argsort(-scaled, kind="stable")
    if problem.top_k:
        order = order[: problem.top_k]
    mass = np.exp(log_softmax(scaled[order]))
    if problem.top_p < 1:
        before = np.cumsum(mass) - mass
        number = max(1, int((before < problem.top_p + slack).sum()))
        order, mass = order[:number], mass[:number]
    probability = np.zeros(len(scaled))
    probability[order] = mass / mass.sum()
    return probability


def draw(logits: np.ndarray, uniform: float, problem: Any) -> tuple[int, float, float]:
    """A token, its log-probability and that under the distribution it was drawn from."""
    plain = log_softmax(np.asarray(logits, np.float64))
    if problem.temperature == 0:
        token = int(np.argmax(logits))
        return token, plain[token], 0.0
    probability = kept(logits, problem)
    upto = np.cumsum(probability)
    above = np.flatnonzero(upto > float(uniform) * upto[-1])
    token = int(above[0])
    return token, plain[token], np.log(probability[token])
