"""A decoder-only transformer with positions and an attention function as inputs; it has no notion of threads.

The modules are Flax NNX. `init` splits them once into a static graph and a plain tree of parameters; decoding, training and
sharding handle `(graph, params)`. Attention is a function passed in by the caller: it may read and write a pool of slots, or
mask packed rows.

Products of the same input (q, k, v; gate, up) are not fused in training. Fused with the parts as an axis of their own, they cost
a third of the backward pass; without this axis, a mesh would cut heads. Decoding on one CPU fuses them (`fuse`): in bfloat16 on
jax 0.12 one product of 64 rows with gate and up takes 0.7 of the time of two products.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from apr_jax import sharding
from apr_jax.model.config import ModelConfig
from apr_jax.model.int8 import SUMMED, factors, logical_axes_in_int8, look_up
from apr_jax.model.int8 import quantise as rounded
from apr_jax.model.products import LowRank, product
from apr_jax.model.rotation import rope_angles, rotate

Params = Mapping[str, Any]
KEEP_ALL = "everything_saveable"
"""The policy of `jax.checkpoint_policies` under which the backward pass recomputes nothing."""
# attend(q [*B, H, h], k [*B, K, h], v [*B, K, h], cache of the layer) -> (out [*B, H, h], cache of the layer).
# q and k are normed and rotated; q is not scaled.
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


@dataclasses.dataclass(frozen=True)
class Graph:
    """The static half of a model: hashable, compared by configuration and `fused`, which determine the module graph.

    Attributes:
      config: the configuration.
      fused: q, k and v share one weight, and gate and up share one; see `fuse`.
      definition: the module graph.
    """

    config: ModelConfig
    fused: bool
    definition: nnx.GraphDef = dataclasses.field(compare=False, repr=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A model split in two: `graph` is static, `params` a nested dict of arrays. `hidden` and `logits` run it."""

    graph: Graph = dataclasses.field(metadata={"static": True})
    params: Params

    @property
    def config(self) -> ModelConfig:
        return self.graph.config


def abstract(config: ModelConfig, fused: bool = False) -> Model:
    """The model with a `jax.ShapeDtypeStruct` for each array; allocates nothing."""
    module = nnx.eval_shape(lambda: Transformer(config, nnx.Rngs(0), fused))
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    params = jax.eval_shape(_quantised, params) if config.int8_weights else params
    return Model(Graph(config, fused, nnx.graphdef(module)), params)


def graph_of(config: ModelConfig, fused: bool = False) -> Graph:
    """The static half alone; allocates nothing."""
    return abstract(config, fused).graph


def fuse(model: Model) -> Model:
    """The same model with one weight for q, k and v, and one for gate and up: fewer and larger products, for decoding.

    Raises:
      ValueError: a weight is `LowRank`; merge the adapters first.
    """

    layers = {name: jax.jit(_fused)(layer) for name, layer in model.params["layers"].items()}
    return Model(graph_of(model.config, fused=True), {**model.params, "layers": layers})


def _fused(layer: Params) -> Params:
    attention, ffn = dict(layer["attention"]), dict(layer["ffn"])
    parts = [attention.pop(name) for name in ("q", "k", "v")], [ffn.pop(name) for name in ("gate", "up")]
    if any(isinstance(part, LowRank) for part in (*parts[0], *parts[1])):
        raise ValueError("fuse: a weight is LowRank; merge the adapters first (apr_jax.train.lora.merge)")
    qkv, gate_up = (jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *same) for same in parts)
    return {**layer, "attention": attention | {"qkv": qkv}, "ffn": ffn | {"gate_up": gate_up}}


def quantise(model: Model) -> Model:
    """The same model with the weights of its products, tables included, in int8 with one scale per output channel.

    For decoding, which is bound by reading weights where memory is slow, as on TPU: int8 halves the bytes of bfloat16. XLA:CPU
    widens each weight anew in every step. `experiments.measure_int8` measures the loss.

    Raises:
      ValueError: a weight is `LowRank`, or is int8 already.
    """
    if model.config.int8_weights:
        raise ValueError("quantise: the model's weights are int8 already")
    config = dataclasses.replace(model.config, int8_weights=True)
    return Model(graph_of(config, model.graph.fused), jax.jit(_quantised)(model.params))


