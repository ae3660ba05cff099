"""Slurm: prints an array script, one task a run."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from apr_jax.sweep import worker
from apr_jax.sweep.runs import Need, Run


def script(found: Sequence[Run], need: Need, root: Path, at_once: int = 0) -> str:
    """The text of an array script; submitted again it skips what is done.

    Args:
        found: the runs, with their `run.json` written (`runs.prepare`).
        need: the resources of each.
        root: the results folder, for Slurm's own logs.
        at_once: tasks at once at most; 0: as many as Slurm gives.

    Raises:
        ValueError: there is no run.
    """
    if not found:
        raise ValueError("points: none is left to run, so that there is no array to submit")
    limit = f"%{at_once}" if at_once else ""
    lines = ["#!/bin/bash", f"#SBATCH --array=0-{len(found) - 1}{limit}", f"#SBATCH --cpus-per-task={need.cores}"]
    lines += [f"#SBATCH --mem={need.memory_gb * 1000:.0f}M"] * bool(need.memory_gb)
    lines += [f"#SBATCH --gpus-per-task={need.chips}"] * bool(need.chips)
    # Slurm asks a while before it ends a task; a little more than the run's own limit, which is told in its log.
    lines += [f"#SBATCH --time={int(need.hours * 60) + 5}", "#SBATCH --signal=B:TERM@120"] * bool(need.hours)
    lines += [f"#SBATCH --output={root}/slurm_%A_%a.log", "#SBATCH --requeue", f"cd {shlex.quote(str(Path.cwd()))}"]
    lines += ["folders=(", *(f"  {shlex.quote(str(run.folder))}" for run in found), ")"]
    lines += [f'exec {shlex.quote(sys.executable)} -m {worker.__name__} "${{folders[$SLURM_ARRAY_TASK_ID]}}"']
    return "\n".join(lines) + "\n"
