"""Training on a mesh: where parameters, optimiser and rows lie, and programs that are compiled for that.

Supervised training, adapters and reinforcement learning share this. Parameters, gradients and moments are cut by
`apr_jax.sharding.TRAINING`, rows over `data`. Without a mesh, which is one device, programs are compiled as they are.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from apr_jax import sharding

T = TypeVar("T")
Remat = Literal["everything_saveable", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable"]
"""Policies of `jax.checkpoint_policies`: what each layer keeps for the backward pass, all activations, only its input, or the
results of products as well, with or without those inside attention. The less it keeps, the more is computed twice."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices of a training run: the first `data * model`.

    Attributes:
        data: parts into which rows, parameters, gradients and moments are cut; it divides the model's width.
        model: parts into which heads, feed-forward width and vocabulary are cut besides.
    """

    data: int = 1
    model: int = 1

    def __post_init__(self):
        for name in ("data", "model"):
            if getattr(self, name) < 1:
                raise ValueError(f"mesh.{name} is {getattr(self, name)}; it must be at least 1")

    def check_rows(self, field: str, rows: int) -> None:
        """Raises ValueError if the rows of a micro-batch, given by this field, cannot be dealt evenly over `data`."""
        if rows % self.data:
            raise ValueError(
                f"{field} is {rows}; it must be a multiple of mesh.data = {self.data}, so that rows can be dealt"
            )

    def layout(self, axes: Mapping[str, Any]) -> "Layout":
        """The layout on the devices that there are.

        Args:
            axes: names of the axes of the trained parameters, see `apr_jax.model.transformer.logical_axes` and
                `apr_jax.train.lora.axes`.

        Raises:
            ValueError: there are too few devices.
        """
        alone = self.data * self.model == jax.process_count() == 1
        return Layout(None if alone else sharding.make_mesh(self.data, self.model), axes)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and how trained parameters are cut on it.

    Attributes:
        mesh: None: one device.
        axes: names of the axes of the trained parameters.
    """

    mesh: sharding.Mesh | None
    axes: Mapping[str, Any]

    def params(self, shapes: Mapping[str, Any], axes: Mapping[str, Any] | None = None) -> Any:
        """The sharding of every parameter, None without a mesh.

        Args:
            shapes: the parameters, or their `jax.ShapeDtypeStruct`s.
            axes: names of their axes, if they are not the trained ones.

        Raises:
            ValueError: the mesh does not divide an axis; the message names the parameter.
        """
        return self.mesh and sharding.shardings(shapes, axes or self.axes, self.mesh, sharding.TRAINING)

    def state(self, state: Any, params: Mapping[str, Any]) -> Any:
        """The sharding of every array of a training state with these parameters, None without a mesh; see `params`."""
        return self.mesh and sharding.state_places(state, self.params(params), self.mesh)

    def placed(self, state: T, params: Mapping[str, Any]) -> T:
        """A state of `jax.ShapeDtypeStruct`s with their shardings, to be restored so."""
        if self.mesh is None:
            return state
        return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), state, self.state(state, params))

    def put(self, params: Mapping[str, Any], axes: Mapping[str, Any] | None = None) -> Any:
        """The parameters in their places; see `params`."""
        return params if self.mesh is None else jax.tree.map(sharding.put, params, self.params(params, axes))

    def on_host(self) -> contextlib.AbstractContextManager:
        """Inside, new arrays are made on the host's processor, to be put on the mesh part by part; nothing without a mesh."""
        alone = self.mesh is None
        return contextlib.nullcontext() if alone else jax.default_device(jax.local_devices(backend="cpu")[0])

    @property
    def everywhere(self) -> jax.NamedSharding | None:
        """The sharding of what every device has, None without a mesh."""
        return self.mesh and jax.NamedSharding(self.mesh, jax.P())

    def rows(self, batch: T) -> T:
        """A tree of arrays [B, ..] with its rows dealt over `data`; every process gives the same arrays, and all of them."""
        place = self.mesh and jax.NamedSharding(self.mesh, jax.P("data"))
        return batch if place is None else jax.tree.map(lambda leaf: sharding.put(np.asarray(leaf), place), batch)

    def jit(self, function: Callable, places: Any = None, **options: Any) -> Callable:
        """`jax.jit` of a function of arrays on the mesh.

        Args:
            places: shardings of the results, a tree or the beginning of one; None: as XLA chooses.
            options: of `jax.jit`.
        """
        if self.mesh is None:
            return jax.jit(function, **options)

        @functools.wraps(function)
        def within(*given: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*given)

        return jax.jit(within, out_shardings=places, **options)

    def hold(self, tree: Mapping[str, Any]) -> Mapping[str, Any]:
        """Inside a program, arrays with the form of the trained parameters, such as gradients, kept in their places."""
        if self.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.params(tree))
