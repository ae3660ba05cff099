"""Training data: demonstrations or rollouts packed in rows on disk ahead of time, with their tokenizer.

A data folder holds a tokenizer, `train/` and `held_out/` (see `rows`) and, written last, `data.json` with the
configuration, what it was made from, and counts. Nothing that exists is ever replaced: a folder is made whole where none
is, or taken as it is if it is the one that the configuration describes. What a task or a file of transcripts gives to train
on is a subclass of `Data`, in a room of its own (`apr_jax.tasks.countdown.training`, `apr_jax.train.logs`).
"""

import abc
import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from apr_jax import files, settings
from apr_jax.model.transformer import Model
from apr_jax.train.packing import Count
from apr_jax.train.rows import RowStore

FACTS = "data.json"


class Data(abc.ABC):
    """What training wants of a configuration of data; implementations are frozen dataclasses with a `folder`."""

    folder: str

    @abc.abstractmethod
    def made_from(self) -> dict[str, str]:
        """The identity of each file that the data are made from, by its path."""

    @abc.abstractmethod
    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, Count]:
        """Write all that the folder holds, `write_facts` last; it is there and empty. Returns counts by split."""

    @abc.abstractmethod
    def fit(self, model: Model) -> Model:
        """A pretrained model as these data need it."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data folder, opened.

    Attributes:
        train, held_out: packed rows.
        vocabulary: ids the tokenizer has.
        members: token ids by class of token.
        made_from: the identity of each file that the rows were made from, by its path.
    """

    train: RowStore
    held_out: RowStore
    vocabulary: int
    members: dict[str, list[int]]
    made_from: dict[str, str]

    @classmethod
    def open(cls, config: Data) -> "Dataset":
        """Opens the folder of a configuration.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it holds something else, see `is_made`.
        """
        if not is_made(config):
            raise FileNotFoundError(f"{config.folder} holds no data; write them with `python -m experiments.make_data`")
        folder = Path(config.folder)
        facts = files.read_json(folder / FACTS)
        train, held_out = (RowStore.open(folder / name) for name in ("train", "held_out"))
        return cls(train, held_out, facts["vocabulary"], facts["classes"], facts.get("made_from", {}))

    def classes(self, vocabulary: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """The class of every id of a model's vocabulary, Int32 [V], and the names of the classes ("other" last)."""
        table = np.full(vocabulary, len(self.members), np.int32)
        for number, ids in enumerate(self.members.values()):
            table[ids] = number
        return table, (*self.members, "other")


def is_made(config: Data) -> bool:
    """Whether the folder holds the data of a configuration; False if there is no such folder, or nothing in it.

    Files that the data were made from and that are no longer there are taken to be those.

    Raises:
        ValueError: something else is there: data of other settings, of files that were replaced since, or no data.
    """
    folder = files.local(config.folder, "data.folder")
    if not folder.exists() or folder.is_dir() and not any(folder.iterdir()):
        return False
    facts = files.read_json(folder / FACTS)
    if not {"config", "vocabulary", "counts"} <= facts.keys():
        raise ValueError(
            f"data.folder: {folder} is there and holds no data of this program; give another one, nothing is replaced there"
        )
    changed = settings.differences(config, facts["config"])
    changed += files.replaced(facts.get("made_from", {}), config.made_from())
    if changed:
        raise ValueError(
            f"data.folder: {folder} was made with other settings or from other files ({'; '.join(changed)}); "
            "give another folder, or remove it to have it made anew"
        )
    return True


def make(config: Data, report: Callable[[str], None] = print) -> dict[str, Count]:
    """Draw, pack and write the data of a configuration if they are not there; returns the counts of "train" and "held_out".

    They are written to a folder of their own beside `config.folder` and moved there when they are complete: two programs
    that make the same data do not meet.

    Raises:
        ValueError: something else is in the folder, see `is_made`; or the configuration's `write` raises it.
    """
    if is_made(config):
        report(f"{config.folder} holds these data already")
        counts = files.read_json(Path(config.folder) / FACTS)["counts"]
        return {name: Count(**count) for name, count in counts.items()}
    target = Path(config.folder).resolve()  # a link may lead to a folder on another disk
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}.partial-", dir=target.parent) as parent:
        folder = Path(parent) / target.name
        folder.mkdir()
        counts = config.write(folder, report)
        try:
            folder.rename(target)  # an empty folder gives way, nothing else does
        except OSError:
            if not is_made(config):  # another program was faster
                raise
    return counts


def write_facts(
    folder: Path,
    config: Data,
    made_from: Mapping[str, str],
    vocabulary: int,
    classes: Mapping[str, Sequence[int]],
    counts: Mapping[str, Count],
) -> None:
    """Say in `data.json` what a folder holds; written last, it makes the folder complete."""
    facts = {"config": settings.to_dict(config), "made_from": made_from, "vocabulary": vocabulary, "classes": classes}
    facts["counts"] = {name: dataclasses.asdict(count) for name, count in counts.items()}
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def sentence(count: Count) -> str:
    """Counts in words."""
    return (
        f"{count.transcripts:,} demonstrations or rollouts, {count.entries:,} tokens ({count.labels:,} trained on) in "
        f"{count.rows:,} rows, {count.padding:.1%} padding; "
        f"{count.too_long:,} of {count.components:,} threads too long, left out"
    )
