"""The header of GGUF files, with the model's configuration, its tokenizer and the offsets of its tensors.

The format is that of ggml's documentation, versions 2 and 3, little-endian. The reader of the package `gguf` is not used: it
makes several arrays per vocabulary entry and takes many seconds for a header that is read here in a tenth of a second.
"""

import dataclasses
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# The scalar types of the format by their numbers; 8 is text, 9 an array.
SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
TEXT, ARRAY = 8, 9

Entry = tuple[str, tuple[int, ...], int, int]  # name, shape, number of the quantisation, offset behind the header


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of one file.

    Attributes:
      path: the file.
      metadata: fields of the header.
      entries: entries of the tensors.
      start: offset of the tensor data, in bytes.
    """

    path: Path
    metadata: dict[str, Any]
    entries: list[Entry]
    start: int


def read_headers(path: Path) -> list[Header]:
    """The headers of a model: of one file, or of all parts of a split model in order; `path` may be any part.

    The first part of a split model holds its metadata.

    Raises:
      FileNotFoundError: there is no such file, or a part is missing.
      ValueError: a file is truncated or no GGUF file of version 2 or 3, or the parts do not belong together.
    """
    header = _read(path)
    count = header.metadata.get("split.count", 0)
    if count < 2:
        return [header]
    name = re.fullmatch(r"(.*-)(\d{5})(-of-\d{5}\.gguf)", path.name)
    if name is None:
        raise ValueError(
            f"{path} is a part of a model in {count} files; name it as it was, ...-00001-of-{count:05}.gguf, so that the "
            "others are found"
        )
    parts = [path.with_name(f"{name[1]}{i + 1:05}{name[3]}") for i in range(count)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise FileNotFoundError(f"{path} is a part of a model in {count} files; {', '.join(missing)} are missing")
    headers = [header if part == path else _read(part) for part in parts]
    for i, part in enumerate(headers):
        place = part.metadata.get("split.no"), part.metadata.get("split.count")
        if place != (i, count):
            raise ValueError(f"{part.path} says that it is part {place[0]} (from 0) of {place[1]}, not {i} of {count}")
    tensors, expected = sum(len(h.entries) for h in headers), headers[0].metadata.get("split.tensors.count")
    if expected is not None and tensors != expected:
        raise ValueError(f"{parts[0]}: the parts hold {tensors} tensors, not {expected}; are they of one model?")
    return headers


def _read(path: Path) -> Header:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as file:
        header = _Header(file, path)
        if header.take(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: it does not begin with GGUF")
        version = header.number("<u4")
        if version not in (2, 3):
            raise ValueError(f"{path} is GGUF of version {version}; versions 2 and 3 can be read (little-endian)")
        count, fields = header.number("<u8"), header.number("<u8")
        metadata = {header.text(): header.value(header.number("<u4")) for _ in range(fields)}
        entries = [header.tensor() for _ in range(count)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-file.tell() // alignment) * alignment
    return Header(path, metadata, entries, start)


class _Header:
    """Reads the header of one file from front to end."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path, self._left = file, path, os.path.getsize(path)

    def take(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise ValueError(f"{self._path} is truncated: its header does not end in it")
        return self._file.read(size)

    def number(self, dtype: str) -> Any:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()

    def text(self) -> str:
        return self.take(*struct.unpack("<Q", self.take(8))).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            kind, count = struct.unpack("<IQ", self.take(12))
            if kind in SCALARS:
                return np.frombuffer(self.take(count * np.dtype(SCALARS[kind]).itemsize), SCALARS[kind]).tolist()
            return [self.value(kind) for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"{self._path}: its header has a value of the unknown type {kind}; is the file damaged?")
        return self.number(SCALARS[kind])

    def tensor(self) -> Entry:
        """Name, shape (the file has it reversed), number of the quantisation, offset behind the header."""
        name, axes = self.text(), self.number("<u4")
        shape = tuple(self.number("<u8") for _ in range(axes))[::-1]
        return name, shape or (1,), self.number("<u4"), self.number("<u8")