def _quantised(params: Params) -> Params:
    def leaf(path: Any, weight: Any) -> Any:
        if isinstance(weight, LowRank):
            raise ValueError("quantise: a weight is LowRank; merge the adapters first (apr_jax.train.lora.merge)")
        name = path[-1].key
        return rounded(weight, SUMMED[name]) if name in SUMMED else weight

    return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=lambda x: isinstance(x, LowRank))


def init_params(config: ModelConfig, key: Key[Array, ""]) -> Params:
    """Parameters drawn from `key`; traceable, so that `jax.jit(..., out_shardings=...)` can create them sharded.

    Matrices are normal with deviation 0.02; matrices that write to the residual stream have deviation 0.02 / sqrt(2 L).
    """
    params = nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(key)), nnx.Param))
    return _quantised(params) if config.int8_weights else params


def as_computed(config: ModelConfig, params: Params) -> Params:
    """The parameters with f32 matrices, tables and head biases in bfloat16 if activations are, to which every use casts them: the
    same results from half the bytes, for decoding with f32 master weights. Vectors stay: norms compute with them in f32.
    """
    narrow = lambda leaf: leaf.astype(config.dtype) if leaf.ndim > 1 and leaf.dtype == jnp.float32 else leaf
    return jax.tree.map(narrow, params) if config.dtype == "bfloat16" else params


def logical_axes(config: ModelConfig, fused: bool = False) -> Mapping[str, Any]:
    """The parameter tree with the names of its axes, None for axes that are never cut; see `apr_jax.sharding`."""
    if fused:  # a cut would not follow the parts of a fused weight
        return jax.tree.map(lambda leaf: (None,) * leaf.ndim, abstract(config, fused).params)
    norm = {"scale": ("width",)}
    head_norms = {"q_norm": {"scale": (None,)}, "k_norm": {"scale": (None,)}} if config.qk_norm else {}
    qkv_biases = {"q_bias": ("heads", None), "k_bias": ("kv_heads", None), "v_bias": ("kv_heads", None)}
    biases = {"none": {}, "qkv": qkv_biases, "qkvo": qkv_biases | {"out_bias": ("width",)}}[config.bias]
    block = {
        "attention_norm": norm,
        "attention": {
            "q": ("width", "heads", None),
            "k": ("width", "kv_heads", None),
            "v": ("width", "kv_heads", None),
            "out": ("heads", None, "width"),
            **head_norms,
            **biases,
            **({"branch_embedding": (None, None)} if config.branch_embedding else {}),
        },
        "ffn_norm": norm,
        "ffn": {"gate": ("width", "ffn"), "up": ("width", "ffn"), "down": ("ffn", "width")},
    }
    tree = {"embed": ("vocabulary", "width"), "layers": {str(i): block for i in range(config.layers)}, "norm": norm}
    tree = tree if config.tied else tree | {"head": ("width", "vocabulary")}
    tree = tree | {"branch_factor": (None,)} if config.branch_stride else tree
    return logical_axes_in_int8(tree) if config.int8_weights else tree


def init(config: ModelConfig, key: Key[Array, ""]) -> Model:
    """A freshly initialised model; see `init_params`."""
    return Model(graph_of(config), jax.jit(init_params, static_argnums=0)(config, key))


def abstract_params(config: ModelConfig, fused: bool = False) -> Params:
    """The parameter tree with a `jax.ShapeDtypeStruct` for each array."""
    return abstract(config, fused).params


