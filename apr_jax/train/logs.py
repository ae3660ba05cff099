"""Rollouts as training data: transcripts that an evaluation left, packed in rows with the visibility they were decoded under.

Kept to those whose answer is right, this is rejection sampling: a model learns from what it got right itself.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from apr_jax import settings
from apr_jax.decode import transcript as transcripts
from apr_jax.decode.transcript import Transcript
from apr_jax.model.pretrained import with_control_words
from apr_jax.model.transformer import Model
from apr_jax.tokenizer.load import load
from apr_jax.train import data, packing, rows
from apr_jax.train.packing import Count


@dataclasses.dataclass(frozen=True)
class LogData:
    """Transcripts as training data; every token that a model sampled is a label.

    Attributes:
        folder: where the packed rows and the tokenizer are kept (free).
        transcripts: files of `experiments.evaluate`, `transcripts_METHOD.jsonl`, each with its `.npz`.
        tokenizer: that of the model that made them: what `apr_jax.tokenizer.load` reads.
        control_words: words that were added to it, in the order they were added.
        gain: of their rows in the model (see `apr_jax.model.pretrained.add_control_tokens`).
        correct: leave out transcripts whose answer is wrong.
        held_out: one transcript of so many is held out.
        length: S, entries of a row.
        threads: U, threads of a row.
        too_long: "drop" leaves threads out that are longer than a row, and counts them; "error" stops.
    """

    folder: str = dataclasses.field(default="data/logs", metadata=settings.FREE)
    transcripts: tuple[str, ...] = ()
    tokenizer: str = ""
    control_words: tuple[str, ...] = ()
    gain: float = 1.0
    correct: bool = True
    held_out: int = 10
    length: int = 1024
    threads: int = 64
    too_long: Literal["drop", "error"] = "drop"

    def __post_init__(self):
        if not self.transcripts or not self.tokenizer:
            raise ValueError(
                "transcripts and tokenizer must be given: files of an evaluation, and the model's tokenizer"
            )
        for name, least in (("held_out", 2), ("length", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def fit(self, model: Model) -> Model:
        """A pretrained model with rows for the control words of these data."""
        return with_control_words(model, load(self.tokenizer), self.control_words, gain=self.gain)[0]

    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, Count]:
        """Read, choose, pack and write; see `apr_jax.train.data.make`.

        Raises:
            FileNotFoundError: a file of transcripts is missing.
            ValueError: too few transcripts are left to hold one out.
        """
        words = load(self.tokenizer).with_control_words(self.control_words)
        kept = self._read(report)
        if len(kept) < self.held_out:
            raise ValueError(
                f"transcripts: {len(kept)} are left to train on, and one of {self.held_out} is to be held out; give more "
                f"files, lower held_out{', or set correct to False' if self.correct else ''}"
            )
        # A vocabulary that is padded in the model has ids beyond the tokenizer's, which may be sampled.
        vocabulary = max(words.size, *(int(t.log.token.max()) + 1 for t in kept))
        splits = {
            "held_out": kept[self.held_out - 1 :: self.held_out],
            "train": [t for i, t in enumerate(kept) if i % self.held_out != self.held_out - 1],
        }
        counts = {}
        for name, chosen in splits.items():
            packed, _, counts[name] = packing.pack(chosen, self.length, self.threads, self.too_long)
            rows.write(folder / name, [packed], self.length, self.threads, vocabulary)
            report(f"{name}: {data.sentence(counts[name])}")
        words.save_folder(folder)
        classes = {"control": [words.id(word) for word in self.control_words], "end": [words.eos]}
        data.write_facts(folder, self, vocabulary, classes, counts)
        return counts

    def _read(self, report: Callable[[str], None]) -> list[Transcript]:
        kept: list[Transcript] = []
        for file in self.transcripts:
            if not Path(file).is_file():
                raise FileNotFoundError(f"transcripts: there is no file {file}; `experiments.evaluate` writes them")
            pairs = list(transcripts.read(Path(file)))
            chosen = [t for t, line in pairs if line.get("correct") or not self.correct]
            report(f"{file}: {len(chosen):,} of {len(pairs):,} transcripts are taken")
            kept += chosen
        return kept
