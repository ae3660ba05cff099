"""Runs as tasks of a Ray cluster, an extra: one task a run, which starts the same worker as everywhere else.

The results folder must be seen by all nodes under one path. The driver never touches an accelerator: it imports no jax. A task
whose node or process is lost is run again by Ray; a worker that was left behind holds the run's lock, and is waited for.
"""

import dataclasses
import os
import sys
from typing import Any

from apr_jax.sweep import worker
from apr_jax.sweep.executors import Executor
from apr_jax.sweep.runs import Need, Run

LOST = 3
"""How often Ray runs a task again whose process or node is lost."""


@dataclasses.dataclass
class Task:
    """A task that Ray holds."""

    reference: Any
    cancelled: bool = False


class Ray(Executor):
    """Tasks of a Ray cluster. Ray itself hands out chips, by the same environment variables as the local executor."""

    def __init__(self, need: Need, address: str = "", cores: int | None = None):
        """
        Args:
            need: the resources of each run; `chips` are "TPU" of a cluster that has some, else "GPU".
            address: of the cluster; empty: one is started on this machine.
            cores: of a cluster that is started here; None: all.

        Raises:
            ValueError: Ray is not installed, or the cluster can never hold a run.
        """
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                "executor is 'ray', which is not installed: pip install -r requirements-sweeps.txt"
            ) from error
        self.ray = ray
        here = {} if address else {"num_cpus": cores, "include_dashboard": False}
        ray.init(address=address or None, log_to_driver=False, configure_logging=False, **here)
        have = ray.cluster_resources()
        kind = "TPU" if "TPU" in have else "GPU"
        wanted: dict[str, Any] = {"num_cpus": need.cores, "memory": int(need.memory_gb * 1e9) or None}
        if need.chips:
            wanted |= {"resources": {"TPU": need.chips}} if kind == "TPU" else {"num_gpus": need.chips}
        for name, count in (("CPU", need.cores), (kind, need.chips), ("memory", need.memory_gb * 1e9)):
            if count > have.get(name, 0):
                self.close()
                raise ValueError(f"need: a run wants {count:g} {name}, the whole cluster has {have.get(name, 0):g}")
        self._task = ray.remote(**wanted, max_retries=LOST)(_task())

    def submit(self, run: Run) -> Task:
        return Task(self._task.remote([sys.executable, "-m", worker.__name__, str(run.folder)], os.getcwd()))

    def poll(self, handle: Task) -> int | None:
        ready, _ = self.ray.wait([handle.reference], timeout=0)
        if not ready:
            return None
        try:
            return int(self.ray.get(handle.reference))
        except self.ray.exceptions.RayError:  # it was cancelled, or its node was lost too often
            return 130 if handle.cancelled else 1

    def cancel(self, handle: Task) -> None:
        handle.cancelled = True
        self.ray.cancel(handle.reference, force=False)

    def close(self) -> None:
        self.ray.shutdown()


def _task():
    """The function of a task; a function within a function travels by its code, so that nodes need not import this module."""

    def work(command: list[str], place: str) -> int:
        import contextlib
        import os
        import signal
        import subprocess

        process = subprocess.Popen(command, cwd=place, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            return process.wait()
        except KeyboardInterrupt:  # how Ray cancels a task
            process.terminate()
            process.wait()
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what the worker has left behind

    return work
