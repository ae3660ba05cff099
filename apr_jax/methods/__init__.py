"""Methods of parallel reasoning for configurations, one file each: choices, and control words as text."""

from apr_jax.methods.apr_text import AprText
from apr_jax.methods.async_think import AsyncThink
from apr_jax.methods.beam_search import BeamSearch
from apr_jax.methods.call_return import CallReturn
from apr_jax.methods.deepconf import DeepConf
from apr_jax.methods.early_vote import EarlyVote
from apr_jax.methods.gambit import Gambit
from apr_jax.methods.group_think import GroupThink
from apr_jax.methods.hogwild import Hogwild
from apr_jax.methods.launch_prune import LaunchPrune
from apr_jax.methods.method import Method, Sampling
from apr_jax.methods.multiverse import Multiverse
from apr_jax.methods.npr import NPR
from apr_jax.methods.parallel_probe import ParallelProbe
from apr_jax.methods.parallel_r1 import ParallelR1
from apr_jax.methods.parason import Parason
from apr_jax.methods.parathinker import ParaThinker
from apr_jax.methods.pasta import Pasta
from apr_jax.methods.reward_search import RewardSearch
from apr_jax.methods.rounds import Rounds
from apr_jax.methods.samples import Samples
from apr_jax.methods.sequential import Sequential
from apr_jax.methods.skeleton import Skeleton
from apr_jax.methods.spawn_join import SpawnJoin
from apr_jax.methods.sprint import Sprint
from apr_jax.methods.threadweaver import ThreadWeaver
from apr_jax.methods.tree_of_thoughts import TreeOfThoughts
from apr_jax.methods.tree_search import TreeSearch

__all__ = [
    "AprText",
    "AsyncThink",
    "BeamSearch",
    "CallReturn",
    "DeepConf",
    "EarlyVote",
    "Gambit",
    "GroupThink",
    "Hogwild",
    "LaunchPrune",
    "Method",
    "Multiverse",
    "NPR",
    "ParaThinker",
    "ParallelProbe",
    "ParallelR1",
    "Parason",
    "Pasta",
    "RewardSearch",
    "Rounds",
    "Samples",
    "Sampling",
    "Sequential",
    "Skeleton",
    "SpawnJoin",
    "Sprint",
    "ThreadWeaver",
    "TreeOfThoughts",
    "TreeSearch",
]
