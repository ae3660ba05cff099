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

import jax
import numpy as np

from apr_jax import files, settings
from apr_jax.interrupt import Interrupt
from apr_jax.model import transformer
from apr_jax.pretrained.tokenizer import load as load_tokenizer
from apr_jax.train import lora, weights
from apr_jax.train.checkpoints import Checkpoints
from apr_jax.train.config import SftConfig
from apr_jax.train.data import Dataset
from apr_jax.train.layout import Layout
from apr_jax.train.losses import summarise
from apr_jax.train.metrics import Metrics, ProgressReport
from apr_jax.train.rows import order
from apr_jax.train.step import TrainState, abstract_state, born, label_weights, layout_of, make_evaluation, make_step

DIVERGED = "diverged.json"
"""In the working folder of a run whose numbers were not finite any more, the newest checkpoint that was left by then."""
WRITTEN = ("metrics.jsonl", "checkpoints/*", DIVERGED, weights.NOTE)
"""Files that a run writes into its working folder, beside its settings, its export and TensorBoard's files."""


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
    if jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes; a run trains in one process, start one")
    data = Dataset.open(config.data)
    if data.vocabulary > config.model.vocabulary:
        raise ValueError(
            f"model.vocabulary is {config.model.vocabulary}, but the tokenizer in {config.data.folder} has "
            f"{data.vocabulary} ids; choose at least that many"
        )
    classes, names = data.classes(config.model.vocabulary)
    settings.sign(config, config.workdir)
    layout = layout_of(config)
    with Checkpoints(Path(config.workdir) / "checkpoints") as checkpoints, Interrupt() as interrupt:
        # A resumed run reads these files again: the data, and the frozen parameters under adapters.
        made_from = data.made_from | (weights.made_from(config.start) if config.lora else {})
        state, position = _restore_or_init(config, layout, checkpoints, made_from)
        base = _start(config, layout) if config.lora else None
        settings.save(config, config.workdir)
        step = make_step(config, layout, classes, len(names), label_weights(config, classes, names), base)
        loop = _Loop(config, data, made_from, step, names, checkpoints, interrupt)
        evaluate = make_evaluation(config, layout, data.held_out, classes, names, base)
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


def _start(config: SftConfig, layout: Layout) -> transformer.Params:
    """The parameters to start from, in their places; on a mesh the host reads them, for a device may not hold all."""
    with layout.on_host():
        found = weights.load(config.start, config.model, config.data)
    return layout.put(found, transformer.logical_axes(config.model))


def _restore_or_init(
    config: SftConfig, layout: Layout, checkpoints: Checkpoints, made_from: dict[str, str]
) -> tuple[TrainState, int]:
    """The state to continue from, and the position in the data."""
    if checkpoints.latest is None:
        state = born(config, layout)
        if config.start and not config.lora:
            state = dataclasses.replace(state, params=_start(config, layout))
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
    restored = checkpoints.restore(abstract_state(config, layout))
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
        if "skipped_blocks" in outputs[-1]:  # long rows
            values["skipped_blocks"] = float(np.mean([o["skipped_blocks"] for o in outputs], dtype=np.float64))
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
