"""Measure how long a pretrained model takes to load, and how much memory of the host beyond its parameters.

python -m experiments.measure_load --path work/smollm2.gguf --dtype float32
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from apr_jax import settings
from apr_jax.pretrained import load_pretrained


@dataclasses.dataclass(frozen=True)
class Measure:
    """Settings of the measurement.

    Attributes:
        path: a Hugging Face folder or a GGUF file.
        dtype: of the parameters; by default as stored.
    """

    path: Path = Path("work/smollm2.gguf")
    dtype: str | None = None


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, Measure())
    jax.block_until_ready(jnp.zeros(()))  # what the runtime itself needs is there before the measurement begins
    before, wall, processor = _memory("VmRSS"), time.perf_counter(), time.process_time()
    try:
        model = load_pretrained(config.path, dtype=config.dtype)
    except (FileNotFoundError, ValueError) as error:
        settings.fail(str(error))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(model.params)]
    beyond = _memory("VmHWM") - before - sum(sizes)
    print(
        f"{config.path}: {model.config.parameters:,} parameters, {model.config.param_dtype}, {sum(sizes) / 1e6:.1f} MB\n"
        f"load {wall:.2f} s, of the processor {processor:.2f} s\n"
        f"peak beyond the parameters {beyond / 1e6:.1f} MB, that is {beyond / max(sizes):.2f} of the largest tensor "
        f"({max(sizes) / 1e6:.1f} MB)"
    )
    return 0


def _memory(field: str) -> int:
    """Bytes of this process, from Linux: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
