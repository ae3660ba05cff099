"""The update of a step: compiled programs over micro-batches of one shape.

Axes: B rows of an update, S entries of a row, n trajectories.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from apr_jax.model import transformer
from apr_jax.model.blockwise import skipped
from apr_jax.model.config import ModelConfig
from apr_jax.rl import estimators
from apr_jax.rl.batches import Batch
from apr_jax.rl.config import RlConfig
from apr_jax.rl.estimators import Labels, Sums
from apr_jax.rl.scoring import Scores, score
from apr_jax.train import optimizer
from apr_jax.train.layout import Layout
from apr_jax.train.packing import Rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RlState:
    """The state that updates change.

    Attributes:
        params: parameters of the model.
        optimizer: state of the optimiser.
        updates: number of updates done: the version of the parameters.
    """

    params: transformer.Params
    optimizer: optax.OptState
    updates: Int[Array, ""]


def initial_state(config: RlConfig, params: transformer.Params) -> RlState:
    """The state before the first update; traceable."""
    tx = optimizer.make(config.optimizer, config.steps * config.inner_steps)
    return RlState(params, tx.init(params), jnp.zeros((), jnp.int32))


def layout_of(config: RlConfig, model: ModelConfig) -> Layout:
    """Where the run's arrays lie on the devices that there are."""
    return config.mesh.layout(transformer.logical_axes(model))


def abstract_state(config: RlConfig, layout: Layout, params: transformer.Params) -> RlState:
    """Shapes, dtypes and, on a mesh, shardings of the state."""
    return layout.placed(jax.eval_shape(lambda params: initial_state(config, params), params), params)


def born(config: RlConfig, layout: Layout, params: transformer.Params) -> RlState:
    """The state before the first update, in its place; its parameters are a copy, because updates donate the state."""
    if layout.mesh is None:
        # Committed to the device as restored arrays are: otherwise programs are compiled for both kinds.
        return jax.device_put(initial_state(config, jax.tree.map(jnp.copy, params)), jax.local_devices()[0])
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, layout, params))
    copied = lambda params: initial_state(config, jax.tree.map(jnp.copy, params))
    return layout.jit(copied, places)(layout.put(params))


def scorer(graph: transformer.Graph, control: tuple[int, ...], chunk: int) -> Callable[..., Scores]:
    """The function of parameters, rows and temperatures [B, S] behind `Learner.score`; its arguments: see `scoring.score`."""
    return lambda params, rows, temperature: score(graph, params, rows, temperature, control=control, chunk=chunk)


def gradient(
    graph: transformer.Graph, control: tuple[int, ...], estimator: estimators.Estimator, chunk: int, remat: str
) -> Callable[..., tuple[transformer.Params, tuple[Array, Sums]]]:
    """The function of parameters and a micro-batch that gives its gradient, and its loss and sums, see `estimators.loss`.

    The other arguments: see `scoring.score`.
    """

    def loss(params, rows: Rows, labels: Labels, old, reference, denominator, ratios):
        scores = score(graph, params, rows, labels.temperature, control, chunk, remat)
        parts = scores.logprob, scores.entropy, labels, denominator, old, reference, ratios, scores.forks
        value, sums = estimators.loss(estimator, *parts)
        return value, (value, sums)

    return jax.grad(loss, has_aux=True)


