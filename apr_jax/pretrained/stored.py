"""Tensors in a file that are read a few rows at a time; safetensors files and folders of them.

Files are read, not mapped, so that data that have been read do not stay in the memory of the process. Pickle is never read.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

BLOCK = 4 << 20  # bytes of f32 decoded at a time: small compared with the largest tensor of any model
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a file, not yet read.

    Attributes:
      path: the file.
      offset: offset of the tensor in the file, in bytes.
      shape: shape of the tensor; the last axis is contiguous.
      row_bytes: bytes of one row of the last axis.
      dtype: name of the dtype or of the quantisation.
      decode: function from bytes [rows, row_bytes] to values [rows, n].
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    row_bytes: int
    dtype: str
    decode: Callable[[np.ndarray], np.ndarray] = dataclasses.field(repr=False)

    @property
    def bytes(self) -> int:
        """Size in the file, in bytes."""
        return math.prod(self.shape[:-1]) * self.row_bytes

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields blocks (number of the first row, values [rows, n]) in order; a tensor of one axis is one row."""
        rows, step = math.prod(self.shape[:-1]), max(1, BLOCK // (4 * self.shape[-1]))
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for first in range(0, rows, step):
                count = min(step, rows - first)
                raw = np.fromfile(file, np.uint8, count * self.row_bytes)
                yield first, self.decode(raw.reshape(count, self.row_bytes))


def open_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of a Hugging Face folder: of one safetensors file, else of several with an index, as in transformers.

    Raises:
      FileNotFoundError: there is no safetensors file, or a file named by the index is missing; the message names it.
      ValueError: a file is truncated, or a tensor is not in the file that the index names.
    """
    if (folder / SINGLE).is_file():
        return open_safetensors(folder / SINGLE)
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map", {})
        tensors = {}
        for name in sorted(set(places.values())):
            tensors |= open_safetensors(folder / name)
        strays = sorted(
            n for n in set(places) | set(tensors) if n not in tensors or tensors[n].path.name != places.get(n)
        )
        if strays:
            raise ValueError(f"{folder / INDEX} does not fit its files: {strays} are not where it says")
        return tensors
    found = sorted(p.name for p in folder.iterdir())
    pickles = [name for name in found if name.endswith((".bin", ".pt", ".pth"))]
    fix = f"; {pickles} are pickles, which are never read: save the model as safetensors" if pickles else ""
    raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}, but {found}{fix}")


def open_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file, none of them read yet.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is truncated or no safetensors file, or a tensor has a dtype other than F64, F32, F16, BF16.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or 8 + length > size:
            raise ValueError(
                f"{path} ({size} bytes) is truncated or no safetensors file: its header does not end in it"
            )
        header = _json(file.read(length), path)
    header.pop("__metadata__", None)
    return {name: _tensor(path, size, 8 + length, name, entry) for name, entry in header.items()}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises FileNotFoundError or ValueError that name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return _json(path.read_bytes(), path)


def _json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path}: not JSON where JSON must be ({error}); was its copy or download cut off?") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object is needed, found {type(value).__name__}")
    return value


def _tensor(path: Path, size: int, start: int, name: str, entry: Mapping[str, Any]) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{path}: {name} has dtype {entry['dtype']}; weights of {', '.join(DTYPES)} can be read")
    dtype, shape, (begin, end) = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]) or (1,), entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{path}: {name} of shape {shape} has {end - begin} bytes; the header contradicts itself")
    if start + end > size:
        raise ValueError(f"{path} is truncated: {name} ends at byte {start + end}, the file has {size}")
    return Stored(path, start + begin, shape, shape[-1] * dtype.itemsize, dtype.name, lambda raw: raw.view(dtype))
