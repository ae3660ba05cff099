"""Rollouts as training data: transcripts of an evaluation, packed in rows with the visibility of decoding.

With only the right answers kept, this is rejection sampling: a model learns from its own right answers.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apr_jax import files, record, settings
from apr_jax.model.transformer import Model
from apr_jax.pretrained import with_control_words
from apr_jax.pretrained.tokenizer import load
from apr_jax.record import Log, Stop, Transcript, peak_context
from apr_jax.train import data, packing, rows
from apr_jax.train.packing import Count

TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")


@dataclasses.dataclass(frozen=True)
class LogData(data.Data):
    """Transcripts as training data; every token that a model sampled is a label.

    Attributes:
        folder: folder of the packed rows and the tokenizer (free).
        transcripts: files of `experiments.evaluate`, `transcripts_METHOD.jsonl`, each with its `.npz`.
        tokenizer: path of the tokenizer of the decoding model, see `apr_jax.pretrained.tokenizer.load`.
        control_words: words that were added to the tokenizer, in the order in which they were added.
        gain: factor of their initial rows in the model (see `apr_jax.pretrained.add_control_tokens`).
        correct: leave out transcripts with a wrong answer, and wrong samples of a transcript (see `right`).
        held_out: n; one in n questions is held out, with all of its transcripts.
        length: S, entries of a row.
        threads: U, threads of a row.
        too_long: "drop" leaves out threads that are longer than a row, and counts them; "error" stops.
        left_out: largest share of the labels of a split that "drop" may leave out; more is an error, and nothing is kept.
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
    left_out: float = 0.01

    def __post_init__(self):
        if not self.transcripts or not self.tokenizer:
            raise ValueError(
                "transcripts and tokenizer must be given: files of an evaluation, and the model's tokenizer"
            )
        for name, least in (("held_out", 2), ("length", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        data.check_left_out(self.left_out)

    def fit(self, model: Model) -> Model:
        """The pretrained model with rows for the control words of these data."""
        return with_control_words(model, load(self.tokenizer), self.control_words, gain=self.gain)[0]

    def made_from(self) -> dict[str, str]:
        """The identities of the existing files of transcripts and of the tokenizer, by their paths."""
        found = files.identities(files.local(self.tokenizer, "data.tokenizer"), TOKENIZER)
        for name in self.transcripts:
            path = files.local(name, "data.transcripts")
            found |= files.identities(path) | files.identities(path.with_suffix(".npz"))
        return found

    def write(self, folder: Path, report: Callable[[str], None]) -> dict[str, Count]:
        """Read, choose, pack and write; see `apr_jax.train.data.make`.

        Raises:
            FileNotFoundError: a file of transcripts is missing.
            ValueError: too few questions are left to hold one out.
        """
        made_from = self.made_from()  # taken before reading, so that a file replaced meanwhile is noticed later
        words = load(self.tokenizer).with_control_words(self.control_words)
        kept, questions = self._read(report)
        count = len(set(questions))
        if count < self.held_out:
            raise ValueError(
                f"transcripts: of their questions {count} are left to train on, and one of {self.held_out} is to be held out; "
                f"give more files, lower held_out{', or set correct to False' if self.correct else ''}"
            )
        apart = held_out(questions, self.held_out)
        # A padded vocabulary of the model has ids beyond the tokenizer's, which may have been sampled.
        vocabulary = max(words.size, *(int(t.log.token.max()) + 1 for t in kept))
        splits = {
            "held_out": [t for t, question in zip(kept, questions, strict=True) if question in apart],
            "train": [t for t, question in zip(kept, questions, strict=True) if question not in apart],
        }
        counts = {}
        for name, chosen in splits.items():
            packed, _, counts[name] = packing.pack(chosen, self.length, self.threads, self.too_long)
            rows.write(folder / name, [packed], self.length, self.threads, vocabulary)
            report(f"{name}: {data.sentence(counts[name])}")
        words.save_folder(folder)
        classes = {"control": [words.id(word) for word in self.control_words], "end": [words.eos]}
        data.write_facts(folder, self, made_from, vocabulary, classes, counts)
        return counts

    def _read(self, report: Callable[[str], None]) -> tuple[list[Transcript], list[str]]:
        """The chosen transcripts, and the question of each."""
        kept: list[Transcript] = []
        questions: list[str] = []
        for file in self.transcripts:
            if not Path(file).is_file():
                raise FileNotFoundError(f"transcripts: there is no file {file}; `experiments.evaluate` writes them")
            pairs = list(record.read(Path(file)))
            chosen = pairs
            if self.correct:
                parts = ((right(t, line, f"{file}:{i}"), line) for i, (t, line) in enumerate(pairs, start=1))
                chosen = [(part, line) for part, line in parts if part is not None]
            taken = [transcript for transcript, _ in chosen]
            report(
                f"{file}: {len(chosen):,} of {len(pairs):,} transcripts are taken, {_sampled(taken):,} of "
                f"{_sampled([t for t, _ in pairs]):,} sampled tokens"
            )
            kept += taken
            questions += [question_of(line) for _, line in chosen]
        return kept, questions


def right(transcript: Transcript, line: Mapping[str, Any], name: str) -> Transcript | None:
    """The right part of a transcript: the whole if the root's answer is right; of samples the right ones; None if none is right.

    Args:
        transcript: transcript of an evaluation.
        line: JSON line of the transcript, which tells for each answering thread whether its answer is right.
        name: name of the transcript in errors.

    Raises:
        ValueError: the transcript has samples, and the line only tells whether the selected answer is right.
    """
    answers = line.get("answers")
    if answers is None:
        if not (transcript.log.sampled & (transcript.log.thread == 0)).any():
            count = sum(thread.parent == 0 for thread in transcript.threads)
            raise ValueError(
                f"transcripts: {name} does not say which of its {count} samples are right; it is of an earlier version, "
                "evaluate again"
            )
        return transcript if line.get("correct") else None
    chosen = [answer["thread"] for answer in answers if answer["correct"]]
    if len(chosen) in (0, len(answers)):
        return transcript if chosen else None
    return only(transcript, chosen, name)


def only(transcript: Transcript, children: Sequence[int], name: str) -> Transcript:
    """The transcript with only the named children of its root, and their descendants.

    Args:
        children: thread numbers of the children to keep.
        name: name of the transcript in errors.

    Raises:
        ValueError: a thread that is kept saw one that is removed.
    """
    stays = under(transcript, children)
    if transcript.sees[np.ix_(stays, ~stays)].any():
        raise ValueError(f"transcripts: {name}: right answers of threads that saw wrong ones cannot be taken alone")
    thread, entries = np.cumsum(stays) - 1, stays[transcript.log.thread]
    place = np.where(entries, np.cumsum(entries) - 1, -1)
    columns = {f.name: getattr(transcript.log, f.name)[entries] for f in dataclasses.fields(transcript.log)}
    predictor = columns["predictor"]
    columns |= {
        "thread": thread[columns["thread"]].astype(np.int32),
        "predictor": np.where(predictor < 0, -1, place[predictor]).astype(np.int32),
    }
    records = [t for t, stay in zip(transcript.threads, stays, strict=True) if stay]
    now = lambda number: -1 if number < 0 else int(thread[number])
    sees, log = transcript.sees[np.ix_(stays, stays)], Log(**columns)
    return dataclasses.replace(
        transcript,
        threads=tuple(dataclasses.replace(t, parent=now(t.parent), follows=now(t.follows)) for t in records),
        sees=sees,
        log=log,
        own={name: values[stays] for name, values in transcript.own.items()},
        sampling={name: values[stays] for name, values in transcript.sampling.items()},
        peak_context=peak_context(sees, log, transcript.together),
    )


def rooted(transcript: Transcript) -> Transcript:
    """The transcript of an answer whose root only reads the prompt, with the answer as its root.

    The same tokens at the same clocks and positions as if the prompt had been fed to the thread that answers. A transcript that
    has another form (a root that samples, several answers, one that goes on from another) is returned as it is.
    """
    log, threads = transcript.log, transcript.threads
    answers = [number for number, thread in enumerate(threads) if len(thread.path) == 1]
    reads = not (log.sampled & (log.thread == 0)).any()
    if not reads or len(answers) != 1 or threads[answers[0]].follows >= 0:
        return transcript
    answer, others = answers[0], np.delete(transcript.sees, answers[0], axis=0)
    if not np.array_equal(others[1:, 0], others[1:, answer]):
        return transcript
    kept = np.arange(len(threads)) != 0
    fed = int(((log.thread == 0) & (log.index >= 0)).sum())
    moved = (log.thread == answer) & (log.index >= 0)
    log = dataclasses.replace(
        log,
        thread=np.maximum(log.thread - 1, 0).astype(log.thread.dtype),
        index=np.where(moved, log.index + fed, log.index).astype(log.index.dtype),
    )
    records = [
        dataclasses.replace(t, path=t.path[1:], parent=t.parent - 1, follows=t.follows - 1 if t.follows > 0 else -1)
        for t in threads[1:]
    ]
    sees = transcript.sees[np.ix_(kept, kept)]
    ended = threads[answer].stop
    return dataclasses.replace(
        transcript,
        stop=transcript.stop if ended in (Stop.KILLED, Stop.RUNNING, Stop.DROPPED) else ended,
        threads=tuple(records),
        sees=sees,
        log=log,
        own={name: values[kept] for name, values in transcript.own.items()},
        sampling={name: values[kept] for name, values in transcript.sampling.items()},
        peak_context=peak_context(sees, log, transcript.together),
    )


def under(transcript: Transcript, children: Sequence[int]) -> np.ndarray:
    """The threads that `only` keeps: Bool [M], true for the root, the named children of it, and their descendants."""
    paths = {transcript.threads[child].path for child in children}
    return np.array([not t.path or t.path[:1] in paths for t in transcript.threads])


def _sampled(found: Sequence[Transcript]) -> int:
    return sum(int(transcript.log.sampled.sum()) for transcript in found)


def question_of(line: Mapping[str, Any]) -> str:
    """The identity of the question of a transcript's line: its text, or its number if it has no text."""
    return line.get("question") or f"problem {line['problem']}"


def held_out(questions: Sequence[str], every: int) -> set[str]:
    """One in `every` questions, those with the smallest hashes: independent of files and order."""
    drawn = sorted(
        set(questions), key=lambda question: hashlib.sha256(question.encode(errors="surrogatepass")).digest()
    )
    return set(drawn[: len(drawn) // every])
