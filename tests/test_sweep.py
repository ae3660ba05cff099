"""Sweeps: the algebra of points, and runs that come to the same end whatever is killed on the way."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apr_jax.sweep import driver, points, report, runs, slurm
from apr_jax.sweep.config import SweepConfig
from apr_jax.sweep.executors import Local, Machine, chips_env
from apr_jax.sweep.runs import Need, Run
from experiments import make_data

PROGRAM = "tests.sweep_program"
CORES = (sorted(os.sched_getaffinity(0)) * 2)[:2]  # one twice, if there is one
TWO = Machine(tuple(CORES), memory_gb=8.0)


def chains(root: Path, count: int = 3, pause: float = 0.02, **base) -> list[Run]:
    """Runs of the program, two widths with so many seeds."""
    found = points.seeds(points.grid({"width": (1, 2)}), count)
    return [runs.of_point(PROGRAM, point, {"workdir": "{folder}", "pause": pause, **base}, root) for point in found]


def left(root: Path) -> dict[str, dict]:
    """The results of all runs, by name."""
    return {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/result.json")}


NO_LIMIT = Need()


def drive(found, root: Path, need: Need = NO_LIMIT, machine: Machine = TWO, **more):
    return driver.drive(found, Local(need, machine), root, need, every=0.02, **more)


# ---- points


def test_algebra():
    grid = points.grid({"a": (1, 2), "b.c": (3, 4)})
    assert grid == [{"a": 1, "b.c": 3}, {"a": 1, "b.c": 4}, {"a": 2, "b.c": 3}, {"a": 2, "b.c": 4}]
    zipped = points.zip({"a": (1, 2), "d": ("x", "y")})
    assert zipped == [{"a": 1, "d": "x"}, {"a": 2, "d": "y"}]
    assert points.grid(zipped, {"e": (0, 1)})[1:3] == [{"a": 1, "d": "x", "e": 1}, {"a": 2, "d": "y", "e": 0}]
    assert points.chain(grid[:2], grid[1:]) == grid
    assert points.where(grid, lambda point: point["a"] == 2) == grid[2:]
    assert points.seeds([{"a": 1}], 2) == [{"a": 1, "seed": 0}, {"a": 1, "seed": 1}]
    with pytest.raises(ValueError, match="different numbers"):
        points.zip({"a": (1, 2), "b": (1,)})
    with pytest.raises(ValueError, match="override a"):
        points.grid({"a": (1,)}, zipped)
    with pytest.raises(ValueError, match="no list of values"):
        points.grid({"a": "text"})


def test_names_are_stable_and_tell_points_apart():
    assert points.name({"b": 1e-4, "a.c": (1, 2)}) == points.name({"a.c": (1, 2), "b": 1e-4}) == "a.c=1+2,b=0.0001"
    assert points.name({}) == "base"
    named = [
        points.name({"file": value}) for value in ("a/b", "a_b", "a;b", "a+b", ("a", "b"), "a%2Fb", "a b", "../up")
    ]
    assert len(set(named)) == len(named) and not any("/" in name or " " in name for name in named)
    long = [points.name({"file": "x" * 300 + end}) for end in "ab"]
    assert long[0] != long[1] and max(map(len, long)) < 255


def test_options_are_those_a_user_would_type(tmp_path):
    run = runs.of_point("experiments.x", {"a.b_c": (1, 2), "on": True}, {"config": "f.py", "out": "{folder}"}, tmp_path)
    folder = tmp_path / "a.b_c=1+2,on=True"
    wanted = ["-m", "experiments.x", "--config", "f.py", "--out", str(folder), "--a.b-c", "1", "2", "--on", "True"]
    assert run.folder == folder and list(run.command[1:]) == wanted
    with pytest.raises(ValueError, match="option cannot say"):
        points.options({"a": {"b": 1}})


@pytest.mark.parametrize(
    "change, text",
    [
        ({"points": []}, "points is empty"),
        ({"points": [{"a": 1}, {"a": 1}]}, "occurs 2 times"),
        ({"base": {}}, "no value holds {folder}"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_a_sweep_refuses(change, text):
    good = dict(program=PROGRAM, points=[{"a": 1}], base={"workdir": "{folder}"})
    with pytest.raises(ValueError, match=text):
        SweepConfig(**good | change)


# ---- runs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    ended = drive(chains(root), root)
    assert ended.counts == {"done": 6} and not ended.failures
    return root


def test_what_is_done_is_skipped_and_seeds_are_aggregated(undisturbed):
    before = {path: path.read_bytes() for path in undisturbed.glob("*/*.json*")}
    assert drive(chains(undisturbed), undisturbed).counts == {"done": 6}
    assert before == {path: path.read_bytes() for path in undisturbed.glob("*/*.json*") if path in before}
    found = report.groups(report.read(undisturbed))
    values = [result["accuracy"] for name, result in sorted(left(undisturbed).items()) if "width=2" in name]
    assert [group.point for group in found] == [{"width": 1}, {"width": 2}] and len(values) == 3
    mean, spread = sum(values) / 3, (sum((v - sum(values) / 3) ** 2 for v in values) / 2) ** 0.5
    shown = found[1].means["accuracy"]
    assert shown.mean == pytest.approx(mean) and shown.count == 3
    assert shown.high - mean == pytest.approx(
        4.302653 * spread / 3**0.5, rel=1e-5
    )  # t(0.975) with 2 degrees of freedom
    assert found[0].means["cores"].mean == 1  # each run had a core of its own


def test_report_writes_tables_and_a_plot(undisturbed):
    command = [sys.executable, "-m", "experiments.sweep", "report", str(undisturbed), "--x", "width"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (undisturbed / "accuracy_over_width.png").stat().st_size > 5000
    lines = (undisturbed / "runs.csv").read_text().splitlines()
    assert lines[0] == "run,state,width,seed,accuracy,cores" and len(lines) == 7
    assert "| width | runs | accuracy |" in (undisturbed / "report.md").read_text()
    assert "±" in (undisturbed / "report.csv").read_text()


def test_failures_are_tried_again_and_told(tmp_path):
    base = {"workdir": "{folder}", "steps": 4, "pause": 0}
    found = [runs.of_point(PROGRAM, {"dies": how}, base, tmp_path) for how in ("never", "once", "always", "refuses")]
    ended = drive(found, tmp_path)
    states = {one.run.point["dies"]: (one.state, one.tries) for one in ended.progress}
    assert states == {"never": ("done", 1), "once": ("done", 2), "always": ("failed", 2), "refuses": ("failed", 1)}
    died, refused = ended.failures
    assert "dies=always: ended with code 1, after 2 tries" in died and "RuntimeError: a wish to die" in died
    assert "refused (code 2), after 1 try" in refused and "allowed is never" in refused
    assert [line["exit"] for line in runs.attempts(tmp_path / "dies=once") if "exit" in line] == [1, 0]
    assert [row.state for row in report.read(tmp_path)] == ["failed", "done", "done", "failed"]
    assert "Not in the table: 2 failed." in report.markdown(report.read(tmp_path))


def test_a_time_limit_ends_a_run(tmp_path):
    """One that saves its state when it is asked, and one that does not hear."""
    base = {"workdir": "{folder}", "steps": 600}
    found = [runs.of_point(PROGRAM, {"pause": pause}, base, tmp_path) for pause in (0.1, 60)]
    start = time.monotonic()
    ended = drive(found, tmp_path, Need(hours=2 / 3600, grace=1), retries=0)
    assert time.monotonic() - start < 30 and ended.counts == {"failed": 2}
    assert all("at its time limit" in text and "sweep: ended at" in text for text in ended.failures)


def test_another_command_in_a_folder_is_refused(tmp_path):
    drive(chains(tmp_path, 1, steps=1), tmp_path)
    with pytest.raises(ValueError, match="another command .*was '1', is now '2'"):
        drive(chains(tmp_path, 1, steps=2), tmp_path)


# ---- kill -9


SCRIPT = """
import os, sys
from pathlib import Path
from apr_jax.sweep import driver, points
from apr_jax.sweep.executors import Local, Machine
from apr_jax.sweep.runs import Need, of_point
root, pause, count = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
found = points.seeds(points.grid({"width": (1, 2)}), count)
found = [of_point("tests.sweep_program", point, {"workdir": "{folder}", "pause": pause}, root) for point in found]
cores = (sorted(os.sched_getaffinity(0)) * 2)[:2]
executor = Local(Need(), Machine(tuple(cores), 8.0))
ended = driver.drive(found, executor, root, Need(), retries=2, every=0.02)
raise SystemExit(0 if ended.counts["done"] == 2 * count else 130 if ended.interrupted else 1)
"""


def start(root: Path, pause: float = 0.02, count: int = 3, script: str = SCRIPT) -> subprocess.Popen:
    """A driver in a process of its own."""
    return subprocess.Popen([sys.executable, "-c", script, str(root), str(pause), str(count)])


def processes(root: Path) -> list[tuple[int, str]]:
    """The processes with this folder in their command lines, workers and programs, but not the driver."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:  # it has ended
            continue
        if "-m" in words and any(word.startswith(str(root)) for word in words):
            found.append((int(path.parent.name), words[words.index("-m") + 1]))
    return found


