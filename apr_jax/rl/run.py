"""The loop of reinforcement learning: rollout, rewards, advantages, packed rows, update, the engine's parameters.

    result = run(config)

A checkpoint holds everything that a run needs to continue: parameters, optimiser, number of updates, position in the questions,
and the configuration. Draws depend on the seed and the number of the step alone. A run that is interrupted and started again
ends with the same bits as an uninterrupted run.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apr_jax import files, record, settings
from apr_jax.evaluate import methods
from apr_jax.evaluate.show import timeline
from apr_jax.interrupt import Interrupt
from apr_jax.model import transformer
from apr_jax.model.attention import LONG
from apr_jax.pretrained import is_pretrained
from apr_jax.pretrained.tokenizer import load as load_tokenizer
from apr_jax.rl import estimators, gate, groups, kept, measures
from apr_jax.rl.batches import Batch
from apr_jax.rl.config import RlConfig
from apr_jax.rl.samples import Sampler, Samples
from apr_jax.rl.update import Learner, RlState, abstract_state, born
from apr_jax.tokenizer import TextCodec
from apr_jax.train import weights
from apr_jax.train.checkpoints import Checkpoints
from apr_jax.train.layout import Layout
from apr_jax.train.metrics import WANDB, Metrics, ProgressReport, require_wandb

DIVERGED = "diverged.jsonl"
"""In the working folder of a run whose numbers were not finite any more, the transcripts of that step."""
PAGE = 4
"""Questions whose samples a page shows."""
WRITTEN = ("metrics.jsonl", "checkpoints/*", "rollouts/*", "pages/*", DIVERGED, WANDB, weights.NOTE)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        step: steps done.
        finished: all steps are done; otherwise the run was interrupted and can be resumed.
        held_out: numbers of the last evaluation, empty if there was none.
        state: the last state.
        traces: number of traces of each program that was needed, 1.
    """

    step: int
    finished: bool
    held_out: dict[str, float]
    state: RlState
    traces: dict[str, int]


def check_places(config: RlConfig) -> None:
    """Refuse, before anything is computed, to overwrite files of others.

    Raises:
        ValueError: `workdir` or `export` holds files that this run has not written, or cannot be written; or see `require_wandb`.
    """
    require_wandb(config.wandb)
    workdir = settings.claim(config, config.workdir, "workdir", WRITTEN)
    if config.exported:
        weights.is_exported(config.exported, workdir)


def run(config: RlConfig) -> Result:
    """Learn to the end, or until SIGINT or SIGTERM; continues from the checkpoints in `workdir` if there are any.

    Raises:
        ValueError: the rollouts cannot be learnt from (`groups.refuse`, `groups.gather`, `batches.pack`), training does not give
            their log-probabilities (`gate.require`), the checkpoints are of another configuration, or see `check_places`.
        FloatingPointError: a log-probability, the loss or the gradient is not finite; the transcripts of the step are saved.
    """
    check_places(config)
    if jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes; a run learns in one process, start one")
    model, codec = methods.load(config.rollout, load_tokenizer(config.tokenizer))
    model = transformer.Model(model.graph, _placed(model.params))
    method = config.rollout.method
    groups.refuse(config.rollout.sampling, method.protocol(codec).needs)
    questions = config.task.questions(config.seed)
    held_out = config.held_out.questions(config.seed) if config.evaluate_every else ()
    settings.sign(config, config.workdir)
    learner = Learner(config, model.graph, tuple(codec.id(word) for word in config.control))
    with Checkpoints(Path(config.workdir) / "checkpoints") as checkpoints, Interrupt() as interrupt:
        state, position = _restore_or_init(config, learner.layout, checkpoints, model)
        settings.save(config, config.workdir)
        computed = transformer.Model(model.graph, transformer.as_computed(model.config, model.params))
        make = lambda rollout: methods.make_engine(rollout, codec, computed, learner.layout.mesh)[0]
        engine = make(config.drawn())
        evaluating = make(config.evaluated()) if config.grouped and config.evaluate_every else engine
        sampler = Sampler(config, engine, evaluating, codec, questions)
        first = 0 if checkpoints.latest is None else checkpoints.latest
        with (
            # The evaluation at step 0 is made again.
            Metrics(config.workdir, first or -1, config.tensorboard, config.wandb) as metrics,
            ProgressReport(config.steps, first) as progress,
        ):
            if first:
                progress.note(f"resumed at step {first} from {config.workdir}")
            reference = learner.layout.put(model.params) if config.estimator.kl else None
            loop = _Loop(config, sampler, learner, reference, checkpoints, interrupt, metrics, progress)
            state, step, numbers = loop.run(state, first, position, held_out)
        if step == config.steps:
            _export(config, transformer.Model(model.graph, state.params), codec)
            progress.note(f"finished; parameters are in {config.exported or config.workdir}")
        else:
            progress.note(f"interrupted at step {step}, which is saved; run the same command again to go on")
    return Result(step, step == config.steps, numbers, state, loop.traces)


