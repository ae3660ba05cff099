"""Files and folders that a user names: what cannot be reached is refused by name, and what they hold can be compared."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/\S*")  # a pathlib.Path has one slash left of "gs://"


def local(path: str | Path, field: str) -> Path:
    """A path, if it is one of this machine's.

    Args:
        path: what was given.
        field: whose value it is, for the message.

    Raises:
        ValueError: it names a place elsewhere, such as `gs://bucket/run`.
    """
    if ELSEWHERE.fullmatch(str(path)):
        raise ValueError(
            f"{field}: {path} is elsewhere; only paths of this machine are read and written. Mount the bucket as a folder "
            "(gcsfuse, mountpoint-s3), or use a local folder and copy it (gcloud storage cp -r, aws s3 cp --recursive)"
        )
    return Path(path)


def model_in(folder: Path) -> str:
    """The file that makes a folder a model's as `transformers` has them, empty if there is none."""
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index:
        return index.name
    fields = read_json(folder / "config.json")
    return "config.json" if {"model_type", "architectures"} & fields.keys() else ""


def read_json(path: Path) -> dict:
    """The object in a file of JSON; empty if there is no such file, or something else in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:  # neither JSON nor text
        return {}
    return value if isinstance(value, dict) else {}


def identity(path: Path) -> str:
    """The identity of a file in one line: its size and its SHA-256.

    A file that looks untouched (same size and time of change) is read once in the life of a process.
    """
    about = path.stat()
    return _identity(path.resolve(), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _identity(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{size:,} bytes, SHA-256 {digest}"


def identities(path: Path, patterns: Iterable[str] = ("**/*",)) -> dict[str, str]:
    """The identity of a file, or of the files of a folder that fit a pattern, by their paths; empty if nothing is there."""
    found = [path] if path.is_file() else sorted({file for pattern in patterns for file in path.glob(pattern)})
    return {str(file): identity(file) for file in found if file.is_file()}


def replaced(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """One line for each file that is there now and is not the one that was there before."""
    return [
        f"{name}: was {before.get(name, 'not noted')}, is now {what}"
        for name, what in now.items()
        if before.get(name) != what
    ]
