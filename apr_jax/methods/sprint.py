"""SPRINT: a planner and executors of its prompts, in rounds."""

import dataclasses

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.methods.method import Method
from apr_jax.protocols.phrases import Phrases
from apr_jax.tokenizer import TextCodec

TAGS = {
    "prompt": "<prompt_",
    "prompt_end": "</prompt_",
    "plan_end": "</Plan_",
    "answer_end": "</Final_answer>",
    "think_end": "</think>",
    "execution_end": "</execution_",
    "executions_end": "</Execution_",
}


@dataclasses.dataclass(frozen=True)
class Sprint(Method):
    """See `apr_jax.protocols.plan_execute`. Its tags are text, as published, or ids of their own up to their numbers.

    Attributes:
        most: prompts of a plan.
        phases: of which the last only answers.
        plan_tokens: that the planner may sample in a phase; 0: only its budget bounds it.
    """

    end: str = ""
    most: int = 8
    phases: int = 12
    plan_tokens: int = 1000

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("most", 1), ("phases", 1), ("plan_tokens", 0)):
            whole(f"sprint.{name}", getattr(self, name), least)

    @property
    def words(self) -> tuple[str, ...]:
        return ("<Plan_", "<Execution_", "<execution_", "<Final_answer>", *TAGS.values())

    def protocol(self, codec: TextCodec) -> protocols.PlanExecute:
        phases, numbers = range(1, self.phases + 1), range(1, self.most + 1)
        pairs = [f"{phase}.{number}" for phase in phases for number in numbers]
        says = {
            "plan": [*(f"<Plan_{phase}>\n" for phase in phases[:-1]), "<Final_answer>\n"],
            "prompt": [f"<prompt_{phase}.1>" for phase in phases],
            "prompt_end": [f"</prompt_{phase}.1>" for phase in phases],
            "execute": [f"</Plan_{phase}>\n\n<Execution_{phase}>\n<execution_{phase}.1>\n" for phase in phases],
            "executions": [f"{phase}>\n\n<Execution_{phase}>\n" for phase in phases],
            "execution": [f"<execution_{pair}>\n" for pair in pairs],
            "execution_end": [f"</execution_{pair}>\n" for pair in pairs],
            "executed": [f"</Execution_{phase}>\n" for phase in phases],
        }
        phrases = [Phrase(name, text, ">" if name.startswith("prompt") else "") for name, text in TAGS.items()]
        return protocols.PlanExecute(
            Recogniser.of(codec, phrases),
            Phrases.of(codec, says),
            self.end_id(codec),
            most=self.most,
            phases=self.phases,
            plan_tokens=self.plan_tokens,
        )
