"""Training data: demonstrations or rollouts packed in rows on disk ahead of time, with their tokenizer.

A data folder holds a tokenizer, `train/` and `held_out/` (see `rows`) and, written last, `data.json` with the
configuration, the identities of its source files, and counts. Existing files are never replaced: a folder is made if there is
none, or used as it is if it belongs to the configuration. Each source of training data is a subclass of `Data` in a module of
its own (`apr_jax.tasks.countdown.training`, `apr_jax.train.logs`).
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
    """The interface of a configuration of training data; implementations are frozen dataclasses with these fields.

    Attributes:
        folder: path of the folder.
        left_out: largest share of the labels of a split that may be left out because no row can hold their threads.
    """

    folder: str
    left_out: float

    @abc.abstractmethod
    def made_from(self) -> dict[str, str]:
        """The identity of each file that the data are made from, by its path."""

    @abc.abstractmethod
    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, Count]:
        """Write all files into the existing empty folder, `write_facts` last. Returns counts by split."""

    @abc.abstractmethod
    def fit(self, model: Model) -> Model:
        """The pretrained model, changed as these data need it."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data folder, opened.

    Attributes:
        train, held_out: packed rows.
        vocabulary: number of ids of the tokenizer.
        members: token ids by class of token.
        made_from: the identity of each source file of the rows, by its path.
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
            FileNotFoundError: the folder does not exist.
            ValueError: the folder holds something else, see `is_made`.
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
    """Whether the folder holds the data of a configuration; False if the folder does not exist or is empty.

    Source files that no longer exist count as unchanged.

    Raises:
        ValueError: the folder holds something else: data of other settings, data of files replaced since then, or no data.
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
    """Draw, pack and write the data of a configuration unless they exist; returns the counts of "train" and "held_out".

    The data are written to a temporary folder beside `config.folder` and moved there when they are complete, so that two
    programs can make the same data at the same time.

    Raises:
        ValueError: the folder holds something else, see `is_made`; the configuration's `write` raises it; or more is left out
            than `left_out` allows, and nothing is kept.
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
        for name, count in counts.items():
            _refuse_left_out(config, name, count)
        try:
            folder.rename(target)  # replaces an empty folder, nothing else
        except OSError:
            if not is_made(config):  # another program was faster
                raise
    return counts


def check_left_out(share: float) -> None:
    """Raises ValueError if `left_out` of a configuration is no share."""
    if not 0 <= share <= 1:
        raise ValueError(f"left_out is {share}; it is a share, 0 to 1")


def _refuse_left_out(config: Data, name: str, count: Count) -> None:
    labels = count.labels + count.left_out
    if count.left_out > config.left_out * labels:
        raise ValueError(
            f"data.left_out is {config.left_out:g}; {count.left_out:,} of {labels:,} labels of {name} stand in threads that no row "
            f"can hold ({count.too_long:,} of {count.components:,} components): raise data.length or data.threads, or allow more"
        )


def write_facts(
    folder: Path,
    config: Data,
    made_from: Mapping[str, str],
    vocabulary: int,
    classes: Mapping[str, Sequence[int]],
    counts: Mapping[str, Count],
) -> None:
    """Write `data.json`, the description of a folder; written last, it marks the folder as complete."""
    facts = {"config": settings.to_dict(config), "made_from": made_from, "vocabulary": vocabulary, "classes": classes}
    facts["counts"] = {name: dataclasses.asdict(count) for name, count in counts.items()}
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def sentence(count: Count) -> str:
    """The counts as a sentence."""
    return (
        f"{count.transcripts:,} demonstrations or rollouts, {count.entries:,} tokens ({count.labels:,} trained on) in "
        f"{count.rows:,} rows, {count.padding:.1%} padding; "
        f"{count.too_long:,} of {count.components:,} components of threads too long, left out with {count.left_out:,} labels"
    )
