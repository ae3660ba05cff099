"""NPR, the native parallel reasoner (Wu et al. 2025, arXiv 2512.07461; its engine is a fork of Multiverse's).

1. The model samples until `</guideline>`; the plans since the last `<guideline>` name the steps, five at most.
2. Each step goes on from all that stands before, with the header `\\n<step>\\n{number}:`, until `</step>`.
3. The parent sees the keys and values of all steps, and is fed `<takeaway>\\n` at the position after the longest of them.
4. Inside steps, and nowhere else, what a step has sampled is penalised (1.02): repetition is what stops long ones.
5. What a step writes counts for the response as often as there are steps beside it. A fork too deep, or for which fewer than 1,024
   tokens are left, is refused: the model goes on as if it had not asked. It is counted.

No plans, more than five, and a tag outside its place end the thread as malformed, where the released engine ends the request. It
keeps one object of sampling parameters for a parent and its steps, and resets that object when one of them joins; here each thread
has the penalty of its own place. In its rollouts the new line of a header has the position that `<step>` has in training, as here.
Its repaired cache and its two surplus tokens after a tag have no counterpart. Training has one
level (`max_depth` 1); the engine allows five. A step that broke off is closed by `\\n</step>` in place of its last token.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from apr_jax import protocols
from apr_jax.methods.outlined import Outlined
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class NPR(Outlined):
    """See `apr_jax.protocols.outlined`.

    Attributes:
        max_depth: how deep steps may nest.
        response: tokens of a response; the released engine has 128 less than its `max_new_tokens`. 0: only the budgets of threads
            bound it, and no fork is refused.
        reserve: tokens of the response that must be left for a fork.
        penalty: on what a step repeats of itself; 1 is none.
    """

    tag_names = ("guideline", "plan", "step", "takeaway")
    least: ClassVar[Mapping[str, int]] = {**Outlined.least, "max_depth": 1, "response": 0, "reserve": 0}
    most: int = 5
    largest: int = 50
    max_depth: int = 5
    response: int = 30_000 - 128
    reserve: int = 1024
    penalty: float = 1.02

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.penalty < math.inf:
            raise ValueError(f"npr.penalty is {self.penalty}; it must be above 0 and finite, 1 for none")
        if self.response and self.reserve >= self.response:
            raise ValueError(
                f"npr.reserve is {self.reserve}; every fork would be refused, it must be less than response = {self.response}"
            )

    def tags(self) -> Mapping[str, str]:
        return {"outlines": "<guideline>", "fork": "</guideline>", "outline": "<plan>", "close": "</step>"}

    def says(self, numbers: Sequence[str]) -> Mapping[str, str | Sequence[str]]:
        return {
            "header": [f"\n<step>\n{number}:" for number in numbers],
            "close": "\n</step>",
            "joined": "<takeaway>\n",
        }

    def protocol(self, codec: TextCodec) -> protocols.Outlined:
        return self._protocol(
            codec,
            join="stitch",
            max_depth=self.max_depth,
            response=self.response,
            shares=True,
            reserve=self.reserve if self.response else 0,
            penalty=self.penalty,
        )
