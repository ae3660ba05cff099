"""Training data of Countdown: demonstrations drawn ahead of time, packed in rows on disk, with their tokenizer.

A data folder holds `tokenizer.model`, `train/` and `held_out/` (see `rows`) and, written last, `data.json` with the
configuration, what it was made from, and counts. Nothing that exists is ever replaced: a folder is made whole where none
is, or taken as it is if it is the one that the configuration describes. Demonstrations are numbered and drawn in blocks, so
the folder does not depend on how many processes wrote it.
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from apr_jax import files, settings, tokenizer
from apr_jax.model.transformer import Model
from apr_jax.tasks.countdown import compact, demonstrations, problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig, Method
from apr_jax.train import packing, rows
from apr_jax.train.packing import Count, Rows
from apr_jax.train.rows import RowStore

FACTS = "data.json"
BLOCK = 500  # demonstrations that are packed together
CLASSES = {
    "number": tuple(map(str, range(1000))),
    "operator": tuple("+-*/"),
    "goal": ("<goal>",),
    "control": tuple(word for word in compact.CONTROL if word != "<goal>"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One kind of problems in a mixture.

    Attributes:
        share: how much of the demonstrations, relative to the shares of the other parts.
        demonstration: how they are drawn.
    """

    share: float = 1.0
    demonstration: DemonstrationConfig = DemonstrationConfig()

    def __post_init__(self):
        if not self.share > 0:
            raise ValueError(f"share is {self.share}; it must be above 0 (leave the part out instead)")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The contents of a data folder.

    Attributes:
        folder: where it is (free).
        method: "apr" demonstrations fork, "sos" ones search in one thread.
        mixture: kinds of problems.
        train, held_out: numbers of demonstrations; held-out problems are of another split.
        length: S, entries of a row.
        threads: U, threads of a row.
        too_long: "drop" leaves threads out that are longer than a row, and counts them; "error" stops.
        whole: numbers up to this one are one token, see `apr_jax.tokenizer.compact`.
        seed: of the demonstrations.
        processes: how many draw them side by side (free).
    """

    folder: str = dataclasses.field(default="data/apr", metadata=settings.FREE)
    method: Method = "apr"
    mixture: tuple[Part, ...] = (Part(),)
    train: int = 10000
    held_out: int = 200
    length: int = 1024
    threads: int = 64
    too_long: Literal["drop", "error"] = "drop"
    whole: int = 199
    seed: int = 0
    processes: int = dataclasses.field(default=1, metadata=settings.FREE)

    def __post_init__(self):
        for name in ("train", "held_out", "length", "threads", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.mixture:
            raise ValueError("mixture is empty; give at least one Part")

    def made_from(self) -> dict[str, str]:
        """The files that the data are made from: none, demonstrations are drawn."""
        return {}

    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, Count]:
        """Draw, pack and write all that the folder holds; it is there and empty. Returns counts by split."""
        return _write(self, folder, report)

    def fit(self, model: Model) -> Model:
        """A pretrained model as these data need it: as it is."""
        return model


class Data(Protocol):
    """The interface of a configuration of data; frozen dataclasses with a `folder`."""

    folder: str

    def made_from(self) -> dict[str, str]: ...

    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, Count]: ...

    def fit(self, model: Model) -> Model: ...


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


def _write(config: DataConfig, folder: Path, report: Callable[[str], None]) -> dict[str, Count]:
    words = tokenizer.compact(config.whole)
    words.save(folder / "tokenizer.model")
    counts: dict[str, Count] = {}
    for split, name, wanted in (("val", "held_out", config.held_out), ("train", "train", config.train)):
        counts[name] = Count()
        parts = _count(_blocks(config, split, wanted), counts, name, wanted, report)
        rows.write(folder / name, parts, config.length, config.threads)
        report(f"{name}: {sentence(counts[name])}")
    known = {words.piece(i): i for i in range(words.size)}
    classes = {name: [known[piece] for piece in pieces if piece in known] for name, pieces in CLASSES.items()}
    write_facts(folder, config, {}, words.size, classes, counts)
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


def _count(blocks, counts: dict[str, Count], name: str, wanted: int, report) -> Iterator[Rows]:
    """Passes rows on, adding up their counts and reporting every twentieth part of the work."""
    told = 0
    for part, count in blocks:
        counts[name] += count
        done = counts[name].transcripts
        if done * 20 // wanted > told and done < wanted:
            told = done * 20 // wanted
            report(f"{name}: {done:,} of {wanted:,} demonstrations")
        yield part


def _blocks(config: DataConfig, split: problems.Split, wanted: int) -> Iterator[tuple[Rows, Count]]:
    """The packed blocks of a split, in order."""
    spans = [(start, min(start + BLOCK, wanted)) for start in range(0, wanted, BLOCK)]
    work = functools.partial(_block, config, split)
    if config.processes == 1:
        yield from map(work, spans)
        return
    # A forked child of a process that runs XLA's threads may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(config.processes, mp_context=context) as pool:
        yield from pool.map(work, spans)


def _block(config: DataConfig, split: problems.Split, span: tuple[int, int]) -> tuple[Rows, Count]:
    encode = tokenizer.compact(config.whole).encode
    shares = [part.share for part in config.mixture]
    transcripts = []
    for index in range(*span):
        pick = problems.generator(config.seed, f"{split}/mixture", index)
        part = pick.choices(config.mixture, shares)[0]
        _, threads = demonstrations.sample(config.method, part.demonstration, config.seed, index, split)
        transcripts.append(demonstrations.to_transcript(threads, encode, index))
    packed, _, count = packing.pack(transcripts, config.length, config.threads, config.too_long)
    return packed, count
