"""Shardings of arrays on a mesh: named axes of parameters, rules from axis names to mesh axes, and errors for axes that do not fit.

The mesh has two axes: `data` (problems, rows) and `model` (heads, feed-forward width, vocabulary). A head is never cut: if
`model` does not divide the number of query heads, or of key/value heads, these heads are replicated. The feed-forward width and
the vocabulary can be padded; a mesh that does not divide them is refused.

Decoding and training have one mesh and two tables of rules. In training the width is cut over `data` too, so that each device
keeps a part of parameters, gradients and optimiser (FSDP, arXiv 2304.11277); a layer's weights are gathered where it uses them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AxisNames = tuple[str | None, ...]
Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh  # an abstract mesh has sizes, but no devices


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axis over which each logical axis is cut; None replicates the axis."""

    batch: str | None = "data"
    vocabulary: str | None = "model"
    width: str | None = None
    heads: str | None = "model"
    kv_heads: str | None = "model"
    ffn: str | None = "model"

    def mesh_axis(self, name: str | None) -> str | None:
        """The mesh axis of a logical axis; raises ValueError if there is no such logical axis."""
        if name is None:
            return None
        if name not in (field.name for field in dataclasses.fields(self)):
            known = ", ".join(field.name for field in dataclasses.fields(self))
            raise ValueError(f"no rule for the logical axis {name!r}; there are rules for {known}")
        return getattr(self, name)


DECODING = Rules()
TRAINING = Rules(width="data")
REPLICABLE = ("heads", "kv_heads")
"""Axes that are replicated where they do not divide: they cannot be padded, and cutting a head would part its products."""


def make_mesh(data: int = 1, model: int = 1) -> jax.sharding.Mesh:
    """A mesh with axes `data` and `model`, in automatic mode, over the first `data * model` devices.

    Raises:
      ValueError: a size is below 1 or there are too few devices.
    """
    devices = jax.devices()
    if data < 1 or model < 1 or data * model > len(devices):
        raise ValueError(
            f"a mesh of data={data} x model={model} needs {data * model} devices, each size at least 1; "
            f"there are {len(devices)} ({devices[0].platform}). On CPU, set jax_num_cpu_devices before jax is used"
        )
    automatic = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((data, model), ("data", "model"), axis_types=automatic, devices=devices[: data * model])


def spec(axes: AxisNames, rules: Rules = DECODING) -> jax.sharding.PartitionSpec:
    """The partition of an array with these axis names, assuming that every size divides."""
    return jax.sharding.PartitionSpec(*(rules.mesh_axis(name) for name in axes))


