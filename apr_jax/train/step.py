"""The state of supervised training, and the compiled programs of steps and evaluations. Axes: B rows of a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from apr_jax.model import transformer
from apr_jax.model.attention import LONG
from apr_jax.model.blockwise import skipped
from apr_jax.train import lora, optimizer
from apr_jax.train.config import SftConfig
from apr_jax.train.layout import Layout
from apr_jax.train.losses import Sums, rows_loss, summarise
from apr_jax.train.packing import Rows
from apr_jax.train.rows import RowStore


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state that a training step updates.

    Attributes:
        params: the trained arrays: parameters of the model, or adapters.
        optimizer: state of the optimiser.
        step: updates done.
        key: random key of the run, for random draws of steps (at present there are none).
    """

    params: transformer.Params
    optimizer: optax.OptState
    step: Int[Array, ""]
    key: Key[Array, ""]


def initial_state(config: SftConfig) -> TrainState:
    """The state before the first step; traceable."""
    key, used = jax.random.split(jax.random.key(config.seed))
    params = lora.init(config.lora, config.model, used) if config.lora else transformer.init_params(config.model, used)
    tx = optimizer.make(config.optimizer, config.steps)
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32), key)


def layout_of(config: SftConfig) -> Layout:
    """Where the run's arrays lie on the devices that there are."""
    axes = lora.axes(config.lora, config.model) if config.lora else transformer.logical_axes(config.model)
    return config.mesh.layout(axes)


def abstract_state(config: SftConfig, layout: Layout) -> TrainState:
    """Shapes, dtypes and, on a mesh, shardings of the state."""
    state = jax.eval_shape(lambda: initial_state(config))
    return layout.placed(state, state.params)


def born(config: SftConfig, layout: Layout) -> TrainState:
    """The state before the first step, each array created in its place: no device ever holds all of it."""
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, layout))
    return layout.jit(initial_state, places, static_argnums=0)(config)


