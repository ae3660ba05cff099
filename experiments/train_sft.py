"""Train a model on demonstrations, or adapters of a pretrained model on rollouts.

    python -m experiments.train_sft --config configs/sft_apr.py --optimizer.learning-rate 1e-3 --workdir work/my_run
    python -m experiments.train_sft --config configs/lora_smollm2.py

The data are made first if their folder is missing; the parameters go into the working folder (`--export` elsewhere).
Interrupted with Ctrl-C (or killed), the same command goes on where it was. Exit codes: 0 finished, 130 interrupted, 2
something in the configuration is wrong, 1 the loss, the gradient or a parameter is not finite.
"""

import sys
from collections.abc import Sequence

from apr_jax import settings
from apr_jax.model.config import PRESETS
from apr_jax.train import data, sft


def main(argv: Sequence[str]) -> int:
    config = settings.parse(argv, "configs/sft_apr.py", presets={"model": PRESETS})
    print(settings.describe(config), flush=True)
    print(f"model: {config.model.parameters:,} parameters", flush=True)
    try:
        sft.check_places(config)
        data.make(config.data, lambda line: print(line, flush=True))
        result = sft.run(config)
    except (ValueError, FileNotFoundError) as error:
        settings.fail(str(error))
    except KeyboardInterrupt:
        print(f"interrupted; the data in {config.data.folder} were not complete", file=sys.stderr)
        return 130
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if result.finished else 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
