"""Protocols: the engine's part of methods of parallel reasoning, one file each."""

from apr_jax.protocols.beam_search import BeamSearch
from apr_jax.protocols.early_vote import EarlyVote
from apr_jax.protocols.outlined import Outlined
from apr_jax.protocols.reward_search import RewardSearch
from apr_jax.protocols.samples import Samples
from apr_jax.protocols.sequential import Sequential
from apr_jax.protocols.spawn_join import SpawnJoin
from apr_jax.protocols.text_client import TextClient
from apr_jax.protocols.tree_of_thoughts import TreeOfThoughts
from apr_jax.protocols.two_stage import TwoStage

__all__ = [
    "BeamSearch",
    "EarlyVote",
    "Outlined",
    "RewardSearch",
    "Samples",
    "Sequential",
    "SpawnJoin",
    "TextClient",
    "TreeOfThoughts",
    "TwoStage",
]
