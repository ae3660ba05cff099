"""Files that a user names: what they hold can be compared."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path


def identity(path: Path) -> str:
    """What a file holds in a line that differs where the content does: its size and its SHA-256.

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
