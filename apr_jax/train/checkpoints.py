"""Checkpoints of training runs: the state with which a resumed run ends with the same bits as an uninterrupted one.

A thin layer over Orbax's CheckpointManager (the `args` interface): saves run in the background, are atomic, and the
newest few are kept.
"""

import dataclasses
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from apr_jax import files

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Restored(Generic[T]):
    """A checkpoint read back.

    Attributes:
        step: number of training steps done.
        state: the tree of arrays.
        cursor: plain data (JSON) that was saved beside the arrays.
    """

    step: int
    state: T
    cursor: dict[str, Any]


class Checkpoints:
    """The checkpoints of one folder; a context manager that waits for the last save to be on disk."""

    def __init__(self, folder: str | Path, keep: int = 2):
        """Opens (or makes) the folder.

        Args:
            folder: folder of the checkpoints, one sub-folder per step.
            keep: number of the newest checkpoints to keep.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(files.local(folder, "folder").absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, cursor: dict[str, Any]) -> None:
        """Starts to save; returns when the arrays are copied, so that the caller may donate them.

        Args:
            step: number of training steps done; saving an existing step again does nothing.
            state: tree of arrays (typed random keys included).
            cursor: plain data: position in the data, configuration.
        """
        if step == self.latest:
            return
        # On CPU a host copy may be a view of the device's buffer, which the next step overwrites if the buffer is donated.
        state = jax.tree.map(jnp.copy, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), cursor=ocp.args.JsonSave(cursor))
        self._manager.save(step, args=args)

    def delete(self, step: int) -> None:
        """Removes the checkpoint of a step, if there is one."""
        self.wait_until_finished()
        if step in self.steps:
            self._manager.delete(step)

    def cursor(self, step: int | None = None) -> dict[str, Any]:
        """The plain data saved beside the arrays of a step (the newest one by default); does not read the arrays."""
        step = self.latest if step is None else step
        return self._manager.restore(step, args=ocp.args.Composite(cursor=ocp.args.JsonRestore())).cursor

    def restore(self, abstract: T, step: int | None = None) -> Restored[T]:
        """Reads a checkpoint.

        Args:
            abstract: the tree of `jax.ShapeDtypeStruct`s; an array without a sharding goes to the first device of this
                process, wherever it was saved.
            step: the checkpoint to read; the newest one by default.

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        step = self.latest if step is None else step
        if step is None:
            raise FileNotFoundError(f"there is no complete checkpoint in {self._manager.directory}")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed = jax.tree.map(lambda leaf: leaf.update(sharding=leaf.sharding or here), abstract)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(placed), cursor=ocp.args.JsonRestore())
        found = self._manager.restore(step, args=args)
        return Restored(step, found.state, found.cursor)

    def wait_until_finished(self) -> None:
        """Blocks until all started saves are on disk."""
        self._manager.wait_until_finished()
