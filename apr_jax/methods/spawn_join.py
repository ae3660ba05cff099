"""Adaptive fork and join by control words: the model decides when to fork, and writes each child's task."""

import dataclasses
from collections.abc import Sequence

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.method import Method
from apr_jax.protocols.spawn_join import Context, Returns
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec

ROLES = ("spawn", "wait", "result", "join", "go")


@dataclasses.dataclass(frozen=True)
class SpawnJoin(Method):
    """See `apr_jax.protocols.spawn_join`.

    Attributes:
        max_depth, context, returns, together: the choices of the protocol.
        spawn, wait, result, join, go: the control words; each must be one id.
    """

    max_depth: int = 1
    context: Context = "isolated"
    returns: Returns = "message"
    together: int = 0
    spawn: str = "<spawn>"
    wait: str = "<wait>"
    result: str = "<result>"
    join: str = "<join>"
    go: str = "<go>"

    def __post_init__(self):
        super().__post_init__()
        whole("spawn_join.max_depth", self.max_depth, 1)
        whole("spawn_join.together", self.together, 0)
        # The protocol checks the combination of choices; any ids will do here.
        self._protocol({role: number for number, role in enumerate((*ROLES, "end"))})

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(getattr(self, role) for role in ROLES)

    def protocol(self, codec: TextCodec) -> protocols.SpawnJoin:
        ids = {role: codec.id(word) for role, word in zip(ROLES, self.words, strict=True)}
        return self._protocol({**ids, "end": self.end_id(codec)})

    def _protocol(self, ids: dict[str, int]) -> protocols.SpawnJoin:
        choices = {name: getattr(self, name) for name in ("max_depth", "context", "returns", "together")}
        return protocols.SpawnJoin(**ids, **choices)

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """The generated tokens without the messages to children, that is, without the tokens from a `spawn` to its `wait`."""
        spawn, wait = codec.id(self.spawn), codec.id(self.wait)
        kept, message = [], False
        for i in transcript.generated(thread):
            message = (message or i == spawn) and i != wait
            if not message:
                kept.append(i)
        return kept