def hidden(
    graph: Graph,
    params: Params,
    tokens: Int[Array, "*B"],
    positions: Int[Array, "*B"],
    attend: Attend,
    cache: tuple,
    remat: str = KEEP_ALL,
    branches: Int[Array, "*B"] | None = None,
) -> tuple[Float[Array, "*B D"], tuple]:
    """Runs all layers and the final norm.

    Args:
      graph: static half of the model.
      params: parameters of the model.
      tokens: token ids, with any leading axes: [A] or [A, 1] when decoding, [B, S] when training. Negative ids are padding:
        without biases their rows stay zero if `attend` gives zeros for them, and cost nothing if weights are packed.
      positions: positions of the tokens in their threads, of the same shape.
      attend: attention, see `Attend`; called once per layer, in order.
      cache: one item per layer, passed to `attend` and replaced by its result; `(None,) * L` for attention without a cache.
      remat: the policy of `jax.checkpoint_policies` that says which activations of a block the backward pass keeps; it recomputes
        the others.
      branches: branches that the tokens belong to, for models that tell them apart (`apr_jax.model.branches`); None: 0 for all.

    Returns:
      The residual stream after the final norm, in the dtype of activations, and the new cache.

    Raises:
      ValueError: `cache` does not have one item per layer.
    """
    if len(cache) != graph.config.layers:
        raise ValueError(f"cache has {len(cache)} items; the model needs one per layer, that is {graph.config.layers}")
    if not graph.config.branches:
        branches = None
    elif branches is None:
        branches = jnp.zeros_like(positions)
    return nnx.merge(graph.definition, params)(tokens, positions, attend, cache, remat, branches)


