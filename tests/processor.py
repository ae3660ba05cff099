"""The processor that runs the tests, as Linux describes it."""

import platform
import re
from pathlib import Path

_INFO = Path("/proc/cpuinfo")
# What the CPU kernels name a path, by the flag of the processor that it needs; the richest first.
_NEEDS = {"AMX": "amx_bf16", "AVX512-BF16": "avx512_bf16", "AVX-512": "avx512f", "AVX2": "avx2"}


def name() -> str:
    return _field("model name") or platform.processor() or platform.machine()


def paths() -> list[str]:
    """The paths of the kernels that this processor can take, the richest first."""
    flags = _field("flags").split()
    return [path for path, flag in _NEEDS.items() if flag in flags] or ["other"]


def _field(field: str) -> str:
    found = re.search(rf"^{field}\s*: (.+)$", _INFO.read_text() if _INFO.is_file() else "", re.MULTILINE)
    return found[1] if found else ""
