"""ParaThinker (Wen et al. 2025, arXiv 2509.04475): paths of thought side by side, then a summary that sees them all.

The rule is that of `apr_jax.protocols.two_stage`. The words are those of the released model, in the order of their ids: `<think1>`,
`</think1>` to `<think8>`, `</think8>`, then `<summary>`, `</summary>`, `<vllm_pad>`. A prompt ends where thinking begins, after
`<think>` in the released format. The model tells paths apart by an embedding if it has one (`ModelConfig.branch_embedding`).
"""

import dataclasses
import math
from typing import Literal, get_args

from apr_jax import protocols
from apr_jax.decode.problem import one_of, whole
from apr_jax.methods.method import Method
from apr_jax.tokenizer import TextCodec

Enough = Literal["first", "half", "last"]
MOST = 8  # paths that have words


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParaThinker(Method):
    """See `apr_jax.protocols.two_stage`. Of the sampling, `child_max_tokens` is the budget of a path, `max_tokens` the summary's.

    Attributes:
        paths: paths of each question, at most 8.
        enough: paths that end the first stage: "first", a tenth of them, as released; "half"; "last", all of them.
        openings: texts that the paths are made to begin with, in turn; none as released.
        phrase: text that the summary is made to begin with.
        block: length of the blocks that the prompt and ended paths are filled up to with `<vllm_pad>`: 16 in the released engine,
            whose pages of keys and values cannot be shared otherwise; 1: nothing is filled up.
    """

    end: str = ""
    paths: int = 4
    enough: Enough = "first"
    openings: tuple[str, ...] = ()
    phrase: str = "By analyzing multiple reasoning processes above, I concluded that: The final answer is"
    block: int = 1

    def __post_init__(self):
        super().__post_init__()
        whole("para_thinker.paths", self.paths, 1, MOST)
        whole("para_thinker.block", self.block, 1)
        one_of("para_thinker.enough", self.enough, get_args(Enough))

    @property
    def words(self) -> tuple[str, ...]:
        thinks = (f"<{slash}think{number}>" for number in range(1, 1 + MOST) for slash in ("", "/"))
        return (*thinks, "<summary>", "</summary>", "<vllm_pad>")

    def protocol(self, codec: TextCodec) -> protocols.TwoStage:
        ids = [codec.id(word) for word in self.words]
        begins, ends = ids[: 2 * MOST : 2], ids[1 : 2 * MOST : 2]
        openings = self.openings or ("",)
        says = [codec.encode(openings[path % len(openings)], continues=True) for path in range(self.paths)]
        think = codec.encode("</think>", continues=True)  # many vocabularies have it, others spell it
        counts = {"first": self.paths / 10, "half": self.paths / 2, "last": self.paths}
        return protocols.TwoStage(
            begins=tuple((begin, *opening) for begin, opening in zip(begins, says, strict=False)),
            ends=tuple(ends[: self.paths]),
            summary=tuple(codec.encode(f"<summary>{self.phrase}", continues=True)),
            close=codec.id("</summary>"),
            stops=(*ends[self.paths :], *(think if len(think) == 1 else ())),
            strays=tuple(begins[self.paths :]),
            enough=math.ceil(counts[self.enough]),
            pad=codec.id("<vllm_pad>"),
            block=self.block,
        )
