"""Rollouts on disk, so that an evaluation that was ended goes on where it was.

A folder holds, by the name of a method, NAME.jsonl and NAME.npz (transcripts of the questions that are finished, see
`apr_jax.decode.transcript.write`) and NAME.json (what was asked, and what it took). The last is written last: without it the
others do not count.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apr_jax import settings
from apr_jax.decode import Progress, Stop, Transcript
from apr_jax.decode import transcript as transcripts
from apr_jax.tasks.task import Task
from apr_jax.tokenizer import TextCodec


@dataclasses.dataclass(frozen=True)
class Asked:
    """What decides a rollout, beside the files that it names and the code: with the same, one may go on.

    Attributes:
        rollout: a `methods.RolloutConfig`.
        task, tokenizer, seed: as in the evaluation's configuration.
    """

    rollout: Any
    task: Task
    tokenizer: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Kept:
    """What there is of a rollout.

    Attributes:
        finished: transcripts by the numbers of their questions.
        progress: what they and those that were cut off took.
        traces: how often the program was traced.
    """

    finished: Mapping[int, Transcript]
    progress: Progress
    traces: int

    def after(self, earlier: "Kept | None") -> "Kept":
        """Both parts of a rollout, this one the later."""
        if earlier is None:
            return self
        progress = self.progress.after(earlier.progress)
        return Kept({**earlier.finished, **self.finished}, progress, max(self.traces, earlier.traces))


def write(folder: Path, name: str, asked: Asked, kept: Kept, about: Sequence[Mapping], words: TextCodec) -> None:
    """Keep what there is of a rollout.

    Args:
        about: what `Task.about` says of each question.
        words: the tokenizer that reads the transcripts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = sorted(kept.finished)
    facts = [{**about[number], "method": name} for number in numbers]
    (folder / f"{name}.json").unlink(missing_ok=True)
    transcripts.write(folder / f"{name}.jsonl", [kept.finished[number] for number in numbers], words.decode, facts)
    progress = dataclasses.asdict(kept.progress)
    progress["stops"] = {stop.name.lower(): count for stop, count in kept.progress.stops.items()}
    record = {"asked": settings.to_dict(asked), "traces": kept.traces, "progress": progress}
    part = folder / f"{name}.json.part"
    part.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(part, folder / f"{name}.json")


def read(folder: Path, name: str, asked: Asked, about: Sequence[Mapping]) -> Kept | None:
    """What was kept of a rollout; None if nothing was.

    Raises:
        ValueError: it was asked otherwise, or other questions: the files do not belong to this evaluation.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        return None
    record = json.loads(file.read_text())
    advice = "leave out --resume, which decodes anew, or write to another --output"
    if other := settings.differences(asked, record["asked"]):
        raise ValueError(f"resume: {file} was made with another configuration ({'; '.join(other)}); {advice}")
    finished = {}
    for transcript, line in transcripts.read(file.with_suffix(".jsonl")):
        number = transcript.problem
        if number >= len(about) or line["question"] != about[number]["question"]:
            raise ValueError(
                f"resume: question {number + 1} is not the one that {file.with_suffix('.jsonl')} has; {advice}"
            )
        finished[number] = transcript
    progress = record["progress"] | {"shard_steps": tuple(record["progress"]["shard_steps"])}
    progress["stops"] = {Stop[stop.upper()]: count for stop, count in progress["stops"].items()}
    return Kept(finished, Progress(**progress), record["traces"])