def _placed(tree: Any) -> Any:
    """The arrays, committed to the device as restored ones are: otherwise programs are compiled for both kinds."""
    return jax.device_put(tree, jax.local_devices()[0])


def _made_from(config: RlConfig) -> dict[str, str]:
    """The identities of the files that a run reads, by their paths."""
    found = weights.made_from(config.rollout.checkpoint) | files.identities(Path(config.tokenizer), ("token*",))
    for task in (config.task, config.held_out):
        for path in task.files().values():
            found |= files.identities(Path(path))
    return found


def _restore_or_init(
    config: RlConfig, layout: Layout, checkpoints: Checkpoints, model: transformer.Model, step: int | None = None
) -> tuple[RlState, int]:
    """The state after a step, by default the newest one, and the position in the questions."""
    if checkpoints.latest is None:
        return born(config, layout, model.params), 0
    cursor = checkpoints.cursor()
    changed = settings.differences(config, cursor["config"]) + files.replaced(cursor["made_from"], _made_from(config))
    if changed:
        raise ValueError(
            f"{config.workdir} holds a run with another configuration or made from other files ({'; '.join(changed)}); "
            "give these their old values to go on with it, or choose another --workdir"
        )
    if step == 0:
        return born(config, layout, model.params), 0
    restored = checkpoints.restore(abstract_state(config, layout, model.params), step)
    return restored.state, restored.cursor["position"]


def replay(config: RlConfig, step: int) -> dict[str, float]:
    """Learn once more from the groups of a kept step, from the state before it; nothing is written.

    Args:
        config: of a run, whose working folder has the groups of the step and, unless it is the first, the checkpoint before it.
        step: counted from 1.

    Returns:
        `loss` and `gradient_norm`, the same bits as in `metrics.jsonl` on the same machine; nothing if the step made no update.

    Raises:
        ValueError: the groups or the state are not there, or belong to other parameters; or the configuration is another.
    """
    found, rewards = kept.read(config, step)
    model, codec = methods.load(config.rollout, load_tokenizer(config.tokenizer))
    model = transformer.Model(model.graph, _placed(model.params))
    learner = Learner(config, model.graph, tuple(codec.id(word) for word in config.control))
    with Checkpoints(Path(config.workdir) / "checkpoints") as checkpoints:
        if step - 1 not in (0, *checkpoints.steps):
            at = ", ".join(map(str, checkpoints.steps)) or "no step"
            raise ValueError(
                f"step {step}: the state before it is not there, {config.workdir} has checkpoints after {at}; replay a step "
                "that follows one"
            )
        state, _ = _restore_or_init(config, learner.layout, checkpoints, model, step - 1)
    versions = {each.version for each in found.transcripts}
    if versions != {int(state.updates)}:
        raise ValueError(
            f"step {step} was drawn by parameters of version {versions}; the state before it has {int(state.updates)}"
        )
    batch = kept.batch(config, found, rewards)
    if not (batch.rows.label >= 0).any():
        return {}
    old = learner.score(state.params, batch)
    reference = learner.score(learner.layout.put(model.params), batch) if config.estimator.kl else None
    for _ in range(config.inner_steps):
        state, _, loss, norm = learner.update(state, batch, old, reference)
    return {"loss": loss, "gradient_norm": norm}


