"""Saves and loads weights: one safetensors file with the model's configuration in its header."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from apr_jax import files
from apr_jax.model.config import ModelConfig
from apr_jax.model.transformer import Model, Params, abstract_params, graph_of

FORMAT = "apr_jax model 1"


def save(path: str | Path, model: Model, config: ModelConfig, storage: str | None = None) -> None:
    """Writes a model as one file; an existing file is replaced only once the new one is complete.

    Args:
      path: file to write; its folder must exist.
      model: the model to write.
      config: the configuration to store with the model; usually `model.config`.
      storage: dtype on disk, such as "bfloat16" for half the size; default `config.param_dtype`. `load` gives back
        `config.param_dtype`.

    Raises:
      ValueError: the parameters do not fit the configuration, or do not fit into `storage` (beyond 65504 in float16).
    """
    path = files.local(path, "path")
    check(f"the model to be saved in {path}", flatten(model.params), config)
    dtype = jnp.dtype(storage or config.param_dtype)
    tensors = {name: np.ascontiguousarray(np.asarray(x).astype(dtype)) for name, x in flatten(model.params).items()}
    lost = [n for n, x in flatten(model.params).items() if not np.array_equal(np.isfinite(x), np.isfinite(tensors[n]))]
    if lost:
        raise ValueError(f"storage: {dtype.name} does not hold the largest numbers in {', '.join(lost)}; store float32")
    write_tensors(path, tensors, {"format": FORMAT, "config": json.dumps(config.to_dict())})


def write_tensors(path: str | Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write tensors as one file; an existing file is replaced only once the new one is complete."""
    path = files.local(path, "path")
    temporary = Path(f"{path}.writing")
    safetensors.numpy.save_file(tensors, temporary, metadata=metadata)
    _order_metadata(temporary, metadata)
    os.replace(temporary, path)


def _order_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Put the metadata of a file in the order given: the library's is drawn by chance, and equal weights are equal files here."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) | {"__metadata__": metadata}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise RuntimeError(f"{path}: the header takes {len(text)} bytes in order, {length} before; report this")
        file.seek(8)
        file.write(text.ljust(length))


def read_tensors(path: str | Path, format: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a file of this format.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, or of another format.
    """
    if not files.local(path, "path").is_file():
        raise FileNotFoundError(f"no model file at {path}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); was its copy or download cut off?"
        ) from error
    if metadata.get("format") != format:
        raise ValueError(f"{path} has format {metadata.get('format')!r}; this version reads {format!r}")
    return tensors, metadata


def load(path: str | Path) -> Model:
    """Reads a file written by `save`. The parameters have dtype `config.param_dtype` of the stored configuration.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated, is not of this format, or its tensors do not fit its configuration; the message
        names the tensors.
    """
    tensors, metadata = read_tensors(path, FORMAT)
    config = ModelConfig.from_dict(json.loads(metadata["config"]))
    check(str(path), tensors, config)
    dtype = jnp.dtype(config.param_dtype)
    return Model(graph_of(config), nest({name: jnp.asarray(x.astype(dtype)) for name, x in tensors.items()}))


def flatten(params: Any) -> dict[str, Any]:
    """A nested tree of weights as one dict with dotted names, such as `layers.0.attention.qkv`."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def nest(tensors: dict[str, Any]) -> Params:
    """Inverse of `flatten`."""
    tree: dict = {}
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = tensor
    return tree


def check(what: str, tensors: dict, config: ModelConfig) -> None:
    if config.int8_weights:
        raise ValueError(f"{what} has int8 weights, which are for decoding; save the model that `quantise` was given")
    expected = {name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()}
    missing, left_over = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or left_over:
        raise ValueError(f"{what} does not fit its configuration: missing {missing}, left over {left_over}")
    wrong = [f"{n} is {tuple(tensors[n].shape)}, not {s}" for n, s in expected.items() if tuple(tensors[n].shape) != s]
    if wrong:
        raise ValueError(f"{what} does not fit its configuration: {'; '.join(wrong)}")
