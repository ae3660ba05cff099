"""Countdown in the published text format: the task, and what APR's client must know of it."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal, get_args

from apr_jax.decode.problem import one_of
from apr_jax.methods import apr_text
from apr_jax.tasks.countdown import published, verify
from apr_jax.tasks.countdown.problems import Problem
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.tokenizer import TextCodec

Form = Literal["apr", "sos"]

GOAL = "Goal Reached"
_NUMBERS = r"(\d{1,18}):\[(\d{1,18}(?:, \d{1,18})*)\]"
_STATE = re.compile(rf"Current State: {_NUMBERS}, Operations: \[((?:'[^']*'(?:, '[^']*')*)?)\]")
_GENERATED = re.compile(rf"Generated Node #([0-9,]+): {_NUMBERS} Operation: (.*)")
_MOVING = "Moving to Node #"


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a node: the target, the numbers that are left, and the operations so far."""

    target: int
    nums: tuple[int, ...]
    operations: tuple[str, ...]


def states(text: str) -> dict[str, State]:
    """The states of the nodes that a search describes, by name: of those that it moves to, then of those that it generates."""
    lines, found = text.split("\n"), {}
    for line, after in zip(lines, lines[1:], strict=False):
        match = _STATE.search(after)
        if _MOVING in line and match:
            operations = tuple(match[3].strip("'").split("', '")) if match[3] else ()
            found[line.split(_MOVING)[1].strip()] = State(int(match[1]), _numbers(match[2]), operations)
    for match in filter(None, map(_GENERATED.search, lines)):
        name, mother = match[1], found.get(match[1].rpartition(",")[0])
        if name not in found and mother:
            operations = (*mother.operations, match[4].strip())
            found[name] = State(int(match[2]), _numbers(match[3]), operations)
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(", ")))


@dataclasses.dataclass(frozen=True)
class CountdownSearch(apr_text.Search):
    """What APR's client reads in the text of a search."""

    def prompts(self, text: str, nodes: Sequence[str]) -> list[str] | None:
        known = states(text)
        if any(node not in known for node in nodes):
            return None
        return [published.state_prompt(node, **vars(known[node])) for node in nodes]

    def result(self, text: str) -> str | None:
        """The summary of the path to the goal, which follows the goal itself."""
        before, found, last = text.rpartition(GOAL)
        _, again, path = before.rpartition(GOAL)
        return f"{GOAL}{path}{GOAL}{last}".strip()[len(GOAL) + 1 :] if found and again else None


@dataclasses.dataclass(frozen=True)
class CountdownText(Countdown):
    """Countdown for models of the published format; the answer is the summary of the path to the goal.

    Attributes:
        form: of APR, or of the serial searches (SoS+).
        budget: what the prompt of a conditioned model allows: child threads (apr), or tokens in steps of 512 (sos).
    """

    form: Form = "apr"
    budget: int | None = None

    def __post_init__(self):
        super().__post_init__()
        one_of("form", self.form, get_args(Form))
        self.text(Problem((1, 2), 3))  # refuses a budget

    def text(self, question: Problem) -> str:
        """The prompt, whose last line the model itself ends."""
        make = published.apr_prompt if self.form == "apr" else published.sos_prompt
        return make(question, self.budget).removesuffix("\n")

    def prompt(self, question: Problem, codec: TextCodec) -> list[int]:
        return apr_text.encoded(codec, self.text(question))

    def answer(self, ids: Sequence[int], codec: TextCodec) -> str | None:
        return CountdownSearch().result(apr_text.decoded(codec, ids))

    def grade(self, pairs: Sequence[tuple[Problem, str]]) -> list[bool]:
        return [verify.check_published(problem, f"{GOAL}\n{answer}") for problem, answer in pairs]
