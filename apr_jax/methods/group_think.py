"""Group Think (Hsu et al. 2025, arXiv 2505.11107): thinkers that see each other while they write; and LaneRoPE's lanes."""

import dataclasses

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.method import Method
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class GroupThink(Method):
    """See `apr_jax.protocols.group_think`. All thinkers answer; a selector (`apr_jax.evaluate.select`) chooses.

    Attributes:
        count: thinkers of each question.
        opening: text that each is made to begin with, `{number}` in it its number from 1 on.
        ranges: each has a range of positions of its own. Without, models with `ModelConfig.branch_stride` tell thinkers apart
            (LaneRoPE), others do not.
    """

    end: str = ""
    count: int = 4
    opening: str = "Thinker {number}:"
    ranges: bool = True

    def __post_init__(self):
        super().__post_init__()
        whole("group_think.count", self.count, 2)

    def protocol(self, codec: TextCodec) -> protocols.GroupThink:
        texts = (self.opening.replace("{number}", str(number)) for number in range(1, 1 + self.count))
        openings = tuple(tuple(codec.encode(text, continues=True)) for text in texts)
        return protocols.GroupThink(openings, self.end_id(codec), self.ranges)
