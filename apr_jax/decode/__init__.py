"""Decoding with threads: one compiled program per (model, protocol, sizes), whatever the model decides.

`decode(model, problems, protocol, sizes, seed)` returns transcripts. An `Engine` compiles once, runs slice by slice and counts
its traces in `Engine.traces`.
"""

from apr_jax.decode.engine import Engine, decode
from apr_jax.decode.problem import Problem
from apr_jax.decode.progress import Progress
from apr_jax.decode.sizes import Sizes
from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript

__all__ = [
    "Engine", "Log", "Problem", "Progress", "Sizes", "Source", "Stop", "ThreadRecord", "Transcript", "decode",
]  # fmt: skip
