"""The update of a step: compiled programs over micro-batches of one shape.

Axes: B rows of an update, S entries of a row, n trajectories.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from apr_jax.model import transformer
from apr_jax.rl import estimators
from apr_jax.rl.batches import Batch
from apr_jax.rl.config import RlConfig
from apr_jax.rl.estimators import Labels, Sums
from apr_jax.rl.scoring import Scores, score
from apr_jax.train import optimizer
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

    def _compiled(self, name: str, function: Callable, **options) -> Callable:
        """`jax.jit` that counts its traces."""

        @functools.wraps(function)
        def counted(*given):
            self.traces[name] += 1
            return function(*given)

        return jax.jit(counted, **options)

    def score(self, params: transformer.Params, batch: Batch) -> Scores:
        """The labels of a batch by these parameters, as NumPy arrays [B, S]."""
        blank = np.zeros(batch.rows.label.shape, np.float32)
        found = Scores(blank, blank.copy(), blank.astype(bool))
        for cut in self._micro(batch):
            part = self._score(params, batch.rows[cut], batch.labels.temperature[cut])
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
        whole = self.config.estimator.ratio == "trajectory"
        ratios = self._ratios(self.score(state.params, batch).logprob, old.logprob, batch.labels) if whole else None
        total, denominator = None, np.float32(batch.denominator)
        for cut in self._micro(batch):
            seen = None if reference is None else reference.logprob[cut]
            rows, labels = batch.rows[cut], batch.labels[cut]
            part = self._gradient(state.params, rows, labels, denominator, old.logprob[cut], seen, ratios)
            total = part if total is None else self._add(total, part)
        gradient, (loss, sums) = total
        state, norm = self._apply(state, gradient)
        return state, jax.device_get(sums), float(loss), float(norm)

    def _micro(self, batch: Batch) -> Iterator[slice]:
        """The micro-batches that have labels; rows without stand at the end."""
        for begin in range(0, self.config.groups.rows, self.config.micro_rows):
            cut = slice(begin, begin + self.config.micro_rows)
            if (batch.rows.label[cut] >= 0).any():
                yield cut

    @functools.cached_property
    def _score(self) -> Callable[..., Scores]:
        given = dict(control=self.control, chunk=self.config.chunk)
        return self._compiled(
            "score", lambda params, rows, temperature: score(self.graph, params, rows, temperature, **given)
        )

    @functools.cached_property
    def _gradient(self) -> Callable:
        """The gradient of a micro-batch, and its loss and sums."""
        config = self.config

        def loss(params, rows: Rows, labels: Labels, denominator, old, reference, ratios):
            given = (labels.temperature, self.control, config.chunk, config.remat)
            scores = score(self.graph, params, rows, *given)
            parts = scores.logprob, scores.entropy, labels, denominator, old, reference, ratios, scores.forks
            value, sums = estimators.loss(config.estimator, *parts)
            return value, (value, sums)

        return self._compiled("gradient", jax.grad(loss, has_aux=True))

    @functools.cached_property
    def _ratios(self) -> Callable:
        """See `estimators.trajectory_ratios`; the bound of n is the same at every step."""
        answers = self.config.rollout.sizes.threads if self.config.groups.each == "answer" else 1
        bound = self.config.prompts * self.config.samples * answers
        return self._compiled("ratios", lambda new, old, labels: estimators.trajectory_ratios(new, old, labels, bound))

    @functools.cached_property
    def _add(self) -> Callable:
        return self._compiled("add", lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)

    @functools.cached_property
    def _apply(self) -> Callable[[RlState, transformer.Params], tuple[RlState, Array]]:
        tx = optimizer.make(self.config.optimizer, self.config.steps * self.config.inner_steps)

        def apply(state: RlState, gradient: transformer.Params) -> tuple[RlState, Array]:
            change, inner = tx.update(gradient, state.optimizer, state.params)
            params = optax.apply_updates(state.params, change)
            return RlState(params, inner, state.updates + 1), optax.tree.norm(gradient)

        return self._compiled("apply", apply, donate_argnums=0)
