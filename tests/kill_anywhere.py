"""Training runs that are killed (SIGKILL) at random points and started again, beside one that was left alone.

    make kill POINTS=20
    make kill ARGS="--loops rl --first 7 --points 1"      # one point again

Half of the points are operations on files (open, rename, mkdir, remove: in whatever thread; the process dies just before one), the
others moments in a part of the program: the rollout, the update, an evaluation, a checkpoint, the export. Afterwards
parameters and optimiser must be equal bit for bit, `metrics.jsonl` line by line but for what was measured in seconds, and all
rollouts that were kept.
"""

import collections
import dataclasses
import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from apr_jax import settings

ROOT = Path(__file__).parent.parent
LOOPS = {"sft": "experiments.train_sft", "rl": "experiments.train_rl"}
# Parts of a run, by a function that is on the main thread's stack meanwhile.
PARTS = {
    "data": ("train/data.py", "make"),
    "rollout": ("rl/samples.py", "draw"),
    "update": ("rl/run.py", "_learn"),
    "supervised steps": ("train/sft.py", "run"),
    "evaluation": ("train/sft.py", "evaluate"),
    "evaluation of answers": ("rl/samples.py", "evaluate"),
    "kept transcripts": ("apr_jax/record.py", "write"),
    "checkpoint": ("train/checkpoints.py", "save"),
    "end of the checkpoints": ("train/checkpoints.py", "__exit__"),
    "export": ("train/weights.py", "write"),
}
CONFIG = """from pathlib import Path

import small_runs


def config():
    return small_runs.{name}(Path(__file__).parent)
"""
TIMED = re.compile(r"(seconds|per_second|host_share)$")


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a process dies.

    Attributes:
        text: part of an operation on a file, such as "os.rename checkpoints/"; empty: any operation.
        number: the number of the operation among those with this text, from 1; 0: none.
        part: a part of the program.
        seconds: spent in this part before.
    """

    text: str = ""
    number: int = 0
    part: str = ""
    seconds: float = 0.0


# ---- in the process that dies


def child(folder: str, point: str, note: str, module: str, *argv: str) -> int:
    """Runs a program, which dies at the point, and notes what was seen until then."""
    where, seen, count = Point(**json.loads(point)), [], itertools.count(1)
    spent: dict[str, float] = collections.Counter()

    def write(last: str) -> None:
        Path(note).write_text(json.dumps({"operations": seen, "spent": spent, "last": last}))

    def die(last: str) -> None:
        write(last)
        os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") or event == "open" and _writes(*args[1:]):
            path = os.fspath(args[0]) if isinstance(args[0], str | os.PathLike) else ""
            if str(path).startswith(folder + os.sep):
                seen.append(f"{event} {os.path.relpath(path, folder)}")
                if where.number and where.text in seen[-1] and next(count) == where.number:
                    die(seen[-1])

    def watch() -> None:
        main, before = threading.main_thread().ident, time.monotonic()
        while True:
            time.sleep(0.001)
            now = time.monotonic()
            for part in _running(sys._current_frames().get(main)):
                spent[part] += now - before
                if part == where.part and spent[part] >= where.seconds:
                    die(f"{spent[part]:.3f} s in {part}")
            before = now

    sys.addaudithook(hook)
    threading.Thread(target=watch, daemon=True).start()
    code = importlib.import_module(module).main(argv)
    write("the end")
    return code


def _writes(mode: str | None, flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _running(frame) -> set[str]:
    """The parts that the frames of a stack belong to."""
    found = set()
    while frame is not None:
        code = frame.f_code
        found |= {
            part for part, (file, name) in PARTS.items() if code.co_name == name and code.co_filename.endswith(file)
        }
        frame = frame.f_back
    return found


# ---- in the process that looks on


@dataclasses.dataclass(frozen=True)
class Run:
    """A run in a folder of its own.

    Attributes:
        loop: of `LOOPS`.
        folder: of the run.
        config: name of its configuration in `small_runs`; empty: that of the loop.
    """

    loop: str
    folder: Path
    config: str = ""

    def start(self, point: Point = Point()) -> tuple[int, str, Mapping]:
        """Starts a process; returns its exit code, what it said, and what was seen in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config, note = self.folder / "config.py", self.folder / "seen.json"
        config.write_text(CONFIG.format(name=self.config or self.loop))
        given = json.dumps(dataclasses.asdict(point))
        command = [sys.executable, "-m", "kill_anywhere", "child", str(self.folder), given, str(note), LOOPS[self.loop]]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        done = subprocess.run(
            [*command, "--config", str(config)], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr, json.loads(note.read_text())

    def to_the_end(self) -> Mapping:
        code, told, seen = self.start()
        assert code == 0, told
        return seen

    def result(self) -> dict[str, object]:
        """All that must be equal, by its name."""
        work = self.folder / "run"
        last = max(
            (path for path in (work / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
        )
        state = ocp.StandardCheckpointer().restore(last / "state")
        found: dict[str, object] = {f"state{name}": leaf for name, leaf in _leaves(state)}
        found["export"] = (work / "model.safetensors").read_bytes()
        for number, line in enumerate((work / "metrics.jsonl").read_text().splitlines()):
            found[f"metrics.jsonl:{number + 1}"] = {k: v for k, v in json.loads(line).items() if not TIMED.search(k)}
        for path in sorted((work / "rollouts").glob("*")):
            if path.suffix == ".npz":
                with np.load(path) as arrays:
                    found |= {f"{path.name}:{name}": arrays[name] for name in arrays.files}
            else:
                found[path.name] = path.read_bytes()
        return found


def _leaves(tree: object, name: str = ""):
    if isinstance(tree, Mapping | Sequence):
        for key, item in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(item, f"{name}.{key}")
    elif tree is not None:
        key = jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key)
        yield name, np.asarray(jax.random.key_data(tree) if key else tree)


def differences(found: Mapping[str, object], expected: Mapping[str, object]) -> list[str]:
    """The names of what is not equal, bit for bit."""
    missing = sorted(found.keys() ^ expected.keys())
    return missing + [name for name in found.keys() & expected.keys() if not _equal(found[name], expected[name])]


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return repr(a) == repr(b)  # NaN is NaN


def draw(number: int, seen: Mapping) -> Point:
    """The point of a number, given what an undisturbed run did."""
    rng = np.random.default_rng(number)
    if number % 2:
        return Point(number=int(rng.integers(1, len(seen["operations"]) + 1)))
    part = sorted(seen["spent"])[rng.integers(len(seen["spent"]))]
    return Point(part=part, seconds=float(rng.uniform(0, seen["spent"][part])))


# ---- the command


@dataclasses.dataclass(frozen=True)
class KillConfig:
    """Attributes:
    loops: the kinds of runs.
    points: number of points of each, at which a process dies.
    first: number of the first point.
    folder: of the runs, and of the programs that they compile.
    """

    loops: tuple[str, ...] = tuple(LOOPS)
    points: int = 20
    first: int = 0
    folder: str = "work/kill"


def main(argv: Sequence[str]) -> int:
    if argv[:1] == ["child"]:
        return child(*argv[1:])
    config = settings.parse(argv, KillConfig())
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(config.folder).resolve() / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    return max(_prove(loop, config) for loop in config.loops)


def _prove(loop: str, config: KillConfig) -> int:
    """Kills one kind of run at its points; returns 1 if a result differed."""
    place = (Path(config.folder) / f"{loop}_{os.getpid()}").resolve()
    Run(loop, place / "compiling").to_the_end()
    whole = Run(loop, place / "whole")
    seen, expected = whole.to_the_end(), whole.result()
    print(f"{loop}: {len(seen['operations'])} operations on files, seconds by part: {seen['spent']}", flush=True)
    number, reached, failed = config.first, 0, 0
    while reached < config.points:
        run, point = Run(loop, place / f"point_{number}"), draw(number, seen)
        code, told, died = run.start(point)
        number += 1
        if code == 0:
            continue  # it was over before, as runs differ in time
        assert code == -signal.SIGKILL, told
        reached += 1
        run.to_the_end()
        different = differences(run.result(), expected)
        failed += bool(different)
        print(f"{loop} point {number - 1}: died at {died['last']}: {different or 'equal'}", flush=True)
    print(f"{loop}: {reached - failed} of {reached} runs that were killed end as the one that was not", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
