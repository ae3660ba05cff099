"""Monte Carlo tree search over steps, and depth-first search with pruning."""

import dataclasses
import math
from collections.abc import Mapping

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.judges import Judge, Likelihood
from apr_jax.methods.steps import Steps
from apr_jax.protocols.tree_search import Answer, Policy
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class TreeSearch(Steps):
    """See `apr_jax.protocols.tree_search`. Its first answer is the chosen one, then come the other whole ones, by value.

    Attributes:
        judge: that values nodes.
        policy, explore, simulations, parallel, prune, enough, answer: the choices of the protocol.
    """

    judge: Judge = Likelihood()
    policy: Policy = "ucb"
    explore: float = 1.0
    simulations: int = 32
    parallel: int = 1
    prune: float = -math.inf
    enough: int = 0
    answer: Answer = "visited"

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("simulations", 1), ("parallel", 1), ("enough", 0)):
            whole(f"tree_search.{name}", getattr(self, name), least)

    def made(self, step_ends: tuple[int, ...], end: int) -> protocols.TreeSearch:
        names = ("policy", "explore", "simulations", "parallel", "prune", "enough", "answer")
        return protocols.TreeSearch(**self.choices(step_ends, end), **{name: getattr(self, name) for name in names})

    def protocol(self, codec: TextCodec) -> protocols.TreeSearch:
        return dataclasses.replace(super().protocol(codec), judge=self.judge.made(codec))

    def format_errors(self, transcript: Transcript) -> Mapping[str, int]:
        return self.judge.format_errors(transcript)
