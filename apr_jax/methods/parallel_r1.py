"""Parallel-R1 (Zheng et al. 2025, arXiv 2509.07980; the agent loop that was released with it): see `apr_jax.protocols.paths`.

Seen (`join` reencode): the summary sees the second path as if it had been written after the first. Unseen (`join` stitch): paths do
not see each other, and both begin at the position after `<Parallel>`, in rollouts as in training.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, get_args

from apr_jax import protocols
from apr_jax.decode.problem import one_of
from apr_jax.decode.recogniser import Names
from apr_jax.methods.outlined import Tagged
from apr_jax.protocols.outlined import Join
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelR1(Tagged):
    """See `apr_jax.protocols.paths`.

    Attributes:
        join: how paths come back.
        paths: of one fork.
        response: tokens of a response, joined text included; 0: only the budgets of threads bound it.
        path_temperature: that paths are sampled at.
    """

    tag_names = ("Parallel", "Path", "Summary")
    least: ClassVar[Mapping[str, int]] = {"paths": 1, "response": 0}
    blocks: int = 4
    join: Join = "reencode"
    paths: int = 2
    response: int = 3000
    path_temperature: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        one_of(f"{self.name}.join", self.join, get_args(Join))
        if not 0 <= self.path_temperature < math.inf:
            raise ValueError(f"{self.name}.path_temperature is {self.path_temperature}; it must be 0 (greedy) or more")

    def tags(self) -> Mapping[str, str]:
        return {"fork": "<Parallel>", "close": "</Path>", "resume": "</Summary>"}

    def says(self, numbers: Sequence[str]) -> Mapping[str, str | Sequence[str]]:
        paths, summary = ["<Path>" for _ in numbers], "</Parallel>\n<Summary>"
        again = {"again": paths, "stop": summary} if self.join == "reencode" else {}
        return {"header": paths, "close": "</Path>", "joined": summary, "resume": "</Summary>", **again}

    def numbers(self) -> Names:
        return Names.numbers(self.paths)

    def protocol(self, codec: TextCodec) -> protocols.Paths:
        return self._protocol(
            codec,
            protocols.Paths,
            join=self.join,
            most=self.paths,
            response=self.response,
            mends=True,
            temperature=self.path_temperature,
        )
