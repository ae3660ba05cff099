"""A run: a point as a process that runs the command line a user would type, in a folder of its own.

The folder holds what the program writes, and

    run.json         the command, its place and limits, written before the run is submitted
    log.txt          what the program printed, all attempts
    attempts.jsonl   a line when an attempt begins and when it ends
    done.json        written when the program has ended with code 0, and at no other time
    lock             held by whoever runs the command, and by the program itself

Nothing else is kept anywhere: whoever reads these files knows where a sweep stands.
"""

import dataclasses
import fcntl
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from apr_jax import files
from apr_jax.sweep import points

RUN, LOG, ATTEMPTS, DONE, LOCK = "run.json", "log.txt", "attempts.jsonl", "done.json", "lock"
State = Literal["waiting", "running", "interrupted", "failed", "done"]
INTERRUPTED = 130
"""Exit code of a program that was interrupted and can go on."""
REFUSED = 2
"""Exit code of a program with a wrong configuration; it would be wrong again."""


@dataclasses.dataclass(frozen=True)
class Need:
    """The resources of one run.

    Attributes:
        cores: processor cores.
        memory_gb: memory of the host, 10^9 bytes; 0: it is not watched.
        chips: accelerator chips; 0: it runs on the processor.
        hours: time limit of an attempt; 0: none.
        grace: seconds that a program has to save its state when it is to end, before it is killed.
    """

    cores: int = 1
    memory_gb: float = 0.0
    chips: int = 0
    hours: float = 0.0
    grace: float = 60.0

    def __post_init__(self):
        for name, least in (("cores", 1), ("memory_gb", 0), ("chips", 0), ("hours", 0), ("grace", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"need.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclasses.dataclass(frozen=True)
class Run:
    """A process to run.

    Attributes:
        name: of the run within its sweep.
        folder: its folder.
        command: program and arguments, from the interpreter on.
        point: the values by which the run differs from others, for reports.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    point: Mapping[str, Any]


def of_point(program: str, point: points.Point, base: Mapping[str, Any], root: Path, name: str = "") -> Run:
    """The run of a point: `python -m PROGRAM` with the options of the base, and then those of the point.

    Args:
        program: a module, such as experiments.train_rl.
        point: overrides; they replace those of the base.
        base: overrides that all points have, `config` first; `{folder}` in a value stands for the run's folder.
        root: folder of the sweep.
        name: of the run; empty: the point's.
    """
    name = name or points.name(point)
    folder = root / name
    given = {**base, **point}
    command = (sys.executable, "-m", program, *points.options(given, str(folder)))
    return Run(name, folder, command, dict(point))


def prepare(run: Run, need: Need, env: Mapping[str, str] | None = None) -> None:
    """Write `run.json`, and the folder.

    Raises:
        ValueError: the folder holds a run of another command.
    """
    known = files.read_json(run.folder / RUN)
    # The interpreter may differ: executors can be mixed.
    if known and known["command"][1:] != list(run.command[1:]):
        pairs = itertools.zip_longest(known["command"][1:], run.command[1:], fillvalue="nothing")
        before, now = next((before, now) for before, now in pairs if before != now)
        raise ValueError(
            f"{run.folder} holds a run of another command (first difference: was {before!r}, is now {now!r}); give another output "
            "folder, or remove this one"
        )
    about = {"name": run.name, "command": list(run.command), "point": run.point, "place": os.getcwd()}
    write_json(run.folder / RUN, {**about, **dataclasses.asdict(need), "env": dict(env or {})})


def write_json(path: Path, value: Any) -> None:
    """Write a file as a whole, and its folder: a process that is killed meanwhile never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    with new.open("w") as file:
        json.dump(value, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def attempts(folder: Path) -> list[dict]:
    """The lines of `attempts.jsonl`: those of beginnings have `began`, those of ends have `exit`. Half a line is left out."""
    path = folder / ATTEMPTS
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # what a killed process has left of a line
            continue
    return found


def state(folder: Path) -> State:
    """Where a run stands."""
    if (folder / DONE).is_file():
        return "done"
    if is_held(folder / LOCK):
        return "running"
    last = next(reversed(attempts(folder)), None)
    if last is None:
        return "waiting"
    return "failed" if last.get("exit", INTERRUPTED) != INTERRUPTED else "interrupted"


def lock(path: Path) -> int | None:
    """Take the lock of a file, which the kernel frees when the last process that holds it is gone, killed or not.

    Returns:
        The open file's number, to be kept open; None if another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(number)
        return None
    return number


def unlock(number: int) -> None:
    """Free a lock taken with `lock`."""
    os.close(number)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file."""
    if not path.is_file():
        return False
    number = lock(path)
    if number is not None:
        unlock(number)
    return number is None


def tail(folder: Path, lines: int = 8) -> list[str]:
    """The last lines of a run's log."""
    path = folder / LOG
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 20_000, 0))
        return file.read().decode(errors="replace").splitlines()[-lines:]


def check_names(found: Sequence[Run]) -> None:
    """Refuse two runs of one name.

    Raises:
        ValueError: there are.
    """
    names = [run.name for run in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"points: {twice[0]} occurs {names.count(twice[0])} times; each point must differ from the others"
        )