def fitted_spec(
    shape: tuple[int, ...], axes: AxisNames, mesh: Mesh, rules: Rules = DECODING, name: str = "array"
) -> jax.sharding.PartitionSpec:
    """`spec` for an array of this shape: heads that do not divide are replicated.

    Raises:
      ValueError: the number of axes is wrong, or an axis that must be cut does not divide.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{name} has shape {shape}, but its axes are named {axes}")
    cuts = list(spec(axes, rules))
    for i, (size, axis, cut) in enumerate(zip(shape, axes, cuts, strict=True)):
        if cut is None or size % mesh.shape[cut] == 0:
            continue
        if axis not in REPLICABLE:
            allowed = [n for n in range(1, mesh.shape[cut] + 1) if size % n == 0]
            raise ValueError(
                f"{name}: axis {axis!r} of size {size} cannot be cut over {cut}={mesh.shape[cut]}; "
                f"use a mesh with {cut} one of {allowed}, or pad the axis"
            )
        cuts[i] = None
    return jax.sharding.PartitionSpec(*cuts)


def shardings(
    params: Mapping[str, Any], axes_tree: Mapping[str, Any], mesh: Mesh, rules: Rules = DECODING
) -> Mapping[str, Any]:
    """The tree of `NamedSharding`s of a parameter tree (arrays or `jax.ShapeDtypeStruct`s).

    Raises:
      ValueError: the trees differ, or an axis does not divide; the message names the parameter.
    """

    def place(path: Any, leaf: Any, axes: AxisNames) -> jax.NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return jax.NamedSharding(mesh, fitted_spec(leaf.shape, axes, mesh, rules, name))

    return jax.tree_util.tree_map_with_path(place, params, axes_tree)


def shard_tree(
    params: Mapping[str, Any], axes_tree: Mapping[str, Any], mesh: jax.sharding.Mesh, rules: Rules = DECODING
) -> Mapping[str, Any]:
    """The parameters, placed on the mesh; `axes_tree`: see `apr_jax.model.transformer.logical_axes`."""
    return jax.tree.map(put, params, shardings(params, axes_tree, mesh, rules))


def state_places(state: Any, places: Mapping[str, Any], mesh: Mesh) -> Any:
    """The tree of `NamedSharding`s of a training state, or of any tree that holds trees of the form of the parameters.

    An array whose path ends with the path of a parameter, such as a moment, lies as the parameter; every other array is on all
    devices.

    Args:
      state: the state (arrays or `jax.ShapeDtypeStruct`s).
      places: the sharding of every parameter, see `shardings`.
    """
    by_path = dict(jax.tree_util.tree_flatten_with_path(places)[0])

    def place(path: tuple, leaf: Any) -> jax.NamedSharding:
        found = next((by_path[path[i:]] for i in range(len(path)) if path[i:] in by_path), None)
        return found or jax.NamedSharding(mesh, jax.P())

    return jax.tree_util.tree_map_with_path(place, state)


def born(init: Callable[[Any], Any], key: Any, axes_tree: Mapping[str, Any], mesh: jax.sharding.Mesh) -> Any:
    """`init(key)`, with each parameter created sharded: no device ever holds all parameters.

    Raises:
      ValueError: see `shardings`.
    """
    places = shardings(jax.eval_shape(init, key), axes_tree, mesh)
    return jax.jit(init, out_shardings=places)(key)


def put(value: Any, place: jax.NamedSharding) -> jax.Array:
    """`jax.device_put` for meshes of several processes too: every process has the same value, and copies its devices' parts."""
    if place.is_fully_addressable:
        return jax.device_put(value, place)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return jax.device_put(value, place)  # the array is on the mesh already; jax refuses impossible moves
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def local(array: jax.Array) -> np.ndarray:
    """This process's parts of an array along the first axis, in order, without replicas; with one process the whole array.

    The other axes must not be cut.
    """
    parts = {piece.index[0].start or 0: piece.data for piece in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def local_places(array: jax.Array) -> list[int]:
    """The places along the first axis of what `local` gives."""
    parts = {piece.index[0].start or 0: piece.data.shape[0] for piece in array.addressable_shards}
    return [start + place for start in sorted(parts) for place in range(parts[start])]


def by_rows(draw: Callable[..., Any], logits: jax.Array, *rows: jax.Array) -> Any:
    """`draw(logits, *rows)` inside a program, each row on one device of `model` with its whole vocabulary.

    The communication is explicit. XLA would leave the vocabulary cut and turn cumulative sums and maxima into many collective
    permutes; on CPU all devices of the mesh wait for each of them, although shards of `data` are at different steps. Here one
    all-to-all gathers whole rows, and one all-gather per result sends the results to every device.

    Args:
      draw: returns a tree of arrays [B].
      logits: [B, V]; V is cut over `model` if the program runs on a mesh.
      rows: further arrays [B], the same on all devices of `model`.
    """
    count = jax.sharding.get_abstract_mesh().shape.get("model", 1)
    if count == 1:
        return draw(logits, *rows)
    size = logits.shape[0]
    each = -(-size // count)

    # jax 0.7.2 cannot lower `axis_index` where the axis `data` is manual already: there a sharded array numbers the devices.
    # Later versions do not use this array, because XLA would then cut all bookkeeping in the same way.
    numbers = (jnp.arange(count),) if jax.__version_info__ < (0, 8) else ()

    def mine(logits: jax.Array, *rows: jax.Array) -> Any:
        number, rows = (rows[0][0], rows[1:]) if numbers else (jax.lax.axis_index("model"), rows)
        pad = lambda x: jnp.pad(x, ((0, count * each - size), *((0, 0),) * (x.ndim - 1)))
        logits = jax.lax.all_to_all(pad(logits), "model", split_axis=0, concat_axis=1, tiled=True)
        start = number * each
        drawn = draw(logits, *(jax.lax.dynamic_slice_in_dim(pad(row), start, each) for row in rows))
        return jax.tree.map(lambda x: jax.lax.all_gather(x, "model", tiled=True)[:size], drawn)

    specs = (jax.P(None, "model"), *(jax.P("model"),) * len(numbers), *(jax.P(),) * len(rows))
    rule = {"in_specs": specs, "out_specs": jax.P(), "axis_names": {"model"}, "check_vma": False}
    return jax.shard_map(mine, **rule)(logits, *numbers, *rows)


def hold(pool: jax.Array, heads: int, axis: int = -1) -> jax.Array:
    """Constrain key/value arrays [.., K h] inside a program: cut over `model` along `axis` if that fits `heads`, else replicated.

    If query heads are cut and key/value heads are not, XLA would cut the pool over a part of `model` inside the loop, and
    gather it after the loop or in every step. Constrain the pool when it is written, and the blocks that are read.
    """
    mesh = jax.sharding.get_abstract_mesh()
    count = mesh.shape.get("model", 1)
    if count == 1:
        return pool
    cuts: list[str | None] = [None] * pool.ndim
    cuts[axis] = pool_cut(heads, count)
    place = jax.P(*cuts)
    if jax.__version_info__ < (0, 8):  # ignores the mesh in the context, and accepts no mesh with a manual axis
        automatic = (jax.sharding.AxisType.Auto,) * len(mesh.axis_names)
        place = jax.NamedSharding(mesh.update(axis_types=automatic), place)
    return jax.lax.with_sharding_constraint(pool, place)


def spread(x: jax.Array) -> jax.Array:
    """Constrain activations [B, S, ..] inside a training program: rows over `data`, each row whole on the devices of `model`.

    Without the constraint XLA may cut activations as the weights are cut, and exchange them instead of weights. Programs of one
    device, and the decoding loop, whose axis `data` is manual, are left alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size == 1 or "data" in mesh.manual_axes or "data" not in mesh.axis_names or x.ndim < 3:
        return x
    return jax.lax.with_sharding_constraint(x, jax.NamedSharding(mesh, jax.P("data")))


def pool_cut(heads: int, model: int) -> str | None:
    """The mesh axis over which the pool's K kv heads are cut; None if a head would be cut."""
    return "model" if heads % model == 0 else None


def explain(
    axes_tree: Mapping[str, Any], shapes: Mapping[str, Any], mesh: Mesh, rules: Rules = DECODING
) -> dict[str, str]:
    """For each logical axis with a mesh axis: the cut, or the reason why the axis is replicated, as text.

    Args:
      axes_tree: names of the axes of each parameter.
      shapes: the parameters, or their `jax.ShapeDtypeStruct`s.
    """
    found: dict[str, str] = {}

    def look(leaf: Any, axes: AxisNames) -> None:
        for size, axis in zip(leaf.shape, axes, strict=True):
            cut = rules.mesh_axis(axis)
            if cut is not None:
                count = mesh.shape[cut]
                even = size % count == 0
                found[axis] = (
                    f"{size} over {cut}={count}" if even else f"{size} replicated: {cut}={count} does not divide it"
                )

    jax.tree.map(look, shapes, axes_tree)
    return found
