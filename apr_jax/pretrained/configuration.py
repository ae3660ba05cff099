"""Converts configurations of pretrained models to ours, and ours to those of `transformers`: Llama, Qwen2 (2.5), Qwen3, dense."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from apr_jax.model.config import ModelConfig
from apr_jax.model.rope import RopeScaling, frequencies

FAMILIES = ("llama", "qwen2", "qwen3")
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
# Our fields of RopeScaling by their names in transformers, for each kind.
ROPE_FIELDS: Mapping[str, Mapping[str, str]] = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor", "original_max_position_embeddings": "original", "low_freq_factor": "low",
        "high_freq_factor": "high",
    },
    "yarn": {
        "factor": "factor", "original_max_position_embeddings": "original", "beta_slow": "slow", "beta_fast": "fast",
        "attention_factor": "attention", "truncate": "whole",
    },
}  # fmt: skip
ROPE_NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "yarn": ("factor",)}


def from_hf(fields: Mapping[str, Any], what: str) -> ModelConfig:
    """Our configuration for a `config.json`, in float32.

    Args:
      fields: the contents of the file, written by transformers 4 or 5.
      what: the file, for messages.

    Raises:
      ValueError: the architecture or one of its features is unknown, or a field is missing; the message names it.
    """
    family = fields.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"{what}: model_type is {family!r}; models of {', '.join(FAMILIES)} can be loaded")
    _refuse_features(fields, what)
    need = _needed(fields, what)
    heads, width = need("num_attention_heads"), need("hidden_size")
    biased = {"llama": "none", "qwen2": "qkv", "qwen3": "none"}[family]
    # If Llama and Qwen3 have biases, the output product has one too.
    bias = "qkvo" if fields.get("attention_bias") and family != "qwen2" else biased
    theta, rope = _rope(fields, what)
    return ModelConfig(
        vocabulary=need("vocab_size"),
        width=width,
        layers=need("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or (128 if family == "qwen3" else width // heads),
        ffn=need("intermediate_size"),
        rope_theta=theta,
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        qk_norm=family == "qwen3",
        tied=bool(fields.get("tie_word_embeddings", False)),
        rope=rope,
        bias=bias,
    )


def to_hf(config: ModelConfig, max_positions: int) -> dict[str, Any]:
    """The fields of a `config.json` that determine the model's numbers, in the form of transformers 4, which 5 reads too.

    Raises:
      ValueError: no family has this combination of norms and biases, or the second rotation of branches.
    """
    family = "qwen3" if config.qk_norm else "qwen2" if config.bias == "qkv" else "llama"
    if config.qk_norm and config.bias == "qkv":
        raise ValueError(
            "ModelConfig has qk_norm=True and bias='qkv': no family is like that; Qwen3 allows none or qkvo"
        )
    if config.branch_stride:
        raise ValueError(
            f"ModelConfig.branch_stride is {config.branch_stride}: no family has a second rotation; save with apr_jax.model.io"
        )
    scaling = None
    if config.rope.kind != "none":
        values = {theirs: getattr(config.rope, ours) for theirs, ours in ROPE_FIELDS[config.rope.kind].items()}
        scaling = {
            "rope_type": config.rope.kind,
            **{k: v for k, v in values.items() if (k, v) != ("attention_factor", 0)},
        }
    return {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.bias != "none",
        "torch_dtype": config.param_dtype,
        **({"max_segments": config.branch_embedding} if config.branch_embedding else {}),  # of ParaThinker's engine
    }


def from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], what: str) -> ModelConfig:
    """Our configuration for a GGUF file, in float32; `with_frequency_factors` sets the frequencies of Llama 3.1.

    Args:
      metadata: fields of the header.
      tensors: shapes of the tensors, which tell facts that the fields lack: tied tables, biases, the vocabulary.
      what: the file, for messages.

    Raises:
      ValueError: the architecture or its RoPE scaling is unknown, or a field is missing; the message names it.
    """
    family = metadata.get("general.architecture")
    if family not in FAMILIES:
        raise ValueError(f"{what}: general.architecture is {family!r}; models of {', '.join(FAMILIES)} can be loaded")
    fields = {key.removeprefix(family + "."): value for key, value in metadata.items() if key.startswith(family + ".")}
    need = _needed(fields, what)
    heads, width = need("attention.head_count"), need("embedding_length")
    head_dim = fields.get("attention.key_length", width // heads)
    if fields.get("rope.dimension_count", head_dim) != head_dim:
        raise ValueError(
            f"{what}: rope.dimension_count is {fields['rope.dimension_count']}; only rotation of whole heads "
            f"({head_dim}) is known here"
        )
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{what}: missing token_embd.weight; does the file hold a whole model?")
    biases = ("blk.0.attn_q.bias" in tensors) + ("blk.0.attn_output.bias" in tensors)
    return ModelConfig(
        vocabulary=tensors["token_embd.weight"][0],
        width=width,
        layers=need("block_count"),
        heads=heads,
        kv_heads=fields.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=need("feed_forward_length"),
        rope_theta=fields.get("rope.freq_base", 10000.0),
        # Stored in f32: converted so that 1e-5 becomes 1e-5 again.
        norm_eps=float(str(np.float32(need("attention.layer_norm_rms_epsilon")))),
        qk_norm=family == "qwen3",
        tied="output.weight" not in tensors,
        rope=_gguf_rope(fields, what),
        bias=("none", "qkv", "qkvo")[biases],
    )


def with_frequency_factors(config: ModelConfig, factors: np.ndarray, what: str) -> ModelConfig:
    """The configuration with frequencies divided by `factors` [h / 2], the form in which GGUF stores the scaling of Llama 3.1.

    Raises:
      ValueError: the factors are not those of a scaling of 8192 positions as in Llama 3.1 or later.
    """
    rope = RopeScaling("llama3", factor=float(factors.max()), original=8192)
    plain = frequencies(config.rope_theta, config.head_dim, RopeScaling())
    expected = plain / frequencies(config.rope_theta, config.head_dim, rope)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise ValueError(
            f"{what}: rope_freqs.weight does not hold the factors of Llama 3.1; other factors are not known"
        )
    return dataclasses.replace(config, rope=rope)


def _needed(fields: Mapping[str, Any], what: str) -> Callable[[str], Any]:
    def need(name: str) -> Any:
        if name not in fields:
            raise ValueError(f"{what}: the field {name} is missing; there are {', '.join(sorted(fields))}")
        return fields[name]

    return need


def _refuse_features(fields: Mapping[str, Any], what: str) -> None:
    layers = fields.get("layer_types") or []
    windows = fields.get("use_sliding_window") and fields.get("max_window_layers", 0) < fields["num_hidden_layers"]
    refused = {
        "hidden_act": fields.get("hidden_act", "silu") != "silu",
        "mlp_bias": fields.get("mlp_bias", False),
        "quantization_config": fields.get("quantization_config") is not None,
        "layer_types": any(kind != "full_attention" for kind in layers),
        "use_sliding_window": not layers and windows,
        "partial_rotary_factor": fields.get("partial_rotary_factor", 1.0) != 1.0,
    }
    for name in (name for name, bad in refused.items() if bad):
        raise ValueError(f"{what}: {name} is {fields[name]!r}, a feature that the model here does not have")


def _rope(fields: Mapping[str, Any], what: str) -> tuple[float, RopeScaling]:
    """Base and scaling: `rope_theta` and `rope_scaling` of transformers 4, or `rope_parameters` of 5."""
    old, new = (fields.get(name) or {} for name in ("rope_scaling", "rope_parameters"))
    if old and new and old != new:
        raise ValueError(f"{what} has rope_scaling {old} and rope_parameters {new}; leave only the one that is meant")
    given = {name: value for name, value in (old or new).items() if value is not None}
    theta = float(given.pop("rope_theta", fields.get("rope_theta") or 10000.0))
    kind = given.get("rope_type", given.get("type", "default"))
    given = {name: value for name, value in given.items() if name not in ("rope_type", "type")}
    if kind == "default":
        if "factor" in given or any(isinstance(value, Mapping) for value in given.values()):
            raise ValueError(f"{what}: RoPE scaling is {given} without a rope_type, which says how; name it")
        return theta, RopeScaling()
    if kind not in ROPE_FIELDS:
        raise ValueError(f"{what}: RoPE scaling is {kind!r}; it may be default, {', '.join(ROPE_FIELDS)}")
    known = ROPE_FIELDS[kind]
    unknown = {name: value for name, value in given.items() if name not in known}
    unknown = {name: value for name, value in unknown.items() if (name, value) != ("partial_rotary_factor", 1.0)}
    if unknown:
        raise ValueError(f"{what}: RoPE scaling {kind!r} has {unknown}; known are {', '.join(known)}")
    if kind != "linear":
        given |= _lengths(kind, given, fields)
    missing = [name for name in ROPE_NEEDED[kind] if name not in given]
    if missing:
        raise ValueError(f"{what}: RoPE scaling {kind!r} is {given}; {', '.join(missing)} must be given")
    if given.get("attention_factor") == 0:
        raise ValueError(f"{what}: RoPE scaling {kind!r} has attention_factor 0; leave it out for the published one")
    return theta, RopeScaling(kind, **{known[name]: value for name, value in given.items() if name in known})


def _lengths(kind: str, given: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The context length before scaling, and YaRN's factor if it follows from the lengths."""
    longest, name = fields.get("max_position_embeddings"), "original_max_position_embeddings"
    # Some files have this length outside the scaling too; that value then counts, as in transformers.
    stated = fields.get(name) or given.get(name)
    lengths = {name: stated or longest or 0}
    if kind == "yarn" and "factor" not in given and stated and longest:
        lengths["factor"] = longest / stated
    return lengths


def _gguf_rope(fields: Mapping[str, Any], what: str) -> RopeScaling:
    scaling = {k.removeprefix("rope.scaling."): v for k, v in fields.items() if k.startswith("rope.scaling.")}
    # Old files have only a factor, under either name; llama.cpp reads it as linear scaling, and 0 as no scaling.
    factor = scaling.get("factor", fields.get("rope.scale_linear", 0))
    kind = scaling.get("type", "linear" if factor else "none")
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"{what}: rope.scaling.type is {kind!r}; it may be none, linear or yarn")
    if kind == "none":
        return RopeScaling()
    if not factor:
        raise ValueError(f"{what}: rope.scaling.type is {kind!r}, but rope.scaling.factor is missing")
    if kind == "linear":
        return RopeScaling("linear", factor)
    original = scaling.get("original_context_length", fields.get("context_length", 0))
    rope = RopeScaling(
        "yarn", factor, original, slow=scaling.get("yarn_beta_slow", 1.0), fast=scaling.get("yarn_beta_fast", 32.0)
    )
    # In GGUF the number multiplies the published 0.1 ln(factor) + 1; here it replaces it.
    return dataclasses.replace(rope, attention=rope.magnitude * scaling.get("attn_factor", 1.0))
