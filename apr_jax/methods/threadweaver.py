"""ThreadWeaver (Lian et al. 2025, arXiv 2512.07843; the client that was released with it).

1. The model samples until `</Outlines>` or the end of the text; the outlines since the last `<Outlines>` name the threads.
2. Each thread goes on from all that stands before, and the header `\\n<Thread>\\n{number}:`, until `</Thread>` or the end of the
   text.
3. The text of all threads joins the context in the order of the outlines, `<Thread>\\n{number}:` before all but the first; one
   that broke off is closed by `\\n</Thread>`.
4. If one broke off, or the response is long enough, `\\n</Parallel>` follows and all ends. Otherwise a new line follows, and the
   model goes on: it writes `</Parallel>` itself (the paper says otherwise; the released code decides). With conclusions,
   `<Conclusion>` follows between new lines.
5. There is one level of threads; words that mean nothing where they are sampled are text.

What the threads of a rollout saw differs from what the joined text shows: all but the first have lost the new line of their
header. That is the client's rule, and is kept; training reads from the log what each token saw. Where the client leaves a case
open: outlines count only if the model wrote `<Outlines>` before them since the last join, a text that ends inside a list of
outlines is malformed, and so is a number above `most`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from apr_jax import protocols
from apr_jax.methods.outlined import Outlined
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreadWeaver(Outlined):
    """See `apr_jax.protocols.outlined`.

    Attributes:
        conclusion: the model is made to conclude after each join.
        response: tokens of a response, joined text included; 0: only the budgets of threads bound it. A thread may use what is left
            of it at the fork.
    """

    tag_names = ("Think", "Parallel", "Outlines", "Outline", "Thread", "Conclusion")
    least: ClassVar[Mapping[str, int]] = {**Outlined.least, "response": 0}
    conclusion: bool = False
    response: int = 0

    def tags(self) -> Mapping[str, str]:
        return {"outlines": "<Outlines>", "fork": "</Outlines>", "outline": "<Outline>", "close": "</Thread>"}

    def says(self, numbers: Sequence[str]) -> Mapping[str, str | Sequence[str]]:
        return {
            "header": [f"\n<Thread>\n{number}:" for number in numbers],
            "again": [f"<Thread>\n{number}:" for number in numbers],
            "close": "\n</Thread>",
            "joined": "\n<Conclusion>\n" if self.conclusion else "\n",
            "stop": "\n</Parallel>",
        }

    def protocol(self, codec: TextCodec) -> protocols.Outlined:
        return self._protocol(codec, join="reencode", response=self.response)
