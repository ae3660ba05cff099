"""Learn once more from the groups of a step that a run of reinforcement learning has kept, and compare with what it wrote then.

    python -m experiments.replay_rl 75 --config configs/rl_countdown.py

The run needs the groups of the step (`keep_last`, `keep_every`) and the checkpoint before it; nothing is written. Exit codes:
0 loss and gradient are equal bit for bit (as they are on the same machine), 1 they differ, 2 something is missing or wrong.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from apr_jax import settings
from apr_jax.rl import run


def main(argv: Sequence[str]) -> int:
    if not argv or not argv[0].isdecimal():
        settings.fail("the first argument is the number of a step, counted from 1")
    config, step = settings.parse(argv[1:], "configs/rl_countdown.py"), int(argv[0])
    try:
        again = run.replay(config, step)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    lines = map(json.loads, (Path(config.workdir) / "metrics.jsonl").read_text().splitlines())
    written = {name: value for line in lines if line["step"] == step for name, value in line.items()}
    if not again:
        print(f"step {step} made no update: all advantages are 0")
    for name, value in again.items():
        print(f"{name}: {value!r}, written {written.get(name)!r}")
    return int(any(written.get(name) != value for name, value in again.items()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
