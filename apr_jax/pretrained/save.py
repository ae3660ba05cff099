"""Saves weights in the form that `transformers` and other programs read."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from apr_jax import files
from apr_jax.model import io
from apr_jax.model.transformer import Model, Params
from apr_jax.pretrained import configuration, names, stored
from apr_jax.pretrained.gguf.tensors import open_gguf
from apr_jax.pretrained.tokenizer import check_fits, load
from apr_jax.tokenizer import TextCodec
from apr_jax.tokenizer.codec import FOLDER_FILES

CONFIG, GENERATION = "config.json", "generation_config.json"
# Files of a model other than its weights and config.json.
COMPANIONS = (*FOLDER_FILES, GENERATION)
# Fields of a source's config.json that are dropped even if our configuration has no field of this name.
REPLACED = ("rope_parameters", "dtype", "quantization_config", "_name_or_path", "transformers_version")


def save_pretrained(
    folder: str | Path,
    model: Model,
    source: str | Path | None = None,
    shard_bytes: int = 2 << 30,
    tokenizer: TextCodec | None = None,
) -> None:
    """Writes safetensors, `config.json` and the tokenizer with its chat template: a folder that `transformers` loads.

    Args:
      folder: made if missing. Afterwards it holds only this model: once the new files are complete, files of an earlier model
        are replaced, or removed if this model has no such file; other files stay.
      model: the model, written in the dtype of its parameters.
      source: the folder or file that the model was loaded from. The tokenizer's files and the fields of `config.json` that
        change no numbers (ids of special tokens, longest context) are copied from a folder, or converted from a GGUF file.
      shard_bytes: tensors are spread over files of about this size in bytes; one file is in memory while it is written.
      tokenizer: tokenizer to write instead of that of `source` (with added control words, for instance).

    Raises:
      FileNotFoundError: `source` is given, but does not exist.
      FileExistsError: the folder holds a tokenizer, and neither `source` nor `tokenizer` replaces it.
      ValueError: no family of `transformers` computes the same function as this model, the parameters do not fit the
        configuration (adapters that are not merged, for instance), the tokenizer has ids that the model lacks, or the
        tokenizer of a GGUF file cannot be read.
    """
    folder, source = files.local(folder, "folder"), Path(source) if source is not None else None
    config = model.config
    io.check(f"the model to be saved in {folder}", io.flatten(model.params), config)
    kept = _kept_fields(source) if source else {}
    longest = int(config.rope.factor * config.rope.original) or 32768
    fields = {**kept, **configuration.to_hf(config, kept.get("max_position_embeddings", longest))}
    if tokenizer is None and source and source.is_file() and _has_tokenizer(source):
        tokenizer = load(source)
    if tokenizer:
        check_fits(tokenizer, config.vocabulary, f"the model to be saved in {folder}")
        fields |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    copied = _companions(source, tokenizer is not None) if source and source.is_dir() else []
    stale = [name for name in COMPANIONS if (folder / name).is_file()]
    if stale and not copied and tokenizer is None:
        raise FileExistsError(
            f"{folder} holds {', '.join(stale)}, and the model to be saved brings no tokenizer to replace them: give one as "
            f"tokenizer, or, if they belong to this model, source={str(folder)!r}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as made:
        _write_weights(Path(made), model.params, shard_bytes)
        _write_json(Path(made) / CONFIG, fields)
        if tokenizer:
            tokenizer.save_folder(made)
        for name in copied:
            shutil.copyfile(source / name, Path(made) / name)
        _replace_model(folder, Path(made))


def _companions(source: Path, tokenizer: bool) -> list[str]:
    """The files of a folder to copy beside the weights; without tokenizer files if another tokenizer is written."""
    names = (GENERATION,) if tokenizer else COMPANIONS
    return [name for name in names if (source / name).is_file()]


def _write_weights(folder: Path, params: Params, shard_bytes: int) -> None:
    shards = list(_shards(io.flatten(params), shard_bytes))
    places = {}
    for i, shard in enumerate(shards):
        name = stored.SINGLE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {names.foreign(ours, names.HF): _as_stored(ours, value) for ours, value in shard.items()}
        safetensors.numpy.save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        _write_json(folder / stored.INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _replace_model(folder: Path, made: Path) -> None:
    """Replace the files of the model in the folder, if there is one, by those of another.

    The old files are removed first, and the file that names the weights is moved last: a reader in between never finds a mix
    of two models.
    """
    old = {stored.SINGLE, stored.INDEX, CONFIG, *COMPANIONS}
    if (folder / stored.INDEX).is_file():
        shards = stored.read_json(folder / stored.INDEX).get("weight_map", {}).values()
        old |= {name for name in shards if Path(name).name == name}
    for name in sorted(old):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(made.iterdir(), key=lambda path: (path.name in (stored.SINGLE, stored.INDEX), path.name)):
        os.replace(path, folder / path.name)


def _has_tokenizer(gguf: Path) -> bool:
    metadata, _ = open_gguf(gguf)
    return "tokenizer.ggml.model" in metadata


def _as_stored(name: str, value: jax.Array) -> np.ndarray:
    matrix, array = names.matrix_shape(name, value.shape), np.asarray(value)
    return np.ascontiguousarray(
        array.reshape(matrix).T if matrix else array.reshape(names.stored_shape(name, value.shape))
    )


def _shards(tensors: Mapping[str, jax.Array], limit: int) -> Iterator[dict[str, jax.Array]]:
    """The tensors in order, in shards of at most `limit` bytes (or one tensor)."""
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
    """The fields of a source that do not determine the model's numbers, by their names in `config.json`."""
    if source.is_dir():
        fields = stored.read_json(source / CONFIG)
        return {name: value for name, value in fields.items() if name not in REPLACED}
    metadata, _ = open_gguf(source)
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
