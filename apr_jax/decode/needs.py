"""The features that a protocol needs: one declared value, for which the engine is compiled."""

import dataclasses

from apr_jax.decode.signals import Signal


@dataclasses.dataclass(frozen=True)
class Needs:
    """The features of the engine that a protocol needs. A feature that is not declared costs nothing.

    Attributes:
        threads: least number of threads that every problem opens, the root included; a protocol that may fork needs room for
            a child.
        beside: children may run while their parent writes, see `apr_jax.decode.forks`.
        live: threads may see other threads that still run.
        together: 0, or the largest number of live siblings of a fork, which then see each other's tokens of the same clock too
            (Hogwild! Inference).
        races: an event of one thread may end another, see `apr_jax.decode.races`.
        splits: threads may be cut in two, see `apr_jax.decode.lines.split`.
        signals: numbers about every row, kept as `book.threads.drawn.signals`, see `apr_jax.decode.signals`.
        parts: names of the prompt parts that every problem must have (`Problem.parts`), kept as `book.parts` in this order.
        arguments: how many numbers each problem gives to the protocol (`Problem.arguments`), kept as `book.arguments`.
        recorded: the protocol's state is recorded in the transcript.
    """

    threads: int = 1
    beside: bool = False
    live: bool = False
    together: int = 0
    races: bool = False
    splits: bool = False
    signals: tuple[Signal, ...] = ()
    parts: tuple[str, ...] = ()
    arguments: int = 0
    recorded: bool = False

    @property
    def groups(self) -> bool:
        """Whether threads may have to keep pace with other threads."""
        return self.live or self.races
