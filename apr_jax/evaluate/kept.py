"""Partial rollouts on disk, so that an interrupted evaluation can be resumed.

A folder holds, by the name of a method, NAME.jsonl and NAME.npz (transcripts of the finished questions, see
`apr_jax.record.write`) and NAME.json (settings, source files and costs of the rollout). NAME.json is written last: without it the
other two do not count. Judgements of answers are not kept, because judging can be repeated.
"""

import dataclasses
import glob
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apr_jax import files, record, settings
from apr_jax.decode import Progress, Stop, Transcript
from apr_jax.evaluate.machine import Machine
from apr_jax.tasks.task import Task
from apr_jax.tokenizer import TextCodec

MODEL = ("*.safetensors", "*.json", "*.model", "*.jinja")
"""Of the folder of a model, what is read: weights, configuration, tokenizer and chat template."""
PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")
"""Name of one of the files of a split model, which are read together."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Everything except the code that determines a rollout; a rollout with an equal `Asked` may be resumed.

    Attributes:
        rollout: a `methods.RolloutConfig`.
        task, tokenizer, seed: as in the evaluation's configuration.
        files: the identity of each file that the rollout reads (see `apr_jax.files`), by its path.
    """

    rollout: Any
    task: Task
    tokenizer: str
    seed: int
    files: Mapping[str, str] = dataclasses.field(metadata=settings.FREE)  # compared by `read`, with its own message

    @classmethod
    def now(cls, rollout: Any, task: Task, tokenizer: str, seed: int) -> "Asked":
        """With the present identities of the files of model, tokenizer (chat template included) and questions."""
        found: dict[str, str] = {}
        for path in map(Path, (rollout.checkpoint, tokenizer, *task.files().values())):
            part = PART.fullmatch(path.name)
            parts = path.parent.glob(f"{glob.escape(part[1])}-*-of-{part[2]}.gguf") if part else [path]
            for one in sorted(parts):
                found |= files.identities(one, MODEL)
        return cls(rollout, task, tokenizer, seed, found)


@dataclasses.dataclass(frozen=True)
class Kept:
    """The finished part of a rollout.

    Attributes:
        finished: transcripts by the numbers of their questions.
        progress: counts and seconds, including those of transcripts that were cut off.
        traces: number of traces of the program.
        machines: the machines that decoded the rollout; several if it was resumed on another one.
        compile_s: seconds of compiling, which `progress` does not count.
    """

    finished: Mapping[int, Transcript]
    progress: Progress
    traces: int
    machines: tuple[Machine, ...] = ()
    compile_s: float = 0.0

    def after(self, earlier: "Kept | None") -> "Kept":
        """The `earlier` part of a rollout and this part together."""
        if earlier is None:
            return self
        progress = self.progress.after(earlier.progress)
        machines = tuple(dict.fromkeys((*earlier.machines, *self.machines)))
        finished, traces = {**earlier.finished, **self.finished}, max(self.traces, earlier.traces)
        return Kept(finished, progress, traces, machines, self.compile_s + earlier.compile_s)


def write(folder: Path, name: str, asked: Asked, kept: Kept, about: Sequence[Mapping], codec: TextCodec) -> None:
    """Save the finished part of a rollout.

    Args:
        folder, name: the folder and the name of the method.
        asked: the settings of the rollout.
        kept: the finished part.
        about: the fields of each question from `Task.about`.
        codec: the tokenizer that reads the transcripts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = sorted(kept.finished)
    facts = [{**about[number], "method": name} for number in numbers]
    progress = dataclasses.asdict(kept.progress)
    progress["stops"] = {stop.name.lower(): count for stop, count in kept.progress.stops.items()}
    machines = [dataclasses.asdict(one) for one in kept.machines]
    note = {"asked": settings.to_dict(asked), "traces": kept.traces, "progress": progress, "machines": machines}
    note["compile_s"] = kept.compile_s
    with tempfile.TemporaryDirectory(dir=folder) as new:  # the earlier files stay until the new ones are complete
        record.write(Path(new) / f"{name}.jsonl", [kept.finished[n] for n in numbers], codec.decode, facts)
        (Path(new) / f"{name}.json").write_text(json.dumps(note, indent=2) + "\n")
        discard(folder, name)
        for end in ("jsonl", "npz", "json"):
            os.replace(Path(new) / f"{name}.{end}", folder / f"{name}.{end}")


def discard(folder: Path, name: str) -> None:
    """Invalidate the saved part of a rollout."""
    (folder / f"{name}.json").unlink(missing_ok=True)


def read(folder: Path, name: str, asked: Asked, prompts: Sequence[np.ndarray]) -> Kept | None:
    """The saved part of a rollout; None if there is none.

    Args:
        prompts: token ids of each question's prompt, Int [n] each.

    Raises:
        ValueError: the saved part does not belong to this evaluation: its settings, questions or files differ.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        return None
    note = json.loads(file.read_text())
    advice = "leave out --resume, which decodes anew, or write to another --output"
    if other := settings.differences(asked, note["asked"]):
        raise ValueError(f"resume: {file} was made with another configuration ({'; '.join(other)}); {advice}")
    if note["progress"]["problems"] != len(prompts):
        raise ValueError(
            f"resume: {file} is of {note['progress']['problems']} questions, not of {len(prompts)}; {advice}"
        )
    finished = {transcript.problem: transcript for transcript, _ in record.read(file.with_suffix(".jsonl"))}
    for number, transcript in finished.items():
        fed, prompt = (
            transcript.tokens(0),
            prompts[number],
        )  # if several threads answer, the root is not fed the prompt's last token
        if not np.array_equal(fed[: len(prompt)], prompt[: len(fed)]):
            raise ValueError(
                f"resume: question {number + 1} is not the one that {file.with_suffix('.jsonl')} has, or is put otherwise; {advice}"
            )
    before = note["asked"].get("files", {})
    if other := files.replaced(before, {**asked.files, **dict.fromkeys(before.keys() - asked.files.keys(), "absent")}):
        raise ValueError(f"resume: {file} was decoded with other files ({'; '.join(other)}); {advice}")
    progress = note["progress"] | {"shard_steps": tuple(note["progress"]["shard_steps"])}
    progress["stops"] = {Stop[stop.upper()]: count for stop, count in progress["stops"].items()}
    machines = tuple(map(Machine.of_entry, note.get("machines", [])))  # absent in files of earlier versions
    return Kept(finished, Progress(**progress), note["traces"], machines, note.get("compile_s", 0.0))
