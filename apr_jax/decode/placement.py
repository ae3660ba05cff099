"""A program on a mesh: the shardings of parameters and state, and the slice that runs over the mesh.

The loop runs inside `shard_map`, manual over `data`: every shard has its own problems, queue and outbox, takes as many steps as it
needs, and nothing crosses `data`. The loop is automatic over `model`: XLA partitions the products as the parameters are partitioned
(heads, feed-forward width, vocabulary) and inserts all-reduces. The pool is cut over `model` if no kv head is cut by that, and
replicated otherwise; all other parts of the state are replicated on the devices of a shard.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from apr_jax import sharding
from apr_jax.decode import state as states
from apr_jax.decode.host import Told
from apr_jax.decode.loop import answer, run_slice
from apr_jax.decode.program import Program, Weights
from apr_jax.decode.state import State
from apr_jax.model import transformer
from apr_jax.model.int8 import Quantised

AXES = ("data", "model")


@dataclasses.dataclass(frozen=True)
class Placement:
    """A program on a mesh with the axes `data` and `model`; allocates nothing by itself.

    Attributes:
        program: the program.
        mesh: the mesh, see `sharding.make_mesh`. A mesh of described devices serves to compile for these devices.
        dtype: dtype of activations and pool.

    Raises:
        ValueError: the mesh lacks an axis, has an axis that is not automatic, or does not divide the model; the message names
            the parameter and the mesh sizes that would fit.
    """

    program: Program
    mesh: sharding.Mesh
    dtype: Any

    def __post_init__(self):
        kinds = dict(zip(self.mesh.axis_names, self.mesh.axis_types, strict=True))
        if any(kinds.get(axis) != jax.sharding.AxisType.Auto for axis in AXES):
            raise ValueError(f"the mesh has the axes {kinds}; {AXES}, both Auto, are needed: use sharding.make_mesh")
        self.param_places()

    @property
    def shards(self) -> int:
        """Number of shards; each has all of `program.sizes` for itself."""
        return self.mesh.shape["data"]

    def param_places(self) -> transformer.Params:
        """The sharding of every parameter."""
        graph = self.program.graph
        axes = transformer.logical_axes(graph.config, graph.fused)
        return sharding.shardings(transformer.abstract_params(graph.config, graph.fused), axes, self.mesh)

    def abstract_weights(self) -> Weights:
        """Shapes, dtypes and shardings of the weights."""
        graph = self.program.graph
        params = jax.tree.map(_with_place, transformer.abstract_params(graph.config, graph.fused), self.param_places())
        everywhere = jax.NamedSharding(self.mesh, jax.P())
        return Weights(params, jax.tree.map(lambda leaf: _with_place(leaf, everywhere), self.program.abstract_scorer()))

    def place(self, *axes: str | None) -> jax.NamedSharding:
        """The sharding of an array with a leading axis of shards; `axes`: mesh axes of the further array axes."""
        return jax.NamedSharding(self.mesh, jax.P("data", *axes))

    def create(self, seed: UInt32[Array, "2"]) -> State:
        """An empty state with a leading axis of shards; traceable: jit it with the shardings of `abstract_state`."""
        config = self.program.graph.config
        heads = config.kv_heads, config.head_dim
        state = states.create(self.program.sizes, config.layers, *heads, self.dtype, seed, self.program.protocol)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.shards, *x.shape)), state)

    def abstract_state(self) -> State:
        """Shapes, dtypes and shardings of the state."""
        shapes = jax.eval_shape(self.create, jax.ShapeDtypeStruct((2,), jnp.uint32))
        cut = sharding.pool_cut(self.program.graph.config.kv_heads, self.mesh.shape["model"])
        place = self.place(None, None, cut)
        place = Quantised(place, self.place(None, cut)) if self.program.sizes.int8_pool else place
        pool = tuple(tuple(jax.tree.map(_with_place, stored, place) for stored in layer) for layer in shapes.pool)
        return dataclasses.replace(jax.tree.map(lambda leaf: _with_place(leaf, self.place()), shapes), pool=pool)

    def state_places(self) -> State:
        """The sharding of every array of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())

    def run(self, weights: Weights, state: State, steps: Int[Array, ""]) -> State:
        """Run at most `steps` steps of every shard; traceable."""

        def shard(weights, state, steps):
            state = jax.tree.map(lambda x: x[0], state)
            state = run_slice(self.program, weights, state, steps)
            return jax.tree.map(lambda x: x[None], state)

        return self._by_shard(shard, jax.P(), jax.P("data"), jax.P())(weights, state, steps)

    def answer(self, state: State, told: Told) -> State:
        """Give the threads of every shard the host's replies; traceable. The state lacks its pool."""

        def shard(state, told):
            state, told = jax.tree.map(lambda x: x[0], (state, told))
            state = answer(self.program, state, told.reply, told.tokens, told.count)
            return jax.tree.map(lambda x: x[None], state)

        return self._by_shard(shard, jax.P("data"), jax.P("data"))(state, told)

    def _by_shard(self, work: Callable[..., State], *given: jax.P) -> Callable[..., State]:
        """`work` of one shard as a function of all; `given`: how its arguments lie on the mesh."""
        specs = {"in_specs": given, "out_specs": jax.P("data"), "axis_names": {"data"}}
        return jax.shard_map(work, mesh=self.mesh, check_vma=False, **specs)

    def compile(self, options: Mapping[str, str] | None = None) -> jax.stages.Compiled:
        """The slice, compiled from shapes alone for the devices of the mesh; `options`: compiler options."""
        run = jax.jit(self.run, donate_argnums=1, out_shardings=self.state_places())
        return run.lower(self.abstract_weights(), self.abstract_state(), np.int32(0)).compile(dict(options or {}))


def _with_place(leaf: jax.ShapeDtypeStruct, place: jax.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
