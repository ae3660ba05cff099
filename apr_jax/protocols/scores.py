"""What methods rank running lines of reasoning by: a scorer that reads hidden states, or the model's own log-probabilities."""

from typing import Literal, get_args

from apr_jax.decode.problem import one_of
from apr_jax.decode.signals import Scorer, Signal

Score = Literal["scorer", "logprob"]


def check_score(name: str, score: Score) -> None:
    """Refuse a score that is none; `name`: of the protocol."""
    one_of(f"{name}.score", score, get_args(Score))


def signals(score: Score, hidden: int) -> tuple[Signal, ...]:
    """The signals that a score is read from; `hidden`: units of the scorer."""
    return (Scorer(hidden),) if score == "scorer" else ()
