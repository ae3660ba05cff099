"""Adaptive fork and join by control words: the model decides when to fork, and writes each child's task."""

import dataclasses
from collections.abc import Sequence

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.method import Method, Sampling, outside
from apr_jax.protocols.allowance import Allowance
from apr_jax.protocols.phrases import Phrases
from apr_jax.protocols.spawn_join import Context, Returns
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec

ROLES = ("spawn", "wait", "result", "join", "go")
CHOICES = ("max_depth", "context", "returns", "together", "most", "width", "question", "samples")
NUMBER = "{number}"


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Budgets that threads hand down to their children, see `apr_jax.protocols.allowance`.

    Attributes:
        threads, reserve, unit: the choices of the rule.
        threads_text, tokens_text: what a thread is told, in its prompt; `{number}` stands for the number. Empty: it is not told.
        largest: the largest number that is told, threads or units of tokens; more is told as this.
    """

    threads: int = 0
    reserve: int = 0
    unit: int = 16
    threads_text: str = ""
    tokens_text: str = ""
    largest: int = 64

    def __post_init__(self):
        for name, least in (("threads", 0), ("reserve", 0), ("unit", 1), ("largest", 1)):
            whole(f"budgets.{name}", getattr(self, name), least)
        for name, text in self._texts().items():
            if text and NUMBER not in text:
                raise ValueError(f"budgets.{name}_text is {text!r}; it must hold {NUMBER}, where the number is put")

    def _texts(self) -> dict[str, str]:
        return {"threads": self.threads_text, "tokens": self.tokens_text}

    def allowance(self, codec: TextCodec) -> Allowance:
        """The rule, with its phrases in tokens; tokens are told as such, not in units."""
        texts = {
            name: [
                text.replace(NUMBER, str(n * (self.unit if name == "tokens" else 1))) for n in range(self.largest + 1)
            ]
            for name, text in self._texts().items()
            if text
        }
        return Allowance(self.threads, self.reserve, self.unit, Phrases.of(codec, texts))


@dataclasses.dataclass(frozen=True)
class SpawnJoin(Method):
    """See `apr_jax.protocols.spawn_join`.

    Attributes:
        max_depth, context, returns, together, most, width, question, samples: the choices of the protocol.
        allowance: budgets that are handed down; None: there are none.
        spawn, wait, result, join, go: the control words; each must be one id.
    """

    max_depth: int = 1
    context: Context = "isolated"
    returns: Returns = "message"
    together: int = 0
    most: int = 0
    width: int = -1
    question: bool = False
    samples: int = 0
    allowance: Budgets | None = None
    spawn: str = "<spawn>"
    wait: str = "<wait>"
    result: str = "<result>"
    join: str = "<join>"
    go: str = "<go>"

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("max_depth", 1), ("together", 0), ("most", 0), ("width", -1), ("samples", 0)):
            whole(f"{self.name}.{name}", getattr(self, name), least)
        # The protocol checks the combination of choices; any ids will do here.
        any_ids = {role: number for number, role in enumerate((*ROLES, "end"))}
        self._protocol(any_ids, Allowance() if self.allowance else None)

    def check(self, sampling: Sampling) -> Sampling:
        if self.samples > 1:
            sampling.require_chance(f"the {self.samples} samples of each question would be copies of one answer", 0.7)
        return sampling

    def grouped(self, count: int) -> "SpawnJoin":
        if self.samples:
            raise ValueError(
                f"{self.name}.samples is {self.samples}; to hold {count} answers for learning it must be 0"
            )
        return dataclasses.replace(self, samples=count)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(getattr(self, role) for role in ROLES)

    def protocol(self, codec: TextCodec) -> protocols.SpawnJoin:
        ids = {role: codec.id(getattr(self, role)) for role in ROLES}
        allowance = self.allowance.allowance(codec) if self.allowance else None
        return self._protocol({**ids, "end": self.end_id(codec)}, allowance)

    def _protocol(self, ids: dict[str, int], allowance: Allowance | None = None) -> protocols.SpawnJoin:
        choices = {name: getattr(self, name) for name in CHOICES}
        return protocols.SpawnJoin(**ids, **choices, allowance=allowance)

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """The generated tokens without the messages to children, that is, without the tokens from a `spawn` to its `wait`."""
        return outside(transcript.generated(thread), {codec.id(self.spawn)}, {codec.id(self.wait)})
