"""Tree of thoughts, breadth first: thoughts are sampled, and valued by the model itself.

Source: Yao et al. 2023, arXiv 2305.10601, section 3 and algorithm 1 (ToT-BFS); princeton-nlp/tree-of-thought-llm, `bfs.py`, with
`sample` to generate, `value` or `vote` to evaluate, and `greedy` to select. The rule:

    1. as in `apr_jax.protocols.beam_search`, candidates sample one thought, up to a step token or to the end of their answer;
    2. when all have ended, the judge's threads are forked from each: they see the candidate, and are fed a question;
    3. `Asked`: one probe a candidate, which samples nothing; the value is read off its last row: the log-probability that a word of
       `says` comes next, or, if there are none, that of the likeliest token, which is how sure the model is of what it would say.
       `Labelled`: several threads a candidate say what they think, up to a label; the value is the sum of their labels' numbers;
       `Vote`: several threads read all candidates, and each votes for one (`apr_jax.protocols.votes`);
    4. when all of them have ended, the root keeps the `beams` candidates of the greatest value, and ties go by path;
    5. it forks the next thoughts from those, up to `steps` times. Thoughts that end the answer are valued once, and compete on.

The same with thoughts that are proposed, as the lines of one text, is `apr_jax.protocols.proposals`; depth first, with pruning,
`apr_jax.protocols.tree_search`. Where this differs from the published program: a thread that values ends with its first label, not
with the last line of its text; a probe says no label at all; and copies are left out before they are asked (`distinct`), which
there get the value 0.

What is easily done wrong: the step token that ended a thought has no key and value, so the judge's threads are handed it (`quotes`)
or the question follows the thought without it, but the next thought always is; and the tokens of questions are fed tokens, counted
as such, while the critical path grows by generated tokens only, so that a probe adds latency but no critical path.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apr_jax.decode.book import Book
from apr_jax.protocols.beams import Beams
from apr_jax.protocols.judges import Judged, Thought
from apr_jax.protocols.votes import Vote


@dataclasses.dataclass(frozen=True)
class TreeOfThoughts(Judged, Beams):
    """Thoughts are ranked by their values."""

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.judge, Vote) and self.judge.choices < self.candidates:
            raise ValueError(
                f"{self.name}.judge has {self.judge.choices} numbers; its {self.candidates} candidates need one each"
            )

    def merit(self, own: Thought) -> Float[Array, "M"]:
        return own.value.astype(jnp.float32)

    def decide(self, book: Book, thread: Int[Array, ""]) -> Book:
        return self.expand(self.keep(book), thread)
