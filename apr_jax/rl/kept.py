"""The groups of steps on disk: `{workdir}/rollouts/step_N.jsonl` with its `.npz`, from which a step can be learnt from again.

A line is a transcript with its sampling parameters and the version of its parameters, and the `rewards` of its trajectories.
Axes: n trajectories.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from apr_jax import record
from apr_jax.rl import batches, estimators
from apr_jax.rl.batches import Batch
from apr_jax.rl.config import RlConfig
from apr_jax.rl.groups import Groups, gather


def path(config: RlConfig, step: int) -> Path:
    """The file of a step, counted from 1."""
    return Path(config.workdir) / "rollouts" / f"step_{step:06d}.jsonl"


def write(config: RlConfig, step: int, found: Groups, rewards: Float[np.ndarray, " n"], text: Callable) -> None:
    """Keep the groups of a step if it is one of those that are kept, and remove those of the step that is too old by now.

    Args:
        rewards: of the trajectories.
        text: function from token ids to text.
    """
    every, last = config.keep_every, config.keep_last
    often = lambda step: every > 0 and step % every == 0
    if last or often(step):
        path(config, step).parent.mkdir(exist_ok=True)
        of = [each.transcript for each in found.trajectories]
        told = [
            {"rewards": [float(reward) for reward, number in zip(rewards, of, strict=True) if number == mine]}
            for mine in range(len(found.transcripts))
        ]
        record.write(path(config, step), found.transcripts, text, told)
    if last and not often(old := step - last):
        for end in (".jsonl", ".npz"):
            path(config, old).with_suffix(end).unlink(missing_ok=True)


def read(config: RlConfig, step: int) -> tuple[Groups, Float[np.ndarray, " n"]]:
    """The groups of a kept step, and the rewards of their trajectories.

    Raises:
        ValueError: the step is not kept, or was kept by a version that did not write rewards; or see `groups.gather`.
    """
    file = path(config, step)
    if not file.exists():
        steps = ", ".join(
            str(int(each.stem.removeprefix("step_"))) for each in sorted(file.parent.glob("step_*.jsonl"))
        )
        raise ValueError(
            f"step {step} is not kept in {file.parent}; kept are {steps or 'none'} (keep_last, keep_every)"
        )
    pairs = list(record.read(file))
    if missing := [number for number, (_, line) in enumerate(pairs, start=1) if "rewards" not in line]:
        raise ValueError(f"{file}:{missing[0]} has no rewards; it is of an earlier version, draw the step again")
    # What the machine may have stopped was judged when it was drawn.
    found = gather([each for each, _ in pairs], config.rollout.sampling, config.groups.judged)
    return found, np.array([reward for _, line in pairs for reward in line["rewards"]], np.float64)


def batch(config: RlConfig, found: Groups, rewards: Float[np.ndarray, " n"]) -> Batch:
    """The rows of a step."""
    tree = found.tree() if config.estimator.tree != "none" else ()
    credit = estimators.advantages(config.estimator, rewards, found.group, *tree)
    return batches.pack(found, credit, config.estimator, config.groups)
