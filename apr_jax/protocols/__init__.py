"""Protocols: the engine's part of methods of parallel reasoning, one file each."""

from apr_jax.protocols.samples import Samples
from apr_jax.protocols.sequential import Sequential
from apr_jax.protocols.spawn_join import SpawnJoin

__all__ = ["Samples", "Sequential", "SpawnJoin"]
