"""Reinforcement learning on the engine's own rollouts.

    python -m experiments.train_rl --config configs/rl_countdown.py
    python -m experiments.train_rl --config configs/rl_countdown.py --steps 2 --prompts 4 --workdir work/smoke

The parameters go into the working folder (`--export` elsewhere). Interrupted with Ctrl-C (or killed), the same command goes on
where it was. Exit codes: 0 finished, 130 interrupted, 2 something in the configuration is wrong, 1 a log-probability, the loss or
the gradient is not finite.
"""

import sys
from collections.abc import Sequence

from apr_jax import settings
from apr_jax.rl import run


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, "configs/rl_countdown.py")
    print(settings.describe(config), flush=True)
    try:
        result = run.run(config)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if result.finished else 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
