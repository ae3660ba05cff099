"""Where runs run: a small interface, and this machine.

Every executor starts `python -m apr_jax.sweep.worker FOLDER`, so that they can be mixed: the folder is the only state.
"""

import abc
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from apr_jax.sweep import worker
from apr_jax.sweep.runs import Need, Run

# Chips of a TPU host that one process may have, and how they lie (libtpu's TPU_CHIPS_PER_PROCESS_BOUNDS).
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
TPU_PORT = 8476
"""Of the first process; each has a port of its own."""


class Executor(abc.ABC):
    """The interface of an executor. A handle is whatever it needs to know a submitted run again."""

    @abc.abstractmethod
    def submit(self, run: Run) -> Any | None:
        """Start a run, or queue it; None if there is no room now, to be asked again later.

        Raises:
            ValueError: there will never be room for it.
        """

    @abc.abstractmethod
    def poll(self, handle: Any) -> int | None:
        """The exit code of the worker, None while it runs or waits."""

    @abc.abstractmethod
    def cancel(self, handle: Any) -> None:
        """Have a run end: it is asked to save its state, and killed if it does not end; `poll` tells when it has."""

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Give back what the executor holds."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What there is to hand out.

    Attributes:
        cores: numbers of processor cores.
        memory_gb: memory that is free now, 10^9 bytes.
        kind: of the accelerators, "gpu" or "tpu"; empty: there are none.
        chips: their numbers.
    """

    cores: tuple[int, ...]
    memory_gb: float
    kind: str = ""
    chips: tuple[int, ...] = ()

    @classmethod
    def this(cls) -> "Machine":
        """This machine, as its files tell: no accelerator is touched, because whoever touches a TPU holds it."""
        cores, memory = tuple(sorted(os.sched_getaffinity(0))), _available()
        for kind, place, begin, visible in (
            ("gpu", Path("/dev"), "nvidia", "CUDA_VISIBLE_DEVICES"),
            ("tpu", Path("/dev"), "accel", "TPU_VISIBLE_CHIPS"),
            ("tpu", Path("/dev/vfio"), "", "TPU_VISIBLE_CHIPS"),
        ):
            numbers = sorted(
                int(name) for path in place.glob(f"{begin}*") if (name := path.name[len(begin) :]).isdecimal()
            )
            if given := os.environ.get(visible):
                numbers = [int(number) for number in given.split(",")]
            if numbers:
                return cls(cores, memory, kind, tuple(numbers))
        return cls(cores, memory)


def _available() -> float:
    """Free memory of this machine, 10^9 bytes."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")) / 1e9


def chips_env(kind: str, chips: tuple[int, ...]) -> dict[str, str]:
    """The environment in which a process sees these chips of its machine and no others.

    Raises:
        ValueError: a process cannot have so many chips of a TPU host.
    """
    numbers = ",".join(map(str, chips))
    if kind == "gpu":
        return {"CUDA_VISIBLE_DEVICES": numbers} | ({} if chips else {"JAX_PLATFORMS": "cpu"})
    if kind != "tpu":
        return {}
    if not chips:
        return {"JAX_PLATFORMS": "cpu"}
    if len(chips) not in BOUNDS:
        raise ValueError(f"need.chips is {len(chips)}; of a TPU host a process can have {', '.join(map(str, BOUNDS))}")
    port = TPU_PORT + chips[0]
    return {
        "TPU_VISIBLE_CHIPS": numbers,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[len(chips)],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "TPU_PROCESS_PORT": str(port),
        "CLOUD_TPU_TASK_ID": "0",
    }


@dataclasses.dataclass
class Started:
    """A process of the local executor, the leader of a group, with what was handed out to it."""

    process: subprocess.Popen
    cores: tuple[int, ...]
    chips: tuple[int, ...]


class Local(Executor):
    """Processes of this machine, as many at once as its cores, memory and chips allow."""

    def __init__(self, need: Need, machine: Machine | None = None, most: int = 0):
        """
        Args:
            need: the resources of each run.
            machine: what there is; None: this machine.
            most: runs at once at most; 0: as many as fit.

        Raises:
            ValueError: not even one run fits.
        """
        self.need, self.machine = need, machine or Machine.this()
        fit = {"cores": len(self.machine.cores) // need.cores}
        if need.memory_gb:
            fit["memory_gb"] = int(self.machine.memory_gb // need.memory_gb)
        if need.chips:
            fit["chips"] = len(self.machine.chips) // need.chips
            chips_env(self.machine.kind, self.machine.chips[: need.chips])  # raises ValueError
        for name, count in fit.items():
            if not count:
                raise ValueError(
                    f"need.{name} is {getattr(need, name)}; this machine has {len(self.machine.cores)} cores, "
                    f"{self.machine.memory_gb:.1f} GB of free memory and {len(self.machine.chips)} chips"
                )
        self.room = min([*fit.values(), *([most] if most else [])])
        size = need.cores
        self._cores = [self.machine.cores[i * size : (i + 1) * size] for i in range(self.room)]
        self._chips = [self.machine.chips[i * need.chips : (i + 1) * need.chips] for i in range(self.room)]

    def submit(self, run: Run) -> Started | None:
        if not self._cores:
            return None
        cores, chips = self._cores.pop(0), self._chips.pop(0)
        env = {**os.environ, worker.CORES: ",".join(map(str, cores)), **chips_env(self.machine.kind, chips)}
        command = [sys.executable, "-m", worker.__name__, str(run.folder)]
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
        return Started(process, cores, chips)

    def poll(self, handle: Started) -> int | None:
        process = handle.process
        if process.returncode is None:
            # The leader is left unreaped until its group is gone, so that no other process can have the group's number.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            _kill(process.pid, signal.SIGKILL)
            process.wait()
            self._cores.append(handle.cores)
            self._chips.append(handle.chips)
        return process.returncode

    def cancel(self, handle: Started) -> None:
        if self.poll(handle) is None:
            os.kill(handle.process.pid, signal.SIGTERM)  # the worker asks its program, and kills it after a while


def _kill(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:  # all of its processes are gone
        return
