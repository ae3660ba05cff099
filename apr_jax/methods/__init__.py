"""Methods of parallel reasoning for configurations, one file each: choices, and control words as text."""

from apr_jax.methods.method import Method, Sampling
from apr_jax.methods.samples import Samples
from apr_jax.methods.sequential import Sequential
from apr_jax.methods.spawn_join import SpawnJoin

__all__ = ["Method", "Samples", "Sampling", "Sequential", "SpawnJoin"]
