"""Calls and returns, as configurations name them: one isolated child at a time, to any depth."""

import dataclasses

from apr_jax.methods.spawn_join import SpawnJoin

UNBOUNDED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class CallReturn(SpawnJoin):
    """`SpawnJoin` with other words and choices (recursive models, Yang, Srebro and Li 2026; their words are not published).

    A frame samples `<call> sub-problem </call>`; the callee is fed question and sub-problem, and samples `<return> result
    </return>`; the caller is fed the result. The root returns as well, or just answers and ends with `end`.
    """

    max_depth: int = UNBOUNDED
    most: int = 1
    question: bool = True
    end: str = "</return>"
    spawn: str = "<call>"
    wait: str = "</call>"
    result: str = "<result>"
    join: str = "<return>"
    go: str = "<go>"

    @property
    def words(self) -> tuple[str, ...]:
        return (*super().words, self.end) if self.end else super().words
