"""Multiverse (Yang et al. 2025, arXiv 2506.09991; its engine is a fork of SGLang).

1. The model samples until `</Goal>`; the outlines since the last `<Goal>` name the paths. A path may fork again.
2. Each path goes on from all that stands before, at the position after `</Goal>`, with the header `<Path>\\n{number}:`, until
   `</Path>`.
3. The parent sees the keys and values of all paths, and is fed `<Conclusion>\\n` at the position after the longest of them.
4. The paths do not see each other, the conclusion sees them all: the mask that the model was trained under.
5. `</Goal>` without outlines or too deep, and `</Path>` outside a path, are malformed (the published engine leaves it undefined).

Paths follow `</Goal>` directly, and each other, without the new lines that stand between them in the training text, where these
have the positions of no path. A path that broke off is closed by `\\n</Path>` in place of its last token.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from apr_jax import protocols
from apr_jax.methods.outlined import Outlined
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multiverse(Outlined):
    """See `apr_jax.protocols.outlined`.

    Attributes:
        max_depth: how deep paths may nest.
    """

    tag_names = ("Think", "Parallel", "Goal", "Outline", "Path", "Conclusion")
    least: ClassVar[Mapping[str, int]] = {**Outlined.least, "max_depth": 1}
    max_depth: int = 2

    def tags(self) -> Mapping[str, str]:
        return {"outlines": "<Goal>", "fork": "</Goal>", "outline": "<Outline>", "close": "</Path>"}

    def says(self, numbers: Sequence[str]) -> Mapping[str, str | Sequence[str]]:
        return {
            "header": [f"<Path>\n{number}:" for number in numbers],
            "close": "\n</Path>",
            "joined": "<Conclusion>\n",
        }

    def protocol(self, codec: TextCodec) -> protocols.Outlined:
        return self._protocol(codec, join="stitch", max_depth=self.max_depth)
