"""Training data that are drawn ahead of time: numbered demonstrations, packed in blocks.

A demonstration follows from its split and number alone, so a data folder does not depend on the number of processes.
"""

import abc
import concurrent.futures
import functools
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from apr_jax.model.transformer import Model
from apr_jax.record import Transcript
from apr_jax.tokenizer import Tokenizer
from apr_jax.train import packing, rows
from apr_jax.train.data import Data, check_left_out, sentence, write_facts
from apr_jax.train.packing import Count, Rows

BLOCK = 500  # demonstrations that are packed together
SPLITS = {"held_out": "val", "train": "train"}
"""The split of the demonstrations of each part of a folder."""


class DrawnData(Data):
    """Demonstrations that are drawn; implementations are frozen dataclasses with these fields.

    Attributes:
        train, held_out: numbers of demonstrations; held-out problems are of another split.
        length: S, entries of a row.
        threads: U, threads of a row.
        too_long: "drop" leaves out threads that are longer than a row, and counts them; "error" stops.
        seed: seed of the demonstrations.
        processes: number of processes that draw demonstrations in parallel.
    """

    train: int
    held_out: int
    length: int
    threads: int
    too_long: Literal["drop", "error"]
    seed: int
    processes: int

    def __post_init__(self):
        for name in ("train", "held_out", "length", "threads", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_left_out(self.left_out)

    @abc.abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The vocabulary."""

    @abc.abstractmethod
    def classes(self) -> Mapping[str, Sequence[str]]:
        """Symbols by class of token; those that the vocabulary lacks are left out."""

    @abc.abstractmethod
    def demonstrate(self, split: str, span: tuple[int, int]) -> list[Transcript]:
        """The demonstrations of a split with these numbers, begin to end."""

    def made_from(self) -> dict[str, str]:
        """The source files of the data: none, because demonstrations are drawn."""
        return {}

    def fit(self, model: Model) -> Model:
        """The pretrained model unchanged: these data need no changes."""
        return model

    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, Count]:
        """Draw, pack and write all files into the existing empty folder. Returns counts by split."""
        words = self.tokenizer()
        words.save(folder / "tokenizer.model")
        counts: dict[str, Count] = {}
        for name, split in SPLITS.items():
            counts[name] = Count()
            parts = _count(_blocks(self, split, getattr(self, name)), counts, name, getattr(self, name), report)
            rows.write(folder / name, parts, self.length, self.threads)
            report(f"{name}: {sentence(counts[name])}")
        known = {words.piece(i): i for i in range(words.size)}
        classes = {name: [known[s] for s in symbols if s in known] for name, symbols in self.classes().items()}
        write_facts(folder, self, {}, words.size, classes, counts)
        return counts


def _count(
    blocks: Iterator[tuple[Rows, Count]],
    counts: dict[str, Count],
    name: str,
    wanted: int,
    report: Callable[[str], None],
) -> Iterator[Rows]:
    """Yields the rows of the blocks, adds up their counts, and reports every twentieth of the work."""
    told = 0
    for part, count in blocks:
        counts[name] += count
        done = counts[name].transcripts
        if done * 20 // wanted > told and done < wanted:
            told = done * 20 // wanted
            report(f"{name}: {done:,} of {wanted:,} demonstrations")
        yield part


def _blocks(config: DrawnData, split: str, wanted: int) -> Iterator[tuple[Rows, Count]]:
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


def _block(config: DrawnData, split: str, span: tuple[int, int]) -> tuple[Rows, Count]:
    transcripts = config.demonstrate(split, span)
    packed, _, count = packing.pack(transcripts, config.length, config.threads, config.too_long)
    return packed, count
