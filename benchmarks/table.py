"""Measure what room for more threads costs: the same sixteen samples of each problem with thread tables of several sizes.

python -m benchmarks.table
python -m benchmarks.table --threads 32 1024 --turns 5
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from apr_jax import settings
from apr_jax.protocols import Samples
from benchmarks import turns


@dataclasses.dataclass(frozen=True)
class TableConfig:
    """Settings of the measurement.

    Attributes:
        threads: sizes of the table, M; at least 17, the root and its samples.
        tokens: that each sample generates.
        turns: measurements of each.
        output: folder of `table.json`.
    """

    threads: tuple[int, ...] = (32, 128, 1024)
    tokens: int = 256
    turns: int = 5
    output: str = "results/table"

    def __post_init__(self):
        if min(self.threads) <= turns.SAMPLES:
            raise ValueError(f"--threads {min(self.threads)}: at least {turns.SAMPLES + 1} are needed")


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, TableConfig())
    protocol = Samples(turns.SAMPLES, end=-1)
    engines = {f"M = {threads:,}": turns.engine(protocol, threads, config.tokens) for threads in config.threads}
    found = turns.measure(engines, config.tokens, config.turns)
    turns.report("room for threads", found, Path(config.output) / "table.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