def logits(graph: Graph, params: Params, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Logits of the next token from the output of `hidden`; f32, or f64 if the parameters are f64."""
    return nnx.merge(graph.definition, params).logits(x)


class Norm(nnx.Module):
    """RMSNorm over the last axis, computed in f32 (f64 for f64)."""

    def __init__(self, size: int, config: ModelConfig):
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones((size,), config.param_dtype))

    def __call__(self, x: Float[Array, "*B n"]) -> Float[Array, "*B n"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = jnp.expand_dims(self.scale[...], range(x.ndim - 1))
        return (wide * scale.astype(wide.dtype)).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention: query head i reads key head i // (H // K)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, fused: bool):
        self.config, self.fused = config, fused
        if fused:
            self.qkv = _normal(rngs, (config.width, config.heads + 2 * config.kv_heads, config.head_dim), config)
        else:
            self.q = _normal(rngs, (config.width, config.heads, config.head_dim), config)
            self.k = _normal(rngs, (config.width, config.kv_heads, config.head_dim), config)
            self.v = _normal(rngs, (config.width, config.kv_heads, config.head_dim), config)
        self.out = _normal(rngs, (config.heads, config.head_dim, config.width), config, residual=True)
        self.q_norm = Norm(config.head_dim, config) if config.qk_norm else None
        self.k_norm = Norm(config.head_dim, config) if config.qk_norm else None
        if config.bias != "none":
            self.q_bias = _zeros((config.heads, config.head_dim), config)
            self.k_bias = _zeros((config.kv_heads, config.head_dim), config)
            self.v_bias = _zeros((config.kv_heads, config.head_dim), config)
        if config.bias == "qkvo":
            self.out_bias = _zeros((config.width,), config)
        if config.branch_embedding:
            self.branch_embedding = _zeros((config.branch_embedding, config.head_dim), config)

    def __call__(
        self, x: Float[Array, "*B D"], rope: Array, attend: Attend, cache: Any, branches: Array | None
    ) -> tuple[Array, Any]:
        heads = (*x.shape[:-1], -1, self.config.head_dim)
        if self.fused:
            cuts = self.config.heads, self.config.heads + self.config.kv_heads
            q, k, v = jnp.split(product(x, _value(self.qkv), wide=True).reshape(heads), cuts, axis=-2)
        else:
            q, k, v = (product(x, _value(w)).reshape(heads) for w in (self.q, self.k, self.v))
        if self.config.bias != "none":
            q, k, v = (y + b[...].astype(y.dtype) for y, b in ((q, self.q_bias), (k, self.k_bias), (v, self.v_bias)))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.branch_embedding:
            added = self.branch_embedding[...][branches][..., None, :]
            k, v = k + added.astype(k.dtype), v + added.astype(v.dtype)
        q, k, v = rotate(q, rope).astype(x.dtype), rotate(k, rope).astype(x.dtype), v.astype(x.dtype)
        out, cache = attend(q, k, v, cache)
        merged = out.reshape(*x.shape[:-1], -1)
        out = product(merged, _value(self.out))
        return (out + self.out_bias[...].astype(out.dtype) if self.config.bias == "qkvo" else out), cache


class FeedForward(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, fused: bool):
        self.fused = fused
        if fused:
            self.gate_up = _normal(rngs, (config.width, 2 * config.ffn), config)
        else:
            self.gate = _normal(rngs, (config.width, config.ffn), config)
            self.up = _normal(rngs, (config.width, config.ffn), config)
        self.down = _normal(rngs, (config.ffn, config.width), config, residual=True)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        if self.fused:
            gate, up = jnp.split(product(x, _value(self.gate_up), wide=True), 2, axis=-1)
        else:
            gate, up = product(x, _value(self.gate)), product(x, _value(self.up))
        return product((jax.nn.silu(gate) * up).astype(x.dtype), _value(self.down))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, fused: bool):
        self.attention_norm = Norm(config.width, config)
        self.attention = Attention(config, rngs, fused)
        self.ffn_norm = Norm(config.width, config)
        self.ffn = FeedForward(config, rngs, fused)

    def __call__(
        self, x: Float[Array, "*B D"], rope: Array, attend: Attend, cache: Any, branches: Array | None
    ) -> tuple[Array, Any]:
        out, cache = self.attention(self.attention_norm(x), rope, attend, cache, branches)
        x = x + out
        return x + self.ffn(self.ffn_norm(x)), cache


class Transformer(nnx.Module):
    """Embedding, L blocks, final norm, output table."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, fused: bool = False):
        self.config, self.fused = config, fused
        self.embed = _normal(rngs, (config.vocabulary, config.width), config)
        # String keys: trees with integer keys come back from checkpoints with string keys.
        self.layers = nnx.Dict({str(i): Block(config, rngs, fused) for i in range(config.layers)})
        self.norm = Norm(config.width, config)
        self.head = None if config.tied else _normal(rngs, (config.width, config.vocabulary), config)
        if config.branch_stride:
            self.branch_factor = nnx.Param(jnp.ones((config.head_dim // 2,), config.param_dtype))

    def __call__(
        self,
        tokens: Int[Array, "*B"],
        positions: Int[Array, "*B"],
        attend: Attend,
        cache: tuple,
        remat: str,
        branches: Int[Array, "*B"] | None,
    ) -> tuple[Float[Array, "*B D"], tuple]:
        dtype = jnp.float64 if self.norm.scale[...].dtype == jnp.float64 else self.config.dtype
        x = jnp.where(tokens[..., None] < 0, 0, look_up(_value(self.embed), tokens)).astype(dtype)
        factor = self.branch_factor[...] if self.config.branch_stride else None
        rope = rope_angles(positions, self.config, x.dtype, branches, factor)
        # Without a barrier XLA:CPU would recompute cosines and sines in every layer.
        rope = jax.lax.optimization_barrier(rope) if self.fused else rope
        new = []
        for i in range(self.config.layers):
            block = self.layers[str(i)]
            step = lambda x, m, block=block: block(x, rope, attend, m, branches)
            if remat != KEEP_ALL:
                step = jax.checkpoint(step, policy=getattr(jax.checkpoint_policies, remat))
            x, item = step(sharding.spread(x), cache[i])
            new.append(item)
        return self.norm(sharding.spread(x)), tuple(new)

    def logits(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        # The tied table is contracted over its last axis: transposing it first would copy it in every step on XLA:CPU.
        weight, axis = (self.embed, 1) if self.config.tied else (self.head, 0)
        if hasattr(_value(weight), "multiply"):
            return _value(weight).multiply(x, wide=True)
        x, table, scale = factors(x, _value(weight))
        sides = (((1,), (axis,)), ((), ()))
        rows = jax.lax.dot_general(
            x.reshape(-1, x.shape[-1]), table.astype(x.dtype), sides, preferred_element_type=wide
        )
        rows = rows if scale is None else (rows * scale).astype(wide)
        return rows.reshape(*x.shape[:-1], rows.shape[-1])


def _value(variable: nnx.Variable) -> Any:
    """The value of a variable, array or not (`variable[...]` would index an array); flax 0.12.0 has no `get_value`."""
    return variable.get_value() if hasattr(variable, "get_value") else variable.value


def _zeros(shape: tuple[int, ...], config: ModelConfig) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, config.param_dtype))


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], config: ModelConfig, residual: bool = False) -> nnx.Param:
    deviation = 0.02 / (2 * config.layers) ** 0.5 if residual else 0.02
    # Drawn in f32 for every dtype, so that the numbers do not depend on jax_enable_x64.
    return nnx.Param((deviation * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(config.param_dtype))