@pytest.mark.parametrize("victims", ["driver", "everything"])
def test_kill_9_at_random_moments(undisturbed, tmp_path, victims):
    """Of the driver alone, whose workers live on; of the driver and at random of workers and programs; again and again."""
    chance, kills = random.Random(victims), 0
    wanted = left(undisturbed)
    while len(left(tmp_path)) < 6 and kills < 40:
        process = start(tmp_path)
        while process.poll() is None and not processes(tmp_path):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        hit = [pid for pid, _ in processes(tmp_path) if victims == "everything" and chance.random() < 0.5]
        for pid in [process.pid, *hit]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        kills += 1
    assert kills > 2
    assert start(tmp_path).wait() == 0
    assert left(tmp_path) == wanted
    assert all(runs.state(tmp_path / name) == "done" for name in wanted)
    end = time.monotonic() + 30  # a worker whose run is done may still be ending
    while processes(tmp_path) and time.monotonic() < end:
        time.sleep(0.01)
    assert not processes(tmp_path)


def test_a_program_without_its_worker_is_waited_for(tmp_path):
    """A second one must not write into the same folder."""
    (run,) = [runs.of_point(PROGRAM, {"pause": 0.1}, {"workdir": "{folder}", "steps": 15}, tmp_path)]
    runs.prepare(run, Need())
    first = subprocess.Popen([sys.executable, "-m", "apr_jax.sweep.worker", str(run.folder)])
    while not any(module == PROGRAM for _, module in processes(tmp_path)):
        time.sleep(0.01)
    first.kill()
    first.wait()
    assert runs.state(run.folder) == "running"
    assert drive([run], tmp_path).counts == {"done": 1}
    steps = [int(line.split()[1]) for line in (run.folder / "log.txt").read_text().splitlines()]
    assert steps == list(range(1, 16))  # each once: the second attempt began after the first had ended


