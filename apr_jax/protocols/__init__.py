"""Protocols: the engine's part of methods of parallel reasoning, one file each."""

from apr_jax.protocols.async_think import AsyncThink
from apr_jax.protocols.beam_search import BeamSearch
from apr_jax.protocols.deepconf import DeepConf
from apr_jax.protocols.early_vote import EarlyVote
from apr_jax.protocols.gambit import Gambit
from apr_jax.protocols.group_think import GroupThink
from apr_jax.protocols.hogwild import Hogwild
from apr_jax.protocols.launch_prune import LaunchPrune
from apr_jax.protocols.outlined import Outlined
from apr_jax.protocols.parallel_probe import ParallelProbe
from apr_jax.protocols.paths import Paths
from apr_jax.protocols.plan_execute import PlanExecute
from apr_jax.protocols.promises import Promises
from apr_jax.protocols.proposals import Proposals
from apr_jax.protocols.reward_search import RewardSearch
from apr_jax.protocols.rounds import Rounds
from apr_jax.protocols.samples import Samples
from apr_jax.protocols.sequential import Sequential
from apr_jax.protocols.skeleton import Skeleton
from apr_jax.protocols.spawn_join import SpawnJoin
from apr_jax.protocols.text_client import TextClient
from apr_jax.protocols.tree_of_thoughts import TreeOfThoughts
from apr_jax.protocols.tree_search import TreeSearch
from apr_jax.protocols.trials import Trials
from apr_jax.protocols.two_stage import TwoStage

__all__ = [
    "AsyncThink",
    "BeamSearch",
    "DeepConf",
    "EarlyVote",
    "Gambit",
    "GroupThink",
    "Hogwild",
    "LaunchPrune",
    "Outlined",
    "ParallelProbe",
    "Paths",
    "PlanExecute",
    "Promises",
    "Proposals",
    "RewardSearch",
    "Rounds",
    "Samples",
    "Sequential",
    "Skeleton",
    "SpawnJoin",
    "TextClient",
    "TreeOfThoughts",
    "TreeSearch",
    "Trials",
    "TwoStage",
]
