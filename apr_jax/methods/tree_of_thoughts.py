"""Tree of thoughts, breadth first, valued by the model itself."""

import dataclasses
from collections.abc import Callable

from apr_jax import protocols
from apr_jax.methods.steps import Steps


@dataclasses.dataclass(frozen=True)
class TreeOfThoughts(Steps):
    """See `apr_jax.protocols.tree_of_thoughts`.

    Attributes:
        ask: the words of the question that a probe is fed, each one id.
        says: the words of which one speaks for a thought, each one id; none: the likeliest, whichever it is.
        quotes: the step token that ended the thought stands before the question.
    """

    ask: tuple[str, ...] = ("<goal>",)
    says: tuple[str, ...] = ()
    quotes: bool = True

    def made(self, ids: Callable[[str], int], end: int) -> protocols.TreeOfThoughts:
        ask, says = (tuple(ids(word) for word in words) for words in (self.ask, self.says))
        return protocols.TreeOfThoughts(**self.choices(ids, end), ask=ask, says=says, quotes=self.quotes)