def test_a_killed_worker_takes_its_program_along(tmp_path):
    """Its cores are handed out again."""
    first = start(tmp_path, pause=1, count=1)
    while (
        sum(module == PROGRAM for _, module in processes(tmp_path)) < 2
    ):  # a child that is forked is a worker by name at first
        time.sleep(0.01)
    worker = next(os.getpgid(pid) for pid, module in processes(tmp_path) if module == PROGRAM)
    below = next(pid for pid, module in processes(tmp_path) if module == PROGRAM and os.getpgid(pid) == worker)
    os.kill(worker, signal.SIGKILL)
    end = time.monotonic() + 30
    while below in dict(processes(tmp_path)) and time.monotonic() < end:
        time.sleep(0.01)
    assert time.monotonic() < end
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 130


def test_kill_9_of_a_program_of_the_project(tmp_path):
    """Demonstrations for training: the files of a run that was killed again and again are those of an undisturbed one."""
    base = {"config": "configs/sft_apr.py", "data.folder": "{folder}/data", "data.processes": 1}
    base |= {"data.train": 200, "data.held_out": 2}
    run = runs.of_point("experiments.make_data", {"data.seed": 1}, base, tmp_path / "killed")
    alone = dataclasses.replace(run, folder=tmp_path / "alone")
    assert make_data.main([word.replace(str(run.folder), str(alone.folder)) for word in run.command[3:]]) == 0
    runs.prepare(run, NO_LIMIT)
    chance = random.Random(7)
    for _ in range(2):
        worker = subprocess.Popen([sys.executable, "-m", "apr_jax.sweep.worker", str(run.folder)])
        while not any(module == "experiments.make_data" for _, module in processes(run.folder)):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 2))
        for pid, _ in processes(run.folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        worker.wait()
    assert drive([run], tmp_path / "killed").counts == {"done": 1}
    names = [path.relative_to(alone.folder) for path in sorted((alone.folder / "data").rglob("*")) if path.is_file()]
    assert len(names) > 4
    for name in names:
        if name.name != "data.json":  # which names the folder
            assert (alone.folder / name).read_bytes() == (run.folder / name).read_bytes(), name


def test_one_driver_at_a_time_and_an_interrupt_saves(tmp_path):
    first = start(tmp_path, pause=0.2)
    while len(processes(tmp_path)) < 4:
        time.sleep(0.01)
    with pytest.raises(ValueError, match="another driver works on"):
        drive(chains(tmp_path, pause=0.2), tmp_path)
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 130 and not processes(tmp_path)
    states = [row.state for row in report.read(tmp_path)]
    assert states.count("interrupted") == 2 and states.count("waiting") == 4


# ---- where runs run


def test_what_is_handed_out():
    need = Need(cores=2, chips=2, memory_gb=3)
    machine = Machine(tuple(range(12)), 10.0, "gpu", (4, 5, 6, 7, 8, 9))
    local = Local(need, machine)
    assert local.room == 3  # by chips and by memory; the cores would allow six
    assert Local(need, machine, most=1).room == 1
    assert local._cores == [(0, 1), (2, 3), (4, 5)] and local._chips == [(4, 5), (6, 7), (8, 9)]
    assert chips_env("gpu", (4, 5)) == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert chips_env("gpu", ()) == {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    tpu = chips_env("tpu", (2, 3))
    assert (tpu["TPU_VISIBLE_CHIPS"], tpu["TPU_CHIPS_PER_PROCESS_BOUNDS"]) == ("2,3", "1,2,1")
    assert tpu["TPU_PROCESS_PORT"] != chips_env("tpu", (0, 1))["TPU_PROCESS_PORT"]
    for wrong, text in (
        (Need(cores=13), "need.cores is 13"),
        (Need(chips=7), "chips"),
        (Need(memory_gb=11), "10.0 GB"),
    ):
        with pytest.raises(ValueError, match=text):
            Local(wrong, machine)
    with pytest.raises(ValueError, match="can have 1, 2, 4, 8"):
        Local(Need(chips=3), dataclasses.replace(machine, kind="tpu"))


def test_a_slurm_array_runs_what_is_left(tmp_path):
    found = chains(tmp_path, 1, steps=1)
    for run in found:
        runs.prepare(run, Need())
    text = slurm.script(found, Need(cores=2, memory_gb=4, chips=1, hours=2), tmp_path, at_once=3)
    assert "#SBATCH --array=0-1%3\n" in text and "--cpus-per-task=2" in text and "--mem=4000M" in text
    (tmp_path / "array.sh").write_text(text)
    env = os.environ | {"SLURM_ARRAY_TASK_ID": "1"}
    assert subprocess.run(["bash", str(tmp_path / "array.sh")], env=env, timeout=60).returncode == 0
    assert [runs.state(run.folder) for run in found] == ["waiting", "done"]


def test_tasks_of_ray(tmp_path):
    """A local Ray of two cores: a process of Ray and the worker below it are killed, their program lives on; none runs twice."""
    pytest.importorskip("ray", reason="ray is not installed, see requirements-sweeps.txt")
    script = SCRIPT.replace(
        "from apr_jax.sweep.executors import Local, Machine", "from apr_jax.sweep.on_ray import Ray"
    )
    script = script.replace("Local(Need(), Machine(tuple(cores), 8.0))", "Ray(Need(), cores=2)")
    script = script.replace("raise", "assert 'jax' not in sys.modules\nraise")
    process = start(tmp_path, pause=0.1, count=2, script=script)
    while process.poll() is None and not any(module == PROGRAM for _, module in processes(tmp_path)):
        time.sleep(0.05)
    victim = next(pid for pid, module in processes(tmp_path) if module == "apr_jax.sweep.worker")
    parent = int(Path(f"/proc/{victim}/stat").read_text().rsplit(")", 1)[1].split()[1])  # the process of Ray
    for pid in (parent, victim):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(300) == 0
    assert all(runs.state(run.folder) == "done" for run in chains(tmp_path, 2, pause=0.1))
    lines = [line for path in tmp_path.glob("*/log.txt") for line in path.read_text().splitlines()]
    assert sum(line.startswith("step") for line in lines) == 4 * 10  # each step of the four runs once
