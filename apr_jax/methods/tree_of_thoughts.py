"""Tree of thoughts, breadth first, valued by the model itself."""

import dataclasses

from apr_jax import protocols
from apr_jax.methods.judges import Asked, Judge
from apr_jax.methods.steps import Beams
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class TreeOfThoughts(Beams):
    """See `apr_jax.protocols.tree_of_thoughts`.

    Attributes:
        judge: that values thoughts.
    """

    judge: Judge = Asked()

    def made(self, step_ends: tuple[int, ...], end: int) -> protocols.TreeOfThoughts:
        return protocols.TreeOfThoughts(**self.choices(step_ends, end))

    def protocol(self, codec: TextCodec) -> protocols.TreeOfThoughts:
        return dataclasses.replace(super().protocol(codec), judge=self.judge.made(codec))
