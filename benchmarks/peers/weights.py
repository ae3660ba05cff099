"""Random weights that every engine reads: a Hugging Face folder (config.json, model.safetensors).

Speed does not depend on the values, so no download is needed; all engines have the same numbers all the same.
"""

import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from apr_jax import files
from apr_jax.model.config import ModelConfig
from apr_jax.pretrained.gguf import write as gguf

SHAPES: Mapping[str, ModelConfig] = types.MappingProxyType(
    {
        # A Llama of 4.8 M parameters: 6 layers of width 256, a vocabulary of 1,024.
        "tiny": ModelConfig(
            vocabulary=1024, width=256, layers=6, heads=4, kv_heads=1, head_dim=64, ffn=768, norm_eps=1e-5
        ),
        # SmolLM2-135M.
        "smollm2": ModelConfig(
            vocabulary=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536,
            rope_theta=100000.0, norm_eps=1e-5,
        ),
    }
)  # fmt: skip
CONTEXT = 8192


def write(folder: Path, config: ModelConfig, seed: int) -> None:
    """Write the folder, bfloat16; one that already describes this model is left as it is.

    Raises:
        ValueError: the folder holds something else than weights that were written here.
    """
    described = json.dumps(_describe(config, seed), indent=2) + "\n"
    file = folder / "config.json"
    if file.is_file() and file.read_text() == described:
        return
    if folder.exists() and any(folder.iterdir()) and files.read_json(file).keys() != _describe(config, seed).keys():
        raise ValueError(
            f"output: {folder} holds no random weights of the benchmark; remove it, or give another --output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {
        name: (np.ones(shape, np.float32) if len(shape) == 1 else rng.standard_normal(shape, np.float32) * 0.02)
        for name, shape in _shapes(config)
    }
    tensors = {name: tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}
    for old in folder.glob("*.gguf"):
        old.unlink()
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file.write_text(described)


def write_gguf(folder: Path, quantisation: str) -> None:
    """Write the weights of a folder as GGUF beside them, for llama.cpp, if that is not there."""
    path = folder / f"model.{quantisation}.gguf"
    if path.is_file():
        return
    unfinished = path.with_suffix(".writing")
    gguf.write(folder, unfinished, quantisation)
    unfinished.rename(path)


def _describe(config: ModelConfig, seed: int) -> dict:
    """`config.json` of a Llama; the seed stands in it so that another one is another folder."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_act": "silu",
        "vocab_size": config.vocabulary, "hidden_size": config.width, "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_theta, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "bos_token_id": None, "eos_token_id": None, "seed": seed,
    }  # fmt: skip


def _shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors, as `transformers` has them: [out, in]."""
    width, inner = config.width, config.heads * config.head_dim
    kv_width = config.kv_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocabulary, width)
    yield "model.norm.weight", (width,)
    for i in range(config.layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
        yield f"{layer}.self_attn.q_proj.weight", (inner, width)
        yield f"{layer}.self_attn.k_proj.weight", (kv_width, width)
        yield f"{layer}.self_attn.v_proj.weight", (kv_width, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, inner)
        yield f"{layer}.mlp.gate_proj.weight", (config.ffn, width)
        yield f"{layer}.mlp.up_proj.weight", (config.ffn, width)
        yield f"{layer}.mlp.down_proj.weight", (width, config.ffn)
