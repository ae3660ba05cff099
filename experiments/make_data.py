"""Write the demonstrations that a training configuration names, packed, with their tokenizer.

python -m experiments.make_data --config configs/sft_apr.py --data.processes 2
"""

import sys
from collections.abc import Sequence

from apr_jax import settings
from apr_jax.model.config import PRESETS
from apr_jax.train import data


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, "configs/sft_apr.py", presets={"model": PRESETS}).data
    print(settings.describe(config), flush=True)
    data.make(config, lambda line: print(line, flush=True))
    print(f"data are in {config.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
