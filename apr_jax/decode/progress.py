"""How far a run has come."""

import collections
import dataclasses
from collections.abc import Mapping

from apr_jax.record import Stop


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after a slice; sums over the run.

    Attributes:
        finished: problems done.
        problems: problems given.
        sampled, fed: tokens generated and fed.
        feed_steps, decode_steps: device steps, over all shards.
        occupancy: busy rows of the decode steps over all their rows.
        seconds: wall time, compilation included.
        shard_steps: steps of each shard. The queue is dealt over the shards, and each runs until its part is done.
        stops: how often each stop reason was the end of a problem (of those of this process).
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

    @property
    def imbalance(self) -> float:
        """Steps of the shard with the most over the mean: 1 is even, 1.5 means that a third of the shards' time is idle."""
        return max(self.shard_steps) * len(self.shard_steps) / max(sum(self.shard_steps), 1)

    def after(self, earlier: "Progress") -> "Progress":
        """Progress of a run that was resumed: this part and the `earlier` one.

        Raises:
            ValueError: they ran on different numbers of shards.
        """
        if len(self.shard_steps) != len(earlier.shard_steps):
            raise ValueError(f"progress of {len(earlier.shard_steps)} shards cannot go on with {len(self.shard_steps)}")
        sums = {
            name: getattr(self, name) + getattr(earlier, name)
            for name in ("finished", "sampled", "fed", "feed_steps", "decode_steps", "seconds")
        }
        rows = self.occupancy * self.decode_steps + earlier.occupancy * earlier.decode_steps
        return Progress(
            problems=earlier.problems,
            occupancy=rows / max(sums["decode_steps"], 1),
            shard_steps=tuple(map(sum, zip(self.shard_steps, earlier.shard_steps, strict=True))),
            stops=collections.Counter(self.stops) + collections.Counter(earlier.stops),
            **sums,
        )