def label_weights(config: SftConfig, classes: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Weight of every token id as a label, Float [V].

    Raises:
        ValueError: the emphasised class is not one of `names`.
    """
    name, weight = config.emphasis
    if name and name not in names:
        raise ValueError(f"emphasis: {name!r} is not a class of labels; these are {', '.join(names)}")
    return np.where(classes == (names.index(name) if name else -1), weight, 1.0).astype(np.float32)


def whole(config: SftConfig, params: transformer.Params, base: transformer.Params | None) -> transformer.Params:
    """The parameters that the model runs with: the trained parameters, or the base with the trained adapters."""
    return params if base is None else lora.apply(config.lora, base, params)


def make_step(
    config: SftConfig,
    layout: Layout,
    classes: np.ndarray,
    count: int,
    label_weight: np.ndarray | None = None,
    base: transformer.Params | None = None,
) -> Callable[[TrainState, Rows], tuple[TrainState, dict]]:
    """The compiled training step, which donates its input state.

    Args:
        base: frozen parameters under the adapters, in their places; None without adapters.

    Other arguments: see `step_program`.

    Returns:
        Function from a state and a batch to the next state and a dict of arrays: sums, gradient_norm, learning_rate, and for long
        rows skipped_blocks, see `apr_jax.model.blockwise.skipped`.
    """
    program = step_program(config, layout, classes, count, label_weight)
    return lambda state, rows: program(state, layout.rows(rows), base)


def step_program(
    config: SftConfig, layout: Layout, classes: np.ndarray, count: int, label_weight: np.ndarray | None = None
) -> Callable:
    """The program behind `make_step`, a function of state, rows and base; `lower` compiles it from shapes alone.

    Args:
        config: configuration of the run.
        layout: where state and rows lie, see `layout_of`.
        classes: class of every token id, Int [V].
        count: number of classes.
        label_weight: weight of every token id as a label, Float [V]; None: all 1.
    """
    tx = optimizer.make(config.optimizer, config.steps)
    rate = optimizer.schedule(config.optimizer, config.steps)

    def step(state: TrainState, rows: Rows, base) -> tuple[TrainState, dict[str, Any]]:
        if label_weight is not None:
            rows = dataclasses.replace(rows, weight=rows.weight * jnp.asarray(label_weight)[rows.label])
        gradient, sums = _gradient(config, layout, classes, count, state.params, rows, base)
        update, inner = tx.update(gradient, state.optimizer, state.params)
        metrics = dict(sums=sums, gradient_norm=optax.tree.norm(gradient), learning_rate=rate(state.step))
        if rows.owner.shape[1] > LONG:
            metrics["skipped_blocks"] = skipped(rows.owner, rows.clock, rows.sees, config.chunk)
        return TrainState(optax.apply_updates(state.params, update), inner, state.step + 1, state.key), metrics

    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, layout)), layout.everywhere
    return layout.jit(step, places, donate_argnums=0)


def _gradient(
    config: SftConfig,
    layout: Layout,
    classes: np.ndarray,
    count: int,
    params: transformer.Params,
    rows: Rows,
    base: transformer.Params | None,
) -> tuple[transformer.Params, Sums]:
    """The gradient of the mean cross-entropy of a batch, added up over its micro-batches, and the batch's sums."""
    graph = transformer.graph_of(config.model)

    def loss(params: transformer.Params, rows: Rows):
        return rows_loss(graph, whole(config, params, base), rows, classes, count, config.chunk, config.remat)

    if config.rows_at_once == config.rows_per_batch:
        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(params, rows)
        return layout.hold(gradient), sums
    total = jnp.maximum(jnp.sum(jnp.where(rows.label >= 0, rows.weight, 0)), 1e-9)  # as in `Sums.loss`

    def part(params: transformer.Params, rows: Rows):
        _, sums = loss(params, rows)
        return sums.nll / total, sums  # a share of the batch's mean, whatever labels fall into this part

    def add(done: tuple, rows: Rows) -> tuple[tuple, None]:
        (_, sums), gradient = jax.value_and_grad(part, has_aux=True)(params, rows)
        gradient, sums = jax.tree.map(jnp.add, done, (gradient, sums))
        return (layout.hold(gradient), sums), None

    # Micro-batch i has the rows i, i + n, i + 2 n, ...: on a mesh each device then takes rows of its own.
    cut = lambda leaf: jnp.moveaxis(leaf.reshape(config.rows_at_once, -1, *leaf.shape[1:]), 1, 0)
    parts = jax.tree.map(cut, rows)
    shapes = jax.eval_shape(loss, params, jax.tree.map(lambda leaf: leaf[0], parts))[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (params, shapes))
    return jax.lax.scan(add, (layout.hold(zeros[0]), zeros[1]), parts)[0]


def make_evaluation(
    config: SftConfig,
    layout: Layout,
    store: RowStore,
    classes: np.ndarray,
    names: tuple[str, ...],
    base: transformer.Params | None = None,
) -> Callable:
    """A function from the trained arrays to held-out numbers: loss, accuracy, accuracy by class of token."""
    graph = transformer.graph_of(config.model)

    def sums(params, rows, base):
        return rows_loss(graph, whole(config, params, base), rows, classes, len(names), config.chunk)[1]

    sums_of, batch = layout.jit(sums, layout.everywhere), config.rows_at_once
    numbers = np.arange(-(-len(store) // batch) * batch)
    numbers = np.where(numbers < len(store), numbers, -1)  # the last batch is filled up with padding

    def evaluate(params: transformer.Params) -> dict[str, float]:
        parts = [sums_of(params, layout.rows(store.read(part)), base) for part in numbers.reshape(-1, batch)]
        return summarise(jax.tree.map(lambda *xs: np.sum(np.asarray(xs, np.float64), axis=0), *parts), names)

    return evaluate