@dataclasses.dataclass(frozen=True)
class Learner:
    """The compiled programs of updates.

    Attributes:
        config: of the run.
        graph: of the model.
        control: the ids of `RlConfig.control`.
        traces: number of traces of each program so far.
    """

    config: RlConfig
    graph: transformer.Graph
    control: tuple[int, ...]
    traces: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @functools.cached_property
    def layout(self) -> Layout:
        """Where parameters and rows lie."""
        return layout_of(self.config, self.graph.config)

    @functools.cached_property
    def _places(self) -> transformer.Params | None:
        """The shardings of parameters and gradients; None without a mesh."""
        return self.layout.params(transformer.abstract_params(self.graph.config))

    def _compiled(self, name: str, function: Callable, places: Any = None, **options) -> Callable:
        """`Layout.jit` that counts its traces."""

        @functools.wraps(function)
        def counted(*given):
            self.traces[name] += 1
            return function(*given)

        return self.layout.jit(counted, places, **options)

    def score(self, params: transformer.Params, batch: Batch) -> Scores:
        """The labels of a batch by these parameters, as NumPy arrays [B, S]."""
        blank = np.zeros(batch.rows.label.shape, np.float32)
        found = Scores(blank, blank.copy(), blank.astype(bool))
        for cut in self._micro(batch):
            part = self._score(params, *self.layout.rows((batch.rows[cut], batch.labels.temperature[cut])))
            for field in dataclasses.fields(Scores):
                getattr(found, field.name)[cut] = getattr(part, field.name)
        return found

    def update(
        self, state: RlState, batch: Batch, old: Scores, reference: Scores | None = None
    ) -> tuple[RlState, Sums, float, float]:
        """One update on a batch; the given state is donated.

        Args:
            old: the labels by the parameters before the first of several updates on the batch.
            reference: the labels by the reference model, if the loss has a divergence.

        Returns:
            The next state, sums for reports, the loss, and the norm of the gradient.
        """
        gradient, loss, sums = self.gradient(state.params, batch, old, reference)
        state, norm = self._apply(state, gradient)
        return state, jax.device_get(sums), float(loss), float(norm)

    def gradient(
        self, params: transformer.Params, batch: Batch, old: Scores, reference: Scores | None = None
    ) -> tuple[transformer.Params, Array, Sums]:
        """The gradient of a batch, its loss, and sums for reports; arguments: see `update`."""
        whole = self.config.estimator.ratio == "trajectory"
        ratios = self._ratios(self.score(params, batch).logprob, old.logprob, batch.labels) if whole else None
        total, denominator = None, np.float32(batch.denominator)
        for cut in self._micro(batch):
            seen = None if reference is None else reference.logprob[cut]
            given = self.layout.rows((batch.rows[cut], batch.labels[cut], old.logprob[cut], seen))
            part = self._gradient(params, *given, denominator, ratios)
            total = part if total is None else self._add(total, part)
        gradient, (loss, sums) = total
        return gradient, loss, sums

    def _micro(self, batch: Batch) -> Iterator[slice]:
        """The micro-batches that have labels; rows without stand at the end."""
        for begin in range(0, self.config.groups.rows, self.config.micro_rows):
            cut = slice(begin, begin + self.config.micro_rows)
            if (batch.rows.label[cut] >= 0).any():
                yield cut

    @functools.cached_property
    def _score(self) -> Callable[..., Scores]:
        scored = scorer(self.graph, self.control, self.config.chunk)
        return self._compiled("score", scored, self.layout.everywhere)

    @functools.cached_property
    def skipped(self) -> Callable[[Rows], Array]:
        """The share of the blocks of attention that a batch skips, see `apr_jax.model.blockwise.skipped`."""
        return self._compiled("skipped", lambda rows: skipped(rows.owner, rows.clock, rows.sees, self.config.chunk))

    @functools.cached_property
    def _gradient(self) -> Callable:
        """The gradient of a micro-batch, and its loss and sums."""
        config = self.config
        function = gradient(self.graph, self.control, config.estimator, config.chunk, config.remat)
        return self._compiled("gradient", function, (self._places, self.layout.everywhere))

    @functools.cached_property
    def _ratios(self) -> Callable:
        """See `estimators.trajectory_ratios`; the bound of n is the same at every step."""
        answers = self.config.rollout.sizes.threads if self.config.groups.each == "answer" else 1
        bound = self.config.prompts * self.config.samples * answers
        return self._compiled("ratios", lambda new, old, labels: estimators.trajectory_ratios(new, old, labels, bound))

    @functools.cached_property
    def _add(self) -> Callable:
        places = self._places, self.layout.everywhere
        return self._compiled("add", lambda a, b: jax.tree.map(jnp.add, a, b), places, donate_argnums=0)

    @functools.cached_property
    def _apply(self) -> Callable[[RlState, transformer.Params], tuple[RlState, Array]]:
        tx = optimizer.make(self.config.optimizer, self.config.steps * self.config.inner_steps)

        def apply(state: RlState, gradient: transformer.Params) -> tuple[RlState, Array]:
            change, inner = tx.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, change)
            return RlState(params, inner, state.updates + 1), optax.tree.norm(gradient)

        state = abstract_state(self.config, self.layout, transformer.abstract_params(self.graph.config))
        places = jax.tree.map(lambda leaf: leaf.sharding, state), self.layout.everywhere
        return self._compiled("apply", apply, places, donate_argnums=0)
