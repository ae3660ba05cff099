"""Supervised training on demonstrations or rollouts packed in rows (APR, arXiv 2504.15466, section 4.3), of all
parameters or of low-rank adapters of a pretrained model.

    result = run(config)

A checkpoint holds everything that a run needs to continue: parameters, optimiser, step, random key, position in the data,
and the configuration. A run that is interrupted and started again ends with the same bits as an uninterrupted run.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from apr_jax import files, settings
from apr_jax.interrupt import Interrupt
from apr_jax.model import transformer
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.pretrained.tokenizer import load as load_tokenizer
from apr_jax.train import lora, optimizer, weights
from apr_jax.train.checkpoints import Checkpoints
from apr_jax.train.data import Data, Dataset
from apr_jax.train.lora import Lora
from apr_jax.train.losses import rows_loss, summarise
from apr_jax.train.metrics import Metrics, ProgressReport
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.packing import Rows
from apr_jax.train.rows import RowStore, order

DIVERGED = "diverged.json"
"""In the working folder of a run whose numbers were not finite any more, the newest checkpoint that was left by then."""
WRITTEN = ("metrics.jsonl", "checkpoints/*", DIVERGED, weights.NOTE)
"""Files that a run writes into its working folder, beside its settings, its export and TensorBoard's files."""


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """Configuration of one supervised run. Fields that may change when the run is resumed are marked (free).

    Attributes:
        data: the demonstrations or rollouts.
        model: configuration of the model.
        optimizer: settings of the optimiser.
        rows_per_batch: B, rows of a batch.
        steps: number of updates of the run.
        seed: seed of the initial parameters and of the order of rows after the first epoch.
        start: parameters to start from: a file exported by another run, or a pretrained model (a Hugging Face folder or a
            GGUF file); empty: drawn from the seed.
        lora: train adapters and freeze the parameters of `start`; None: train the parameters.
        emphasis: a class of labels (of the data, see `Dataset.members`) and its weight in the loss; other labels have weight 1.
        chunk: queries per block of attention.
        remat: recompute layers in the backward pass: less memory, more time.
        log_every, evaluate_every, checkpoint_every: steps between reports, held-out evaluations, checkpoints (free).
        workdir: folder for checkpoints, metrics and the resolved configuration (free).
        export: path of the trained parameters, adapters merged: a `.safetensors` file of ours, or a folder that `transformers`
            can read, tokenizer included; `{workdir}` stands for the working folder; empty: no export (free).
        tensorboard: write TensorBoard event files beside `metrics.jsonl` (free).
    """

    data: Data
    model: ModelConfig = PRESETS["tiny"]
    optimizer: OptimizerConfig = OptimizerConfig()
    rows_per_batch: int = 8
    steps: int = 1000
    seed: int = 0
    start: str = ""
    lora: Lora | None = None
    emphasis: tuple[str, float] = ("", 1.0)
    chunk: int = 128
    remat: bool = False
    log_every: int = dataclasses.field(default=20, metadata=settings.FREE)
    evaluate_every: int = dataclasses.field(default=250, metadata=settings.FREE)
    checkpoint_every: int = dataclasses.field(default=250, metadata=settings.FREE)
    workdir: str = dataclasses.field(default="work/sft", metadata=settings.FREE)
    export: str = dataclasses.field(default="{workdir}/model.safetensors", metadata=settings.FREE)
    tensorboard: bool = dataclasses.field(default=True, metadata=settings.FREE)

    def __post_init__(self):
        for name in ("rows_per_batch", "steps", "chunk", "log_every", "evaluate_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.model.int8_weights:
            raise ValueError("model.int8_weights is True; int8 is for decoding and has no gradients, train with False")
        if self.lora and not self.start:
            raise ValueError("start is empty; adapters (lora) are trained beside the parameters of a model, name it")

    @property
    def exported(self) -> Path | None:
        """The path of the trained parameters, None without export."""
        return files.local(self.export.replace("{workdir}", self.workdir), "export") if self.export else None


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


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        step: updates done.
        finished: all steps are done; otherwise the run was interrupted and can be resumed.
        held_out: numbers of the last held-out evaluation, empty if there was none.
        state: the last state.
    """

    step: int
    finished: bool
    held_out: dict[str, float]
    state: TrainState


def initial_state(config: SftConfig) -> TrainState:
    """The state before the first step; traceable."""
    key, used = jax.random.split(jax.random.key(config.seed))
    params = lora.init(config.lora, config.model, used) if config.lora else transformer.init_params(config.model, used)
    tx = optimizer.make(config.optimizer, config.steps)
    return TrainState(params, tx.init(params), jnp.zeros((), jnp.int32), key)


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
    classes: np.ndarray,
    count: int,
    label_weight: np.ndarray | None = None,
    base: transformer.Params | None = None,
) -> Callable[[TrainState, Rows], tuple[TrainState, dict]]:
    """The compiled training step, which donates its input state.

    Args:
        config: configuration of the run.
        classes: class of every token id, Int [V].
        count: number of classes.
        label_weight: weight of every token id as a label, Float [V]; None: all 1.
        base: frozen parameters under the adapters; None without adapters.

    Returns:
        Function from a state and a batch to the next state and a dict of arrays: sums, gradient_norm, learning_rate.
    """
    graph = transformer.graph_of(config.model)
    tx = optimizer.make(config.optimizer, config.steps)
    rate = optimizer.schedule(config.optimizer, config.steps)

    def step(state: TrainState, rows: Rows, base) -> tuple[TrainState, dict[str, Any]]:
        if label_weight is not None:
            rows = dataclasses.replace(rows, weight=rows.weight * jnp.asarray(label_weight)[rows.label])

        def loss(params):
            return rows_loss(graph, whole(config, params, base), rows, classes, count, config.chunk, config.remat)

        (_, sums), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        update, inner = tx.update(gradient, state.optimizer, state.params)
        metrics = dict(sums=sums, gradient_norm=optax.tree.norm(gradient), learning_rate=rate(state.step))
        return TrainState(optax.apply_updates(state.params, update), inner, state.step + 1, state.key), metrics

    compiled = jax.jit(step, donate_argnums=0)
    return lambda state, rows: compiled(state, rows, base)


def make_evaluation(
    config: SftConfig,
    store: RowStore,
    classes: np.ndarray,
    names: tuple[str, ...],
    base: transformer.Params | None = None,
) -> Callable:
    """A function from the trained arrays to held-out numbers: loss, accuracy, accuracy by class of token."""
    graph = transformer.graph_of(config.model)

    @jax.jit
    def sums_of(params, rows, base):
        return rows_loss(graph, whole(config, params, base), rows, classes, len(names), config.chunk)[1]

    batch = config.rows_per_batch
    numbers = np.arange(-(-len(store) // batch) * batch)
    numbers = np.where(numbers < len(store), numbers, -1)  # the last batch is filled up with padding

    def evaluate(params: transformer.Params) -> dict[str, float]:
        parts = [sums_of(params, store.read(part), base) for part in numbers.reshape(-1, batch)]
        return summarise(jax.tree.map(lambda *xs: np.sum(np.asarray(xs, np.float64), axis=0), *parts), names)

    return evaluate


def check_places(config: SftConfig) -> None:
    """Refuse, before anything is computed, to overwrite files of others.

    Raises:
        ValueError: `workdir` or `export` holds files that this run has not written, or cannot be written.
    """
    workdir = settings.claim(config, config.workdir, "workdir", WRITTEN)
    if config.exported:
        weights.is_exported(config.exported, workdir)


def run(config: SftConfig) -> Result:
    """Train to the end, or until SIGINT or SIGTERM; continues from the checkpoints in `workdir` if there are any.

    Raises:
        ValueError: the data do not fit the model, the checkpoints are of another configuration, or see `check_places`.
        FloatingPointError: the loss, the gradient or a parameter is not finite; the last good state is kept.
    """
    check_places(config)
    data = Dataset.open(config.data)
    if data.vocabulary > config.model.vocabulary:
        raise ValueError(
            f"model.vocabulary is {config.model.vocabulary}, but the tokenizer in {config.data.folder} has "
            f"{data.vocabulary} ids; choose at least that many"
        )
    classes, names = data.classes(config.model.vocabulary)
    settings.sign(config, config.workdir)
    with Checkpoints(Path(config.workdir) / "checkpoints") as checkpoints, Interrupt() as interrupt:
        # A resumed run reads these files again: the data, and the frozen parameters under adapters.
        made_from = data.made_from | (weights.made_from(config.start) if config.lora else {})
        state, position = _restore_or_init(config, checkpoints, made_from)
        base = weights.load(config.start, config.model, config.data) if config.lora else None
        settings.save(config, config.workdir)
        step = make_step(config, classes, len(names), label_weights(config, classes, names), base)
        loop = _Loop(config, data, made_from, step, names, checkpoints, interrupt)
        evaluate = make_evaluation(config, data.held_out, classes, names, base)
        first = int(state.step)
        with (
            Metrics(config.workdir, first, config.tensorboard) as metrics,
            ProgressReport(config.steps, first) as progress,
        ):
            if first:
                progress.note(f"resumed at step {first} from {config.workdir}")
            state, step, held_out = loop.run(state, first, position, evaluate, metrics, progress)
        if step == config.steps:
            if config.exported:
                _export(config, state.params, base)
            progress.note(f"finished; parameters are in {config.exported or config.workdir}")
        else:
            progress.note(f"interrupted at step {step}, which is saved; run the same command again to go on")
    return Result(step, step == config.steps, held_out, state)


def _restore_or_init(config: SftConfig, checkpoints: Checkpoints, made_from: dict[str, str]) -> tuple[TrainState, int]:
    """The state to continue from, and the position in the data."""
    if checkpoints.latest is None:
        state = jax.jit(initial_state, static_argnums=0)(config)
        if config.start and not config.lora:
            state = dataclasses.replace(state, params=weights.load(config.start, config.model, config.data))
        return state, 0
    cursor = checkpoints.cursor()
    changed = settings.differences(config, cursor["config"])
    diverged = files.read_json(Path(config.workdir) / DIVERGED)
    if diverged and diverged["checkpoint"] == checkpoints.latest:  # the user may follow the advice of `_Loop._diverged`
        free = lambda line: line.startswith("optimizer.") and not line.startswith("optimizer.kind:")
        changed = [line for line in changed if not free(line)]
    if "made_from" in cursor:  # absent in checkpoints of earlier versions
        changed += files.replaced(cursor["made_from"], made_from)
    if changed:
        raise ValueError(
            f"{config.workdir} holds a run with another configuration or made from other files ({'; '.join(changed)}); "
            "give these their old values to go on with it, or choose another --workdir"
        )
    restored = checkpoints.restore(jax.eval_shape(lambda: initial_state(config)))
    return restored.state, restored.cursor["position"]


def _export(config: SftConfig, params: transformer.Params, base: transformer.Params | None) -> None:
    """Write the trained parameters to `config.export`, unless this run has done so; adapters are merged into the base."""
    workdir = Path(config.workdir)
    if not weights.is_exported(config.exported, workdir):
        params = params if base is None else lora.merge(config.lora, base, params)
        model = transformer.Model(transformer.graph_of(config.model), params)
        weights.write(config.exported, workdir, model, config.start, lambda: load_tokenizer(config.data.folder))


@dataclasses.dataclass
class _Loop:
    config: SftConfig
    data: Dataset
    made_from: dict[str, str]
    step: Callable
    names: tuple[str, ...]
    checkpoints: Checkpoints
    interrupt: Interrupt

    def run(self, state, first: int, position: int, evaluate, metrics: Metrics, progress: ProgressReport):
        """Runs the remaining steps, or until an interrupt; returns state, step and the last held-out numbers."""
        config, store = self.config, self.data.train
        held_out: dict[str, float] = {}
        done, pending, clock = first, [], time.monotonic()
        while done < config.steps and not self.interrupt.requested:
            rows = store.read(order(position, config.rows_per_batch, len(store), config.seed))
            state, output = self.step(state, rows)
            done, position = done + 1, position + config.rows_per_batch
            # Numbers of earlier steps are fetched only now, while this step runs on the device.
            if len(pending) >= config.log_every:
                clock = self._report(done - 1, pending, clock, metrics, progress)
                pending = []
            pending.append((output, int((rows.owner >= 0).sum())))
            progress.advance(done)
            if done % config.evaluate_every == 0 or done == config.steps:
                clock = self._report(done, pending, clock, metrics, progress)
                pending = []
                held_out = {f"held_out/{name}": value for name, value in evaluate(state.params).items()}
                metrics.write(done, held_out)
                progress.report(done, held_out)
                if not np.isfinite(held_out["held_out/loss"]):
                    raise self._diverged(done, done, f"the held-out loss is {held_out['held_out/loss']}")
                clock = time.monotonic()
            if done % config.checkpoint_every == 0:
                clock = self._report(done, pending, clock, metrics, progress)
                pending = []
                self._save(done, state, position)
        self._report(done, pending, clock, metrics, progress)
        self._save(done, state, position)
        return state, done, held_out

    def _save(self, done: int, state: TrainState, position: int) -> None:
        """Saves the state; call it when all steps so far have been reported."""
        if names := weights.not_finite((state.params, state.optimizer)):
            raise self._diverged(done, done, f"numbers are not finite in {len(names)} arrays of the state ({names[0]})")
        cursor = {"position": position, "config": settings.to_dict(self.config)}
        self.checkpoints.save(done, state, cursor | {"made_from": self.made_from})

    def _report(self, step: int, pending: list, clock: float, metrics: Metrics, progress: ProgressReport) -> float:
        """Writes the means over the pending steps; returns the time."""
        if not pending:
            return clock
        outputs = jax.device_get([output for output, _ in pending])
        values = summarise(jax.tree.map(lambda *xs: np.sum(xs, axis=0), *[o["sums"] for o in outputs]), self.names)
        now = time.monotonic()
        values["gradient_norm"] = float(np.mean([o["gradient_norm"] for o in outputs], dtype=np.float64))
        values["learning_rate"] = float(outputs[-1]["learning_rate"])
        values["tokens_per_second"] = sum(tokens for _, tokens in pending) / max(now - clock, 1e-9)
        metrics.write(step, values)
        shown = ("loss", "accuracy", "gradient_norm", "tokens_per_second")
        progress.report(step, {name: values[name] for name in shown})
        for number, output in enumerate(outputs, start=step - len(outputs) + 1):
            loss, norm = float(output["sums"].nll), float(output["gradient_norm"])
            if not np.isfinite([loss, norm]).all():
                # The state before this step is bad too, even if its numbers are finite.
                raise self._diverged(number, number - 1, f"the summed loss is {loss}, the norm of the gradient {norm}")
        return now

    def _diverged(self, step: int, bad: int, what: str) -> FloatingPointError:
        """The error of a run whose numbers are not finite: the state after step `bad` is deleted, and the run may continue
        in the same folder with other settings of the optimiser."""
        self.checkpoints.delete(bad)
        last = self.checkpoints.latest
        note = {"checkpoint": last, "step": step, "what": what}
        files.write_text(Path(self.config.workdir) / DIVERGED, json.dumps(note) + "\n")
        goes_on = f"goes on from step {last}, the last good state" if last else "begins anew, no good state was saved"
        return FloatingPointError(
            f"step {step}: {what}; give a lower --optimizer.learning-rate (now {self.config.optimizer.learning_rate}) with the "
            f"same --workdir {self.config.workdir}, and the run {goes_on}"
        )
