"""Weights out, in the form that `transformers` and everybody else reads."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from apr_jax.model import io
from apr_jax.model.pretrained import configuration, gguf_file, names, stored
from apr_jax.model.transformer import Model

COPIED = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
# Fields of a source's config.json that are replaced even where ours have no such name.
REPLACED = ("rope_parameters", "dtype", "quantization_config", "_name_or_path", "transformers_version")


def save_pretrained(
    folder: str | Path, model: Model, source: str | Path | None = None, shard_bytes: int = 2 << 30
) -> None:
    """Writes safetensors and `config.json`, and copies the tokenizer: a folder that `transformers` loads.

    Args:
      folder: made if missing; files of the same names are replaced.
      model: what to write, in the dtype of its parameters.
      source: what the model was loaded from. Of a folder, the tokenizer's files are copied and the fields of
        `config.json` that change no numbers (ids of special tokens, longest context) are kept; of a GGUF file the latter.
      shard_bytes: tensors are spread over files of about this size, each of which is in memory while it is written.

    Raises:
      FileNotFoundError: `source` is given, but not there.
      ValueError: no family of `transformers` computes what this model computes, or the parameters do not fit the
        configuration (adapters that are not merged, for instance).
    """
    folder, source = Path(folder), Path(source) if source is not None else None
    config = model.config
    io.check(f"the model to be saved in {folder}", io.flatten(model.params), config)
    kept = _kept_fields(source) if source else {}
    longest = int(config.rope.factor * config.rope.original) or 32768
    fields = {**kept, **configuration.to_hf(config, kept.get("max_position_embeddings", longest))}
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(io.flatten(model.params), shard_bytes))
    places = {}
    for i, shard in enumerate(shards):
        name = stored.SINGLE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {names.foreign(ours, names.HF): _as_stored(ours, value) for ours, value in shard.items()}
        safetensors.numpy.save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
        _write_json(folder / stored.INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    _write_json(folder / "config.json", fields)
    for name in COPIED if source and source.is_dir() and source.resolve() != folder.resolve() else ():
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _as_stored(name: str, value: jax.Array) -> np.ndarray:
    matrix, array = names.matrix_shape(name, value.shape), np.asarray(value)
    return np.ascontiguousarray(
        array.reshape(matrix).T if matrix else array.reshape(names.stored_shape(name, value.shape))
    )


def _shards(tensors: Mapping[str, jax.Array], limit: int) -> Iterator[dict[str, jax.Array]]:
    """The tensors in order, cut where the next one would exceed the limit."""
    shard: dict[str, jax.Array] = {}
    for name, value in tensors.items():
        if shard and _bytes(shard.values()) + value.nbytes > limit:
            yield shard
            shard = {}
        shard[name] = value
    yield shard


def _bytes(values: Iterable[jax.Array]) -> int:
    return sum(value.nbytes for value in values)


def _kept_fields(source: Path) -> dict[str, Any]:
    """What a source says beside that which determines the numbers, by the names of `config.json`."""
    if source.is_dir():
        fields = stored.read_json(source / "config.json")
        return {name: value for name, value in fields.items() if name not in REPLACED}
    metadata, _ = gguf_file.open_gguf(source)
    family = metadata.get("general.architecture")
    theirs = {
        "max_position_embeddings": f"{family}.context_length",
        "bos_token_id": "tokenizer.ggml.bos_token_id",
        "eos_token_id": "tokenizer.ggml.eos_token_id",
        "pad_token_id": "tokenizer.ggml.padding_token_id",
    }
    return {ours: metadata[name] for ours, name in theirs.items() if name in metadata}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
