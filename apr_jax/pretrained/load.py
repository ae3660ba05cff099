"""Loads pretrained weights: each tensor is read, reordered and put on its devices before the next one is read."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax import files, sharding
from apr_jax.model import io
from apr_jax.model.config import DTYPES, ModelConfig
from apr_jax.model.transformer import Model, abstract, logical_axes
from apr_jax.pretrained import configuration, names, stored
from apr_jax.pretrained.gguf.tensors import elements, open_gguf
from apr_jax.pretrained.stored import Stored

EMBED, HEAD = names.TOP["embed"], names.TOP["head"]
SEGMENTS = names.foreign("layers.0.attention.branch_embedding", names.HF)


def load_pretrained(path: str | Path, mesh: sharding.Mesh | None = None, dtype: str | None = None) -> Model:
    """Reads a model of the Llama, Qwen2 (2.5) or Qwen3 family, dense.

    Beyond the parameters, the memory of the host holds at most one tensor, in the requested dtype, and a few rows.

    Args:
      path: a Hugging Face folder (`config.json` and safetensors, one file or several with an index), or a GGUF file
        or any part of a split one, which is dequantised.
      mesh: mesh on which the parameters are created, by the rules of `apr_jax.sharding`; None: the default device.
      dtype: "float32" or "bfloat16" ("float64" under `jax_enable_x64`), for parameters and activations; by default that of
        the stored embedding table, float32 for other dtypes. A warning names tensors that are rounded by default.

    Raises:
      FileNotFoundError: `path` does not exist, or a file of the folder is missing.
      ValueError: the architecture is unknown, tensors are missing, left over or of wrong shape, a file is truncated, or
        the mesh does not fit; the message names the cause.
    """
    known = [name for name in DTYPES if name != "float64" or jax.config.jax_enable_x64]
    if dtype is not None and dtype not in known:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(known)} (float64 needs jax_enable_x64)")
    source = _open(files.local(path, "path"))
    if dtype is None:
        table = source.tensors.get(EMBED[source.column])
        dtype = table.dtype if table and table.dtype in known else "float32"
        _say_what_is_rounded(source.tensors, jnp.dtype(dtype), str(path))
    config = dataclasses.replace(source.config, dtype=dtype, param_dtype=dtype)
    blank = abstract(config)
    expected = io.flatten(blank.params)
    tensors = _fitting(source, expected, str(path))
    places = io.flatten(sharding.shardings(blank.params, logical_axes(config), mesh)) if mesh else {}
    params = {}
    for name, leaf in expected.items():
        order = _untwist(leaf.shape, name, config.head_dim) if source.twisted else None
        values = _read(tensors[name], name, leaf.shape, jnp.dtype(dtype), order)
        if mesh:
            parameter = jax.make_array_from_callback(
                leaf.shape, places[name], lambda index, values=values: values[index]
            )
        else:
            parameter = jnp.asarray(values)
        # One at a time: pending transfers would keep the host's copies alive.
        params[name] = jax.block_until_ready(parameter)
    return Model(blank.graph, io.nest(params))


def load_model(path: str, dtype: str | None = None) -> Model:
    """A checkpoint of ours (`apr_jax.model.io.load`), or a pretrained model (`load_pretrained`).

    Args:
      path: a `.safetensors` file of ours, a Hugging Face folder or a GGUF file.
      dtype: dtype of a pretrained model, see `load_pretrained`; a checkpoint of ours keeps its own.

    Raises:
      FileNotFoundError, ValueError: the model does not exist, or cannot be read.
    """
    return load_pretrained(path, dtype=dtype) if is_pretrained(path) else io.load(path)


def is_pretrained(path: str) -> bool:
    """Whether the path is a GGUF file or a folder, not a file of ours."""
    return path.endswith(".gguf") or Path(path).is_dir()


@dataclasses.dataclass(frozen=True)
class _Source:
    """The contents of a folder or file: its configuration in float32, and its tensors, none of them read yet.

    Attributes:
      config: the configuration.
      tensors: the tensors, by their names in the file.
      column: the naming scheme of these names, `names.HF` or `names.GGUF`.
      unread: names of tensors that may exist and are not needed.
      twisted: whether q and k have the row order of GGUF's llama.
    """

    config: ModelConfig
    tensors: Mapping[str, Stored]
    column: int
    unread: set[str]
    twisted: bool


def _open(path: Path) -> _Source:
    if path.is_dir():
        config = configuration.from_hf(stored.read_json(path / "config.json"), str(path / "config.json"))
        config, tensors = _tables(config, stored.open_folder(path), str(path))
        if SEGMENTS in tensors:  # of ParaThinker, whose configuration may not say how many
            config = dataclasses.replace(config, branch_embedding=tensors[SEGMENTS].shape[0])
        # Buffers of old checkpoints that we compute ourselves; and a copy of the table, which a tied model does not need.
        unread = {n for n in tensors if n.endswith("rotary_emb.inv_freq") or config.tied and n == HEAD[names.HF]}
        return _Source(config, tensors, names.HF, unread, False)
    metadata, tensors = open_gguf(path)
    config = configuration.from_gguf(metadata, {name: t.shape for name, t in tensors.items()}, str(path))
    if "rope_freqs.weight" in tensors:
        factors = elements(tensors["rope_freqs.weight"])
        config = configuration.with_frequency_factors(config, factors, str(path))
    twisted = metadata["general.architecture"] == "llama"
    return _Source(config, tensors, names.GGUF, {"rope_freqs.weight"}, twisted)


def _tables(config: ModelConfig, tensors: Mapping[str, Stored], what: str) -> tuple[ModelConfig, Mapping[str, Stored]]:
    """Configuration and tensors of a folder; a tied model with an output table is treated as by transformers 5.

    An output table that differs from the embedding makes the model untied; an output table without an embedding serves as both.
    """
    embed, head = EMBED[names.HF], HEAD[names.HF]
    if not config.tied or head not in tensors:
        return config, tensors
    if embed not in tensors:
        return config, {**tensors, embed: tensors[head]}
    pairs = zip(tensors[embed].blocks(), tensors[head].blocks(), strict=False)
    if tensors[embed].shape == tensors[head].shape and all(np.array_equal(a, b) for (_, a), (_, b) in pairs):
        return config, tensors
    warnings.warn(
        f"{what}: config.json says tie_word_embeddings, but {head} differs from {embed}; both are read, and the model is not "
        "tied (set tie_word_embeddings to false, or leave the table out that is not meant)",
        stacklevel=4,
    )
    return dataclasses.replace(config, tied=False), tensors


def _say_what_is_rounded(tensors: Mapping[str, Stored], dtype: np.dtype, what: str) -> None:
    """Warn of tensors whose numbers the dtype cannot hold exactly."""
    wider = {
        name: t for name, t in tensors.items() if t.dtype in DTYPES and jnp.dtype(t.dtype).itemsize > dtype.itemsize
    }
    rounded = [name for name, t in wider.items() if t.dtype == "float64" or not _holds(t, dtype)]
    if rounded:
        kinds = ", ".join(sorted({wider[name].dtype for name in rounded}))
        raise_it = "; enable jax_enable_x64 to read float64" if "float64" in kinds else "; dtype='float32' keeps them"
        warnings.warn(
            f"{what}: {len(rounded)} of {len(tensors)} tensors are stored in {kinds} and read as {dtype.name}{raise_it}",
            stacklevel=3,
        )


def _holds(tensor: Stored, dtype: np.dtype) -> bool:
    return all(np.array_equal(block.astype(dtype).astype(block.dtype), block) for _, block in tensor.blocks())


def _fitting(source: _Source, expected: Mapping[str, jax.ShapeDtypeStruct], what: str) -> dict[str, Stored]:
    """The tensors by our names, if they match the configuration; messages use the names of the file."""
    tensors, theirs = source.tensors, {name: names.foreign(name, source.column) for name in expected}
    missing = sorted(set(theirs.values()) - set(tensors))
    left_over = sorted(set(tensors) - set(theirs.values()) - source.unread)
    if missing or left_over:
        raise ValueError(f"{what} does not fit its configuration: missing {missing}, left over {left_over}")
    shapes = {theirs[name]: names.stored_shape(name, leaf.shape) for name, leaf in expected.items()}
    wrong = [f"{n} is {tensors[n].shape}, not {shape}" for n, shape in shapes.items() if tensors[n].shape != shape]
    if wrong:
        raise ValueError(f"{what} does not fit its configuration: {'; '.join(wrong)}")
    return {name: tensors[their] for name, their in theirs.items()}


def _read(tensor: Stored, name: str, shape: tuple[int, ...], dtype: np.dtype, order: np.ndarray | None) -> np.ndarray:
    """One tensor in our shape and dtype; `order`: destinations of its stored rows (elements of a bias)."""
    out = np.empty(shape, dtype)
    matrix = names.matrix_shape(name, shape)
    for first, block in tensor.blocks():
        rows = slice(first, first + len(block)) if order is None else order[first : first + len(block)]
        if matrix:
            out.reshape(matrix)[:, rows] = block.T
        elif names.is_table(name):
            out[rows] = block
        else:
            out.reshape(-1)[slice(None) if order is None else order] = block[0]
    return out


def _untwist(shape: tuple[int, ...], name: str, head_dim: int) -> np.ndarray | None:
    """The destination of each stored output row of q and k: GGUF's llama stores the pair (i, i + h/2) of a head side by side."""
    if name.rsplit(".", 1)[-1] not in ("q", "k", "q_bias", "k_bias"):
        return None
    outputs = math.prod(shape[-2:])
    return np.arange(outputs).reshape(-1, 2, head_dim // 2).swapaxes(1, 2).ravel()
