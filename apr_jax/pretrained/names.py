"""Names and layouts of our tensors in Hugging Face folders and in GGUF files.

Both formats store the W of a product x @ W transposed, outputs first, with heads merged; embeddings, norms and biases unchanged.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

HF, GGUF = 0, 1  # columns of the tables below

TOP: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "embed": ("model.embed_tokens.weight", "token_embd.weight"),
        "norm.scale": ("model.norm.weight", "output_norm.weight"),
        "head": ("lm_head.weight", "output.weight"),
    }
)
LAYER: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "attention_norm.scale": ("input_layernorm.weight", "attn_norm.weight"),
        "attention.q": ("self_attn.q_proj.weight", "attn_q.weight"),
        "attention.k": ("self_attn.k_proj.weight", "attn_k.weight"),
        "attention.v": ("self_attn.v_proj.weight", "attn_v.weight"),
        "attention.out": ("self_attn.o_proj.weight", "attn_output.weight"),
        "attention.q_bias": ("self_attn.q_proj.bias", "attn_q.bias"),
        "attention.k_bias": ("self_attn.k_proj.bias", "attn_k.bias"),
        "attention.v_bias": ("self_attn.v_proj.bias", "attn_v.bias"),
        "attention.out_bias": ("self_attn.o_proj.bias", "attn_output.bias"),
        "attention.branch_embedding": ("self_attn.seg_embeddings.weight", "attn_seg_embd.weight"),
        "attention.q_norm.scale": ("self_attn.q_norm.weight", "attn_q_norm.weight"),
        "attention.k_norm.scale": ("self_attn.k_norm.weight", "attn_k_norm.weight"),
        "ffn_norm.scale": ("post_attention_layernorm.weight", "ffn_norm.weight"),
        "ffn.gate": ("mlp.gate_proj.weight", "ffn_gate.weight"),
        "ffn.up": ("mlp.up_proj.weight", "ffn_up.weight"),
        "ffn.down": ("mlp.down_proj.weight", "ffn_down.weight"),
    }
)


def foreign(name: str, column: int) -> str:
    """The name of one of our tensors (dotted, see `apr_jax.model.io.flatten`) in a column of the tables."""
    if name in TOP:
        return TOP[name][column]
    _, layer, rest = name.split(".", 2)
    return f"{('model.layers', 'blk')[column]}.{layer}.{LAYER[rest][column]}"


def is_table(name: str) -> bool:
    """Whether a tensor has a row for each id, and is stored as it is."""
    return name.rsplit(".", 1)[-1] in ("embed", "branch_embedding")


def matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """(inputs, outputs) of a tensor that the formats store transposed; None for a tensor that they store unchanged."""
    leaf = name.rsplit(".", 1)[-1]
    if is_table(name) or leaf == "scale" or leaf.endswith("bias"):
        return None
    inputs = math.prod(shape[:2]) if leaf == "out" else shape[0]
    return inputs, math.prod(shape) // inputs


def stored_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the files of a tensor with our shape `shape`."""
    matrix = matrix_shape(name, shape)
    if matrix:
        return matrix[::-1]
    return shape if is_table(name) else (math.prod(shape),)
