"""Search over steps, scored by the log-probabilities of the model: beam search, and DVTS, which is the same in separate subtrees.

Sources: huggingface/search-and-learn (`beam_search.py`, `dvts.py`); Beeching, Tunstall and Rush 2024, "Scaling test-time compute
with open models". The rule, whose rounds are those of a coordinator: the root, which only reads the prompt:

    1. the root forks `beams` x `width` candidates, each of which samples one step: up to a step token, or to the end of its answer;
    2. when all have ended, the root scores them and keeps the best `beams`, or of each subtree its share of them; ties go by path;
    3. it forks `width` candidates from each beam kept, which see it, and are handed its unfed last token; the others are released;
    4. a beam that ended, or broke off for want of budget, is not expanded: it competes on, or leaves the beams (`finished`);
    5. in the last of `steps` rounds step tokens end nothing. The search ends when no beam is left to expand.

A step that several beams share is stored, and counted, once (`apr_jax.protocols.steps`). Nobody is killed while it runs, and the
critical path is the sum over rounds of the longest step.

Where this differs from the published program: the score is the model's own, there it is that of a reward model; `finished` is
"compete" unless one says "leave", as published (finished beams make room, the first beams x width of them are the answers, and the
places of those that are left are filled in turns); DVTS there answers with all `width` last candidates of a subtree, here with the
best one, unless the method's `answers` is "last". What is easily done wrong: a step's last token has no key and value until the
child that is handed it feeds it, so that no end is seen a token late; totals count the tokens of all candidates, kept or not; the
budget of a beam is that of its whole chain, not of its longest step; and a speed-up over the same search by one worker says
nothing, so that tables give the counts of the sequential method beside.
"""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from apr_jax.decode.problem import one_of
from apr_jax.protocols.beams import Beams
from apr_jax.protocols.steps import Beam

Score = Literal["mean", "sum", "last"]


@dataclasses.dataclass(frozen=True)
class BeamSearch(Beams):
    """Beams are ranked by log-probabilities; `subtrees` = 1 is beam search, `subtrees` = `beams` is DVTS as published.

    Attributes:
        score: the mean log-probability of a beam's tokens, the sum of them, or the mean of its last step's.
    """

    score: Score = "mean"

    def __post_init__(self):
        super().__post_init__()
        one_of(f"{self.name}.score", self.score, get_args(Score))

    def merit(self, own: Beam) -> Float[Array, "M"]:
        total, count = (own.step_total, own.step_count) if self.score == "last" else (own.total, own.count)
        scale = 1 if self.score == "sum" else jnp.maximum(count, 1).astype(jnp.float32)
        return total.astype(jnp.float32) / scale
