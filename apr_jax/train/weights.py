"""The parameters that a training run starts from, and those that it exports.

An export never replaces files. A run notes its export in its working folder, so that a finished run that is started again
recognises its own export, and one that was killed while it wrote may write again.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from apr_jax import files, settings
from apr_jax.model import io, transformer
from apr_jax.model.branches import with_branches
from apr_jax.model.config import ModelConfig
from apr_jax.pretrained import is_pretrained, load_model, save_pretrained
from apr_jax.tokenizer import TextCodec
from apr_jax.train.data import Data

NOTE = "exported.json"
"""In the working folder of a run, the identities of the files of its export by their paths; "" while they are being written."""
PARTS = ("config.json", "*.safetensors")  # the files of a folder that determine its parameters


def load(start: str, model: ModelConfig, data: Data) -> transformer.Params:
    """The parameters at the path `start`, changed as the data need them, and with branches if `model` reads them.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the parameters are of another model, or not finite.
    """
    found = load_model(start, dtype=model.param_dtype)
    found = data.fit(found) if is_pretrained(start) else found
    if model.branches and not found.config.branches:
        found = with_branches(found, model.branch_embedding, model.branch_stride)
    if found.config != model:
        changed = settings.differences(model, settings.to_dict(found.config))
        raise ValueError(f"start: {start} holds another model ({'; '.join(changed)})")
    if names := not_finite(found.params):
        raise ValueError(
            f"start: {start} holds numbers that are not finite, in {', '.join(names)}; start from another model"
        )
    return found.params


def made_from(start: str) -> dict[str, str]:
    """The identities of the files that hold the parameters, by their paths."""
    return files.identities(Path(start), PARTS)


def not_finite(tree: object) -> list[str]:
    """Names of the arrays of a tree that hold NaN or infinity."""
    return [name for name, fine in io.flatten(jax.device_get(_finite(tree))).items() if not fine]


@jax.jit
def _finite(tree: object) -> object:
    numbers = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all() if numbers(leaf) else jnp.array(True), tree)


def is_exported(export: Path, workdir: Path) -> bool:
    """Whether a run has exported its parameters already; False if `export` does not exist and can be written.

    Raises:
        ValueError: `export` is something else, or cannot be written.
    """
    if export.resolve() in (workdir.resolve(), *workdir.resolve().parents):
        raise ValueError(
            f"export: {export} is the working folder or holds it; give a place in it, such as {workdir}/model"
        )
    if export.exists() and not (_folder(export) and export.is_dir() and not any(export.iterdir())):
        noted = files.read_json(workdir / NOTE)
        if noted == _unfinished(export):
            return False
        # The identities are compared, because a path can be written in several ways.
        if noted and list(noted.values()) == list(files.identities(export).values()):
            return True
        raise ValueError(
            f"export: {export} is there, and the run in {workdir} has not written it; give another --export, or remove it"
        )
    try:
        export.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=export.parent).close()
    except OSError as error:
        raise ValueError(f"export: {export} cannot be written ({error}); give another --export") from error
    return False


def write(
    export: Path, workdir: Path, model: transformer.Model, start: str, tokenizer: Callable[[], TextCodec]
) -> None:
    """Write the trained model, and note the export in the working folder of the run.

    Args:
        export: a `.safetensors` file of ours, or a folder that `transformers` can read, with the tokenizer.
        workdir: working folder of the run.
        model: the trained model, with adapters merged.
        start: path of the model that the run started from; empty: none.
        tokenizer: gives the tokenizer, where it is written.
    """
    note = lambda identities: files.write_text(workdir / NOTE, json.dumps(identities, indent=2) + "\n")
    note(_unfinished(export))
    if _folder(export):
        for left in export.glob(".saving-*"):  # by a process that was killed
            shutil.rmtree(left)
        source = start if start and is_pretrained(start) else None
        save_pretrained(export, model, source, tokenizer=tokenizer())
    else:
        io.save(export, model, model.config)
    note(files.identities(export))


def _unfinished(export: Path) -> dict[str, str]:
    """The note of an export that is being written."""
    return {str(export.resolve()): ""}


def _folder(export: Path) -> bool:
    return export.suffix != ".safetensors"
