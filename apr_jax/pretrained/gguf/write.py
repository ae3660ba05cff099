"""Writes the weights of a Hugging Face folder as a GGUF file, for programs that read only GGUF."""

from pathlib import Path

import gguf
import numpy as np

from apr_jax.pretrained import names, stored


def write(folder: Path, path: Path, quantisation: str) -> None:
    """Write the tied Llama of a Hugging Face folder as GGUF without a tokenizer; vectors stay in float32.

    Raises:
      ValueError: the package gguf cannot write `quantisation`.
    """
    config = stored.read_json(folder / "config.json")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    kind = _kind(quantisation)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in stored.open_folder(folder).items():
        values = np.concatenate([block for _, block in tensor.blocks()]).astype(np.float32).reshape(tensor.shape)
        if "q_proj" in name or "k_proj" in name:
            values = _interleave(values, heads if "q_proj" in name else kv_heads)
        renamed = _rename(name)
        if values.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(renamed, values)
        else:
            writer.add_tensor(renamed, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kind(quantisation: str) -> gguf.GGMLQuantizationType:
    try:
        kind = gguf.GGMLQuantizationType[quantisation]
        gguf.quants.quantize(np.zeros((1, 256), np.float32), kind)
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            f"quantisation is {quantisation!r}, which the package gguf cannot write; take F32, F16, Q8_0, Q4_0 or Q4_1"
        ) from error
    return kind


def _interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of each head: llama.cpp rotates neighbouring rows, Hugging Face the two halves of a head."""
    halves = values.reshape(heads, 2, -1, values.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _rename(name: str) -> str:
    """The GGUF name of a tensor of a Hugging Face folder."""
    if name in (top := dict(names.TOP.values())):
        return top[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{dict(names.LAYER.values())[part]}"
