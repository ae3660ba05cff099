"""Write the demonstrations that a training configuration names, packed, with their tokenizer, if they are not there.

    python -m experiments.make_data --config configs/sft_apr.py --data.processes 2

Exit codes: 0 they are there, 2 something in the configuration is wrong, or something else is in their folder.
"""

import sys
from collections.abc import Sequence

from apr_jax import settings
from apr_jax.model.config import PRESETS
from apr_jax.train import data


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, "configs/sft_apr.py", presets={"model": PRESETS}).data
    print(settings.describe(config), flush=True)
    try:
        data.make(config, lambda line: print(line, flush=True))
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    print(f"data are in {config.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
