"""Pretrained weights in: each tensor is read, laid out and put on its devices before the next one is touched."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax import files, sharding
from apr_jax.model import io
from apr_jax.model.config import DTYPES, ModelConfig
from apr_jax.model.pretrained import configuration, gguf_file, names, stored
from apr_jax.model.pretrained.stored import Stored
from apr_jax.model.transformer import Model, abstract, logical_axes


def load_pretrained(path: str | Path, mesh: sharding.Mesh | None = None, dtype: str | None = None) -> Model:
    """Reads a model of the Llama, Qwen2 (2.5) or Qwen3 family, dense.

    Beyond the parameters, the memory of the host holds at most one tensor, in the dtype asked for, and a few rows.

    Args:
      path: a Hugging Face folder (`config.json` and safetensors, one file or several with an index), or a GGUF file,
        which is dequantised.
      mesh: where the parameters are born, by the rules of `apr_jax.sharding`; by default on the default device.
      dtype: "float32" or "bfloat16", for parameters and activations; by default as stored, float32 for others.

    Raises:
      FileNotFoundError: there is nothing at `path`, or a file of the folder is missing.
      ValueError: the architecture is unknown, tensors are missing, left over or of wrong shape, a file is truncated, or
        the mesh does not fit; the message names what.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    source = _open(files.local(path, "path"))
    table = source.tensors.get(names.foreign("embed", source.column))
    dtype = dtype or (table.dtype if table and table.dtype in DTYPES else "float32")
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
        # One at a time: transfers that wait would keep the host's copies alive.
        params[name] = jax.block_until_ready(parameter)
    return Model(blank.graph, io.nest(params))


@dataclasses.dataclass(frozen=True)
class _Source:
    """What a folder or file holds: its configuration in float32, and its tensors, none of them read yet.

    Attributes:
      config: what the fields say.
      tensors: by the names of the file.
      column: whose names these are, `names.HF` or `names.GGUF`.
      unread: tensors that may be there and are not needed.
      twisted: whether q and k are in the order of GGUF's llama.
    """

    config: ModelConfig
    tensors: Mapping[str, Stored]
    column: int
    unread: set[str]
    twisted: bool


def _open(path: Path) -> _Source:
    if path.is_dir():
        config = configuration.from_hf(stored.read_json(path / "config.json"), str(path / "config.json"))
        tensors = stored.open_folder(path)
        # Buffers of old checkpoints that are computed here; and a copy of the table, which a tied model does not read.
        unread = {n for n in tensors if n.endswith("rotary_emb.inv_freq") or config.tied and n == "lm_head.weight"}
        return _Source(config, tensors, names.HF, unread, False)
    metadata, tensors = gguf_file.open_gguf(path)
    config = configuration.from_gguf(metadata, {name: t.shape for name, t in tensors.items()}, str(path))
    if "rope_freqs.weight" in tensors:
        factors = gguf_file.elements(tensors["rope_freqs.weight"])
        config = configuration.with_frequency_factors(config, factors, str(path))
    twisted = metadata["general.architecture"] == "llama"
    return _Source(config, tensors, names.GGUF, {"rope_freqs.weight"}, twisted)


def _fitting(source: _Source, expected: Mapping[str, jax.ShapeDtypeStruct], what: str) -> dict[str, Stored]:
    """The tensors by our names, if they are those of the configuration; messages have the names of the file."""
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
    """One tensor in our shape and dtype; `order` is where its stored rows (or elements, of a bias) belong."""
    out = np.empty(shape, dtype)
    matrix = names.matrix_shape(name, shape)
    for first, block in tensor.blocks():
        rows = slice(first, first + len(block)) if order is None else order[first : first + len(block)]
        if matrix:
            out.reshape(matrix)[:, rows] = block.T
        elif name == "embed":
            out[rows] = block
        else:
            out.reshape(-1)[slice(None) if order is None else order] = block[0]
    return out


def _untwist(shape: tuple[int, ...], name: str, head_dim: int) -> np.ndarray | None:
    """Where each stored output of q and k belongs: GGUF's llama keeps the pair (i, i + h/2) of a head side by side."""
    if name.rsplit(".", 1)[-1] not in ("q", "k", "q_bias", "k_bias"):
        return None
    outputs = math.prod(shape[-2:])
    return np.arange(outputs).reshape(-1, 2, head_dim // 2).swapaxes(1, 2).ravel()
