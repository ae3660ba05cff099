"""The features that a protocol needs: one declared value, for which the engine is compiled."""

import dataclasses

from apr_jax.decode.signals import Signal


@dataclasses.dataclass(frozen=True)
class Asks:
    """What a reply of the host holds at most, see `apr_jax.decode.host`.

    Attributes:
        messages: messages, for the thread that asked or for its children.
        values: numbers; every reply has so many.
    """

    messages: int = 0
    values: int = 0


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
        adjusts: the protocol changes the logits that tokens are drawn from (`Protocol.adjust`): bans, penalties.
        scores: it reads the log-probabilities of given tokens (`Protocol.score`).
        asks: threads may ask the host and wait for its reply (`Protocol.replied`); None: they do not.
        signals: numbers about every row, kept as `book.threads.drawn.signals`, see `apr_jax.decode.signals`.
        parts: names of the parts of the prompt that every problem has (`Problem.parts`), kept as `book.parts` in this order.
        arguments: numbers that each problem gives to the protocol (`Problem.arguments`), kept as `book.arguments`.
        branches: 0, or the largest branch that threads write in, kept as `book.threads.line.branch`, for models that tell branches
            apart (`apr_jax.model.branches`).
        views: each thread sees the others in an order of its own: positions count from 0 in every thread, and `Protocol.offsets`
            says where a thread begins in the view of another (Hogwild! Inference).
        recorded: the protocol's own state goes into the transcript.
        logged: so do the signals of every token that is drawn.
        pieces: pieces of messages that a thread costs at most, those that others say of it included: by default three for a spawn
            and two for a join.
    """

    threads: int = 1
    beside: bool = False
    live: bool = False
    together: int = 0
    races: bool = False
    splits: bool = False
    adjusts: bool = False
    scores: bool = False
    asks: Asks | None = None
    signals: tuple[Signal, ...] = ()
    parts: tuple[str, ...] = ()
    arguments: int = 0
    branches: int = 0
    views: bool = False
    recorded: bool = False
    logged: bool = False
    pieces: int = 6

    def room(self, threads: int) -> int:
        """Pieces of messages that a problem of so many threads may compose over its life; a few are for the root alone."""
        return self.pieces * threads + 4

    @property
    def groups(self) -> bool:
        """Whether threads may have to keep pace with other threads."""
        return self.live or self.races
