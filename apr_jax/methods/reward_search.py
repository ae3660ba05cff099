"""Search over steps with a process reward model, as configurations name it."""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np

from apr_jax import protocols
from apr_jax.decode.host import Host, Question, Said
from apr_jax.methods.steps import Beams
from apr_jax.tokenizer import TextCodec


class Reward(abc.ABC):
    """A process reward model, or a verifier."""

    @abc.abstractmethod
    def scores(self, beams: Sequence[Sequence[int]], codec: TextCodec) -> Sequence[float]:
        """How good each beam is, the larger the better. A score may depend on nothing but the beam: token ids, prompt included."""


@dataclasses.dataclass(frozen=True)
class Scorer(Host):
    """Scores the candidates of all searches that wait as one batch."""

    reward: Reward
    codec: TextCodec
    candidates: int

    def reply(self, questions: Sequence[Question]) -> list[Said]:
        beams = [view.token for question in questions for view in question.joined]
        scores, said = np.asarray(self.reward.scores(beams, self.codec), np.float32), []
        for question in questions:
            mine, scores = np.split(scores, [len(question.joined)])
            said.append(Said(values=np.resize(np.append(mine, np.zeros(self.candidates)), self.candidates).tolist()))
        return said


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSearch(Beams):
    """See `apr_jax.protocols.reward_search`.

    Attributes:
        reward: what scores the beams.
    """

    reward: Reward

    def made(self, step_ends: tuple[int, ...], end: int) -> protocols.RewardSearch:
        return protocols.RewardSearch(**self.choices(step_ends, end))

    def host(self, codec: TextCodec) -> Scorer:
        return Scorer(self.reward, codec, self.beams * self.width)
