"""The machine that decoded: Python, jax, devices, processor, and the kernels of attention and products."""

import dataclasses
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from apr_jax.decode import Engine, native
from apr_jax.decode.native.product import Packed

INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
"""Flags of a processor on which the CPU kernels choose their path, the richest first."""
XLA = "XLA"
_INFO = Path("/proc/cpuinfo")


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine of an engine.

    Attributes:
        python, jax: versions.
        device: jax's name of the devices of the mesh ("cpu", "NVIDIA H100 80GB HBM3").
        devices: number of devices.
        processor: name of the host's processor.
        instructions: those of `INSTRUCTIONS` that the processor has.
        attention, products: the CPU kernel that computes them (see `apr_jax.decode.native`), or "XLA".
    """

    python: str
    jax: str
    device: str
    devices: int
    processor: str
    instructions: tuple[str, ...]
    attention: str
    products: str

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> "Machine":
        """From its fields as read from JSON."""
        return cls(**{**entry, "instructions": tuple(entry["instructions"])})

    def __str__(self) -> str:
        count = f"{self.devices} x " if self.devices > 1 else ""
        flags = f" ({', '.join(self.instructions)})" if self.instructions else ""
        return (
            f"Python {self.python}, jax {self.jax}, device {count}{self.device}, processor {self.processor}{flags}, "
            f"attention by {_by(self.attention)}, products by {_by(self.products)}"
        )


def of(engine: Engine) -> Machine:
    """The machine of an engine; each process of a mesh reports the processor of its own host."""
    devices = engine.mesh.devices
    attention = products = XLA
    if engine.program.kernel:
        attention = native.attention_path(engine.placement.dtype, engine.model.config.head_dim)
        leaves = jax.tree.leaves(engine.model.params, is_leaf=lambda leaf: isinstance(leaf, Packed))
        products = native.product_path() if any(isinstance(leaf, Packed) for leaf in leaves) else XLA
    found = flags()
    return Machine(
        python=platform.python_version(),
        jax=jax.__version__,
        device=devices.flat[0].device_kind,
        devices=devices.size,
        processor=processor(),
        instructions=tuple(flag for flag in INSTRUCTIONS if flag in found),
        attention=attention,
        products=products,
    )


def processor() -> str:
    """The name of the processor: from Linux, elsewhere from Python."""
    return _field("model name") or platform.processor() or platform.machine()


def flags() -> tuple[str, ...]:
    """The instructions of the processor by their Linux names; none on other systems."""
    return tuple(_field("flags").split())


def _by(path: str) -> str:
    return path if path == XLA else f"CPU kernels ({path})"


def _field(name: str) -> str:
    found = re.search(rf"^{name}\s*: (.+)$", _INFO.read_text() if _INFO.is_file() else "", re.MULTILINE)
    return found[1] if found else ""
