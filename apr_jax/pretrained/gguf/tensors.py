"""The tensors of GGUF files, dequantised a few rows at a time.

Block sizes and arithmetic of the quantisations come from the package `gguf`.
"""

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from apr_jax.pretrained.gguf.header import read_headers
from apr_jax.pretrained.stored import Stored


def open_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The metadata and the tensors of a file, or of all parts of a split model; no tensor is read yet.

    Raises:
      FileNotFoundError: there is no such file, or a part is missing.
      ValueError: a file is truncated or no GGUF file of version 2 or 3, or a tensor's quantisation is unknown.
    """
    headers = read_headers(path)
    tensors = {name: _stored(h.path, h.start, name, *entry) for h in headers for name, *entry in h.entries}
    return headers[0].metadata, tensors


def _stored(path: Path, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Stored:
    known: Mapping[int, GGMLQuantizationType] = {int(q): q for q in GGML_QUANT_SIZES}
    if kind not in known:
        raise ValueError(f"{path}: {name} has quantisation number {kind}, unknown to the package gguf; upgrade it")
    block, size = GGML_QUANT_SIZES[known[kind]]
    if shape[-1] % block:
        raise ValueError(f"{path}: {name} has rows of {shape[-1]} values, not whole blocks of {block}; is it damaged?")
    decode = functools.partial(_decode, name=name, kind=known[kind], path=path)
    stored = Stored(path, start + offset, shape, shape[-1] // block * size, known[kind].name, decode)
    if stored.offset + stored.bytes > (end := os.path.getsize(path)):
        raise ValueError(f"{path} is truncated: {name} ends at byte {stored.offset + stored.bytes}, the file has {end}")
    return stored


def _decode(raw: np.ndarray, name: str, kind: GGMLQuantizationType, path: Path) -> np.ndarray:
    try:
        return dequantize(raw, kind)
    except NotImplementedError as error:
        raise ValueError(f"{path}: {name} is quantised as {kind.name}, which the package gguf cannot read") from error


def elements(tensor: Stored) -> np.ndarray:
    """All elements of a small tensor, flat, in f32."""
    return np.concatenate([block.ravel() for _, block in tensor.blocks()]).reshape(math.prod(tensor.shape))
