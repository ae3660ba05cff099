"""Files and folders given by the user: remote paths are refused with the field's name, and contents can be compared."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/\S*")  # a pathlib.Path has one slash left of "gs://"


def local(path: str | Path, field: str) -> Path:
    """The path, if it is a path on this machine.

    Args:
        path: the given path.
        field: name of the field with this value, for the message.

    Raises:
        ValueError: the path is remote, such as `gs://bucket/run`.
    """
    if ELSEWHERE.fullmatch(str(path)):
        raise ValueError(
            f"{field}: {path} is elsewhere; only paths of this machine are read and written. Mount the bucket as a folder "
            "(gcsfuse, mountpoint-s3), or use a local folder and copy it (gcloud storage cp -r, aws s3 cp --recursive)"
        )
    return Path(path)


def model_in(folder: Path) -> str:
    """The name of the file that marks a folder as a model of `transformers`, empty if there is none."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index:
        return index.name
    fields = read_json(folder / "config.json")
    return "config.json" if {"model_type", "architectures"} & fields.keys() else ""


def read_json(path: Path) -> dict:
    """The object in a JSON file; empty if there is no such file, or its contents are not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:  # neither JSON nor text
        return {}
    return value if isinstance(value, dict) else {}


def write_text(path: Path, text: str) -> None:
    """Write a file; one that is there is replaced only once the new one is complete, whenever the process is killed."""
    unfinished = Path(f"{path}.writing")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def identity(path: Path) -> str:
    """The identity of a file in one line: its size and its SHA-256.

    A process reads a file again only if its size or time of change differs.
    """
    about = path.stat()
    return _identity(path.resolve(), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _identity(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{size:,} bytes, SHA-256 {digest}"


def identities(path: Path, patterns: Iterable[str] = ("**/*",)) -> dict[str, str]:
    """The identities of a file, or of the files of a folder that match a pattern, by their paths; empty if `path` is missing."""
    found = [path] if path.is_file() else sorted({file for pattern in patterns for file in path.glob(pattern)})
    return {str(file): identity(file) for file in found if file.is_file()}


def replaced(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """One line for each file whose identity differs from the one before; files that are missing now do not count."""
    return [
        f"{name}: was {before.get(name, 'not noted')}, is now {what}"
        for name, what in now.items()
        if before.get(name) != what
    ]
