"""Methods of parallel reasoning for configurations, one file each: choices, and control words as text."""

from apr_jax.methods.apr_text import AprText
from apr_jax.methods.beam_search import BeamSearch
from apr_jax.methods.early_vote import EarlyVote
from apr_jax.methods.method import Method, Sampling
from apr_jax.methods.multiverse import Multiverse
from apr_jax.methods.reward_search import RewardSearch
from apr_jax.methods.samples import Samples
from apr_jax.methods.sequential import Sequential
from apr_jax.methods.spawn_join import SpawnJoin
from apr_jax.methods.threadweaver import ThreadWeaver
from apr_jax.methods.tree_of_thoughts import TreeOfThoughts

__all__ = [
    "AprText",
    "BeamSearch",
    "EarlyVote",
    "Method",
    "Multiverse",
    "RewardSearch",
    "Samples",
    "Sampling",
    "Sequential",
    "SpawnJoin",
    "ThreadWeaver",
    "TreeOfThoughts",
]