def _export(config: RlConfig, model: transformer.Model, codec: TextCodec) -> None:
    """Write the trained parameters to `config.export`, unless this run has done so."""
    workdir, checkpoint = Path(config.workdir), config.rollout.checkpoint
    if config.exported and not weights.is_exported(config.exported, workdir):
        start = checkpoint if is_pretrained(checkpoint) else ""
        weights.write(config.exported, workdir, model, start, lambda: codec)


@dataclasses.dataclass
class _Loop:
    config: RlConfig
    sampler: Sampler
    learner: Learner
    reference: transformer.Params | None
    checkpoints: Checkpoints
    interrupt: Interrupt
    metrics: Metrics
    progress: ProgressReport
    passed: bool = False  # the gate

    def run(self, state: RlState, first: int, position: int, held_out: Sequence) -> tuple[RlState, int, dict]:
        """Runs the remaining steps, or until an interrupt; returns state, step and the last numbers of an evaluation."""
        try:
            return self._run(state, first, position, held_out)
        except groups.NotFinite as error:
            raise self._diverged(error.transcripts, str(error)) from error

    def _run(self, state: RlState, first: int, position: int, held_out: Sequence) -> tuple[RlState, int, dict]:
        config, done, numbers = self.config, first, {}
        self.sampler.update(state)
        if held_out and not done:
            self._evaluate(done, held_out)
        while done < config.steps and not self.interrupt.requested:
            start = time.perf_counter()
            found = self.sampler.draw(done, position, lambda: self.interrupt.requested)
            if found is None:
                break  # the step begins anew when the run goes on
            batch = kept.batch(config, found.groups, found.rewards)
            state, values, seconds = self._learn(state, batch)
            self.sampler.update(state)
            self._compiled_once()
            done, position = done + 1, found.position
            took = time.perf_counter() - start
            values |= {"seconds": took, "rollout_seconds": found.seconds, "update_seconds": seconds}
            values["host_share"] = max(took - found.seconds - seconds, 0.0) / took
            self.metrics.write(done, {**found.numbers, **values})
            self.progress.row(done, measures.row({**found.numbers, **values}))
            kept.write(config, done, found.groups, found.rewards, self.sampler.codec.decode)
            if config.show_every and done % config.show_every == 0:
                self._show(done, found)
            if held_out and (done % config.evaluate_every == 0 or done == config.steps):
                numbers = self._evaluate(done, held_out)
            if done % config.checkpoint_every == 0:
                self._save(done, state, position)
        self._save(done, state, position)
        return state, done, numbers

    @property
    def traces(self) -> dict[str, int]:
        return {**self.sampler.traces, **self.learner.traces}

    def _compiled_once(self) -> None:
        if more := {name: count for name, count in self.traces.items() if count > 1}:
            raise RuntimeError(
                f"programs were traced again ({more}), though all steps of a run have the same shapes: a defect"
            )

    def _show(self, done: int, found: Samples) -> None:
        """Write a page with the samples of the first questions."""
        chosen = np.flatnonzero(np.isin(found.groups.group, np.unique(found.groups.group)[:PAGE]))
        items = [
            (
                self.config.rollout.method.name,
                found.groups.alone(i),
                found.told[i] | {"machine": f"reward {found.told[i]['reward']:.4g}"},
            )
            for i in chosen
        ]
        path = Path(self.config.workdir) / "pages" / f"step_{done:06d}.html"
        path.parent.mkdir(exist_ok=True)
        timeline.write_page(path, items, lambda _, token: self.sampler.codec.decode([token]), f"Samples of step {done}")

    def _learn(self, state: RlState, batch: Batch) -> tuple[RlState, dict[str, float], float]:
        """The updates of a step, their numbers, and the seconds that they took; none if all advantages are 0."""
        counts, start = batch.counts, time.perf_counter()
        values = {
            name: float(getattr(counts, name))
            for name in ("samples", "groups", "silent_groups", "labels", "silent_labels")
        }
        values |= {"labels_left_out": counts.packed.left_out, "rows_used": _rows(batch), "skipped_updates": 0.0}
        if batch.rows.owner.shape[1] > LONG:
            values["skipped_blocks"] = float(self.learner.skipped(batch.rows))
        if not (batch.rows.label >= 0).any():
            return state, values | {"skipped_updates": 1.0}, time.perf_counter() - start
        old = self.learner.score(state.params, batch)
        reference = self.learner.score(self.reference, batch) if self.reference is not None else None
        labelled = batch.rows.label >= 0
        mismatch = gate.compare(old.logprob, batch.labels.engine, labelled, old.forks, batch.name)
        if not np.isfinite(mismatch.largest):
            raise self._diverged(batch.transcripts, f"a log-probability is not finite at {mismatch.where}")
        if not self.passed:
            gate.require(mismatch, self.learner.graph.config.dtype)
            self.passed = True
            self.progress.note(f"gate: training gives the rollout's log-probabilities, {_gap(mismatch)}")
        for _ in range(self.config.inner_steps):
            state, sums, loss, norm = self.learner.update(state, batch, old, reference)
            if not np.isfinite([loss, norm]).all():
                raise self._diverged(batch.transcripts, f"the loss is {loss}, the norm of the gradient {norm}")
        if names := weights.not_finite((state.params, state.optimizer)):
            what = f"after the update numbers are not finite in {len(names)} arrays of the state ({names[0]})"
            raise self._diverged(batch.transcripts, what)
        seconds = time.perf_counter() - start
        values |= {"loss": loss, "gradient_norm": norm, "update_tokens_per_second": counts.packed.entries / seconds}
        values |= {f"gate/{name}": value for name, value in mismatch.numbers().items()}
        return state, values | estimators.summarise(sums), seconds

    def _evaluate(self, done: int, held_out: Sequence) -> dict[str, float]:
        numbers = self.sampler.evaluate(held_out)
        self.metrics.write(done, numbers)
        self.progress.report(
            done, {f"held_out/{name}": numbers[f"held_out/{name}"] for name in ("accuracy", "threads")}
        )
        return numbers

    def _save(self, done: int, state: RlState, position: int) -> None:
        config = settings.to_dict(self.config)
        self.checkpoints.save(
            done, state, {"position": position, "config": config, "made_from": _made_from(self.config)}
        )

    def _diverged(self, transcripts: Sequence[record.Transcript], what: str) -> FloatingPointError:
        """The error of a run whose numbers are not finite; the transcripts of the step are saved."""
        path = Path(self.config.workdir) / DIVERGED
        record.write(path, transcripts, self.sampler.codec.decode)
        last = self.checkpoints.latest
        good, rate = f"that of step {last}" if last else "the start", self.config.optimizer.learning_rate
        return FloatingPointError(
            f"{what}; the transcripts are in {path}. The last good state is {good}: begin from it in another --workdir with a "
            f"lower --optimizer.learning-rate (now {rate:g})"
        )


def _rows(batch: Batch) -> int:
    return int((batch.rows.owner >= 0).any(axis=1).sum())


def _gap(mismatch: gate.Mismatch) -> str:
    return f"mean difference {mismatch.mean:.3g}, largest {mismatch.largest:.3g} nats over {mismatch.labels:,} labels"
