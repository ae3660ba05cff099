"""Training data of Countdown: demonstrations drawn ahead of time and packed, with their tokenizer.

Demonstrations are numbered and drawn in blocks, so a data folder does not depend on the number of processes.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from apr_jax import settings, tokenizer
from apr_jax.model.transformer import Model
from apr_jax.tasks.countdown import compact, demonstrations, problems
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig, Method
from apr_jax.train import packing, rows
from apr_jax.train.data import Data, check_left_out, sentence, write_facts
from apr_jax.train.packing import Count, Rows

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
        share: share of the demonstrations, relative to the shares of the other parts.
        demonstration: settings with which they are drawn.
    """

    share: float = 1.0
    demonstration: DemonstrationConfig = DemonstrationConfig()

    def __post_init__(self):
        if not self.share > 0:
            raise ValueError(f"share is {self.share}; it must be above 0 (leave the part out instead)")


@dataclasses.dataclass(frozen=True)
class DataConfig(Data):
    """The configuration of a data folder.

    Attributes:
        folder: path of the folder (free).
        method: "apr" demonstrations fork, "sos" demonstrations search in one thread.
        mixture: kinds of problems.
        train, held_out: numbers of demonstrations; held-out problems are of another split.
        length: S, entries of a row.
        threads: U, threads of a row.
        too_long: "drop" leaves out threads that are longer than a row, and counts them; "error" stops.
        left_out: largest share of the labels of a split that "drop" may leave out; more is an error, and nothing is kept.
        whole: numbers up to this one are one token, see `apr_jax.tokenizer.compact`.
        seed: seed of the demonstrations.
        processes: number of processes that draw demonstrations in parallel (free).
    """

    folder: str = dataclasses.field(default="data/apr", metadata=settings.FREE)
    method: Method = "apr"
    mixture: tuple[Part, ...] = (Part(),)
    train: int = 10000
    held_out: int = 200
    length: int = 1024
    threads: int = 64
    too_long: Literal["drop", "error"] = "drop"
    left_out: float = 0.01
    whole: int = 199
    seed: int = 0
    processes: int = dataclasses.field(default=1, metadata=settings.FREE)

    def __post_init__(self):
        for name in ("train", "held_out", "length", "threads", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.mixture:
            raise ValueError("mixture is empty; give at least one Part")
        check_left_out(self.left_out)

    def made_from(self) -> dict[str, str]:
        """The source files of the data: none, because demonstrations are drawn."""
        return {}

    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, Count]:
        """Draw, pack and write all files into the existing empty folder. Returns counts by split."""
        return _write(self, folder, report)

    def fit(self, model: Model) -> Model:
        """The pretrained model unchanged: these data need no changes."""
        return model


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


def _count(blocks, counts: dict[str, Count], name: str, wanted: int, report) -> Iterator[Rows]:
    """Yields the rows of the blocks, adds up their counts, and reports every twentieth of the work."""
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
