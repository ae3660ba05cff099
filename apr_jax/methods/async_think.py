"""An organizer that forks workers by name, writes on beside them, and joins them by name."""

import dataclasses
from collections.abc import Sequence

from apr_jax import protocols
from apr_jax.decode.problem import whole
from apr_jax.methods.method import Method, outside
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Transcript
from apr_jax.tokenizer import TextCodec

QUERY = "{query}"


@dataclasses.dataclass(frozen=True)
class AsyncThink(Method):
    """See `apr_jax.protocols.async_think`. Its words must be one id each.

    Attributes:
        numbers: forks of an organizer: `<FORK-1>` up to this.
        agents: the pool, the organizer included; 2 or 4 as published.
        max_depth: nesting of workers.
        worker: the prompt of a worker; `{query}` stands for the sub-query.
    """

    numbers: int = 8
    agents: int = 4
    max_depth: int = 1
    worker: str = "Question: {query}\nAnswer:"

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("numbers", 1), ("agents", 2), ("max_depth", 1)):
            whole(f"async_think.{name}", getattr(self, name), least)
        before, query, after = self.worker.partition(QUERY)
        if not (before and query and after) or QUERY in after:
            raise ValueError(
                f"async_think.worker is {self.worker!r}; it must hold {QUERY} once, with text before and after it"
            )

    def _each(self, tag: str) -> tuple[str, ...]:
        return tuple(f"<{tag}-{number}>" for number in range(1, self.numbers + 1))

    @property
    def words(self) -> tuple[str, ...]:
        numbered = (word for tag in ("FORK", "/FORK", "JOIN", "/JOIN") for word in self._each(tag))
        return (*numbered, "<RETURN>", "</RETURN>")

    def protocol(self, codec: TextCodec) -> protocols.AsyncThink:
        before, _, after = self.worker.partition(QUERY)
        ids = lambda tag: tuple(codec.id(word) for word in self._each(tag))
        return protocols.AsyncThink(
            forks=ids("FORK"),
            fork_ends=ids("/FORK"),
            joins=ids("JOIN"),
            returns=codec.id("<RETURN>"),
            return_end=codec.id("</RETURN>"),
            end=self.end_id(codec),
            phrases=Phrases.of(codec, {"worker": before, "asks": after, "joined": self._each("/JOIN")}),
            agents=self.agents,
            max_depth=self.max_depth,
        )

    def said(self, transcript: Transcript, thread: int, codec: TextCodec) -> Sequence[int]:
        """The generated tokens without the sub-queries, that is, without the tokens from a `<FORK-i>` to its `</FORK-i>`."""
        begins, ends = (frozenset(codec.id(word) for word in self._each(tag)) for tag in ("FORK", "/FORK"))
        return outside(transcript.generated(thread), begins, ends)
