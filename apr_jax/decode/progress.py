"""The progress of a run."""

import collections
import dataclasses
from collections.abc import Mapping

from apr_jax.record import Stop


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run after a slice; sums over the run.

    Attributes:
        finished: finished problems.
        problems: problems of the run.
        sampled, fed: tokens sampled and fed.
        feed_steps, decode_steps: device steps, summed over all shards.
        occupancy: busy rows of the decode steps over all rows of the decode steps.
        seconds: wall time, compiling included unless `Engine.compile` did that before.
        questions: questions of threads that the host has answered; `returns`: to how many batches of them Python returned.
        shard_steps: steps of each shard. Problems are dealt over the shards, and each shard runs until its part is done.
        stops: number of this process's problems that ended with each stop reason.
    """

    finished: int
    problems: int
    sampled: int
    fed: int
    feed_steps: int
    decode_steps: int
    occupancy: float
    seconds: float
    shard_steps: tuple[int, ...]
    stops: Mapping[Stop, int] = dataclasses.field(default_factory=dict)
    questions: int = 0
    returns: int = 0

    @property
    def imbalance(self) -> float:
        """Largest number of steps of a shard over the mean: 1 is even; at 1.5 shards are idle for a third of the time."""
        return max(self.shard_steps) * len(self.shard_steps) / max(sum(self.shard_steps), 1)

    def after(self, earlier: "Progress") -> "Progress":
        """Progress of a resumed run: this part plus the `earlier` one.

        Raises:
            ValueError: the two parts ran on different numbers of shards.
        """
        if len(self.shard_steps) != len(earlier.shard_steps):
            raise ValueError(f"progress of {len(earlier.shard_steps)} shards cannot go on with {len(self.shard_steps)}")
        sums = {
            name: getattr(self, name) + getattr(earlier, name)
            for name in ("finished", "sampled", "fed", "feed_steps", "decode_steps", "seconds", "questions", "returns")
        }
        rows = self.occupancy * self.decode_steps + earlier.occupancy * earlier.decode_steps
        return Progress(
            problems=earlier.problems,
            occupancy=rows / max(sums["decode_steps"], 1),
            shard_steps=tuple(map(sum, zip(self.shard_steps, earlier.shard_steps, strict=True))),
            stops=collections.Counter(self.stops) + collections.Counter(earlier.stops),
            **sums,
        )
