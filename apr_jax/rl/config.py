"""The configuration of a run of reinforcement learning."""

import dataclasses
from pathlib import Path

from apr_jax import files, settings
from apr_jax.decode.problem import check_seed, whole
from apr_jax.evaluate.methods import RolloutConfig
from apr_jax.rl.estimators import NAMED, Estimator
from apr_jax.rl.groups import GroupConfig
from apr_jax.rl.rewards import Correctness, Part
from apr_jax.tasks.task import Task
from apr_jax.train.layout import MeshConfig, Remat
from apr_jax.train.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class RlConfig:
    """Configuration of one run. Fields that may change when the run is resumed are marked (free).

    Attributes:
        rollout: the method, the checkpoint to start from, sampling and static sizes.
        task: the questions to learn from; they are read in order, and in an order drawn from the seed in later epochs.
        held_out: the questions of evaluations.
        tokenizer: path of the tokenizer, see `apr_jax.pretrained.tokenizer.load`.
        rewards: the terms of the reward.
        estimator: advantages and loss.
        groups: how transcripts become rows.
        optimizer: settings of the optimiser; its steps are updates, `inner_steps` in each step.
        control: the words by which the model spawns, waits and ends; where they have mass together, a fork is being decided.
        prompts: questions of a step.
        samples: samples of each question.
        grouped: the samples of a question are one problem, so that its prompt is fed and stored once; `rollout.sizes` must hold
            threads, slots and log of them all, and `groups.each` must be "answer". False: each is a problem of its own.
        draws: if `estimator.dynamic`, most draws of a step: groups whose rewards are all equal are replaced by new questions.
        steps: steps of the run.
        inner_steps: updates on the samples of a step.
        micro_rows: rows of a micro-batch; it must divide `groups.rows`.
        seed: seed of questions, of their order and, with the number of the step, of all draws.
        chunk: queries per block of attention, and entries per block of logits where those are many.
        remat: what each layer keeps for the backward pass, see `apr_jax.train.layout.Remat`.
        mesh: the devices, of rollouts as of updates; a run may go on on others (free).
        held_out_temperature: at which they are answered; 0 is greedy.
        evaluate_every: steps between evaluations; 0: none are made (free).
        checkpoint_every: steps between checkpoints (free).
        keep_every: steps between those whose groups are kept for good, see `apr_jax.rl.kept`; 0: none (free).
        keep_last: steps whose groups are kept until so many others have followed; 0: none (free).
        show_every: steps between pages with samples, `{workdir}/pages/step_N.html`; 0: none are written (free).
        workdir: folder for checkpoints, metrics and the resolved configuration (free).
        export: path of the trained parameters, see `apr_jax.train.sft.SftConfig.export`; empty: no export (free).
        tensorboard: write TensorBoard event files beside `metrics.jsonl` (free).
        wandb: a project of Weights & Biases, to which the same numbers go; empty: none (free).
    """

    rollout: RolloutConfig
    task: Task
    held_out: Task
    tokenizer: str
    rewards: tuple[Part, ...] = (Part(Correctness()),)
    estimator: Estimator = NAMED["p_grpo"]
    groups: GroupConfig = GroupConfig()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, warm_up=0, final=1.0, weight_decay=0.0)
    control: tuple[str, ...] = ()
    prompts: int = 16
    samples: int = 8
    grouped: bool = False
    draws: int = 3
    steps: int = 150
    inner_steps: int = 1
    micro_rows: int = 16
    seed: int = 0
    chunk: int = 128
    remat: Remat = "everything_saveable"
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(), metadata=settings.FREE)
    held_out_temperature: float = 0.0
    evaluate_every: int = dataclasses.field(default=25, metadata=settings.FREE)
    checkpoint_every: int = dataclasses.field(default=10, metadata=settings.FREE)
    keep_every: int = dataclasses.field(default=25, metadata=settings.FREE)
    keep_last: int = dataclasses.field(default=3, metadata=settings.FREE)
    show_every: int = dataclasses.field(default=25, metadata=settings.FREE)
    workdir: str = dataclasses.field(default="work/rl", metadata=settings.FREE)
    export: str = dataclasses.field(default="{workdir}/model.safetensors", metadata=settings.FREE)
    tensorboard: bool = dataclasses.field(default=True, metadata=settings.FREE)
    wandb: str = dataclasses.field(default="", metadata=settings.FREE)

    def __post_init__(self):
        least = {
            "samples": 2,
            "evaluate_every": 0,
            "keep_every": 0,
            "keep_last": 0,
            "show_every": 0,
        }  # one sample has no group to be compared with
        names = ("prompts", "samples", "draws", "steps", "inner_steps", "micro_rows", "chunk")
        for name in (*names, "evaluate_every", "checkpoint_every", "keep_every", "keep_last", "show_every"):
            whole(name, getattr(self, name), least.get(name, 1))
        check_seed(self.seed)
        if self.groups.rows % self.micro_rows:
            raise ValueError(
                f"micro_rows is {self.micro_rows}; it must divide groups.rows = {self.groups.rows}, so that all micro-batches "
                "have one shape"
            )
        self.mesh.check_rows("micro_rows", self.micro_rows)
        if not self.rewards:
            raise ValueError(
                "rewards is empty; without a reward every advantage is 0, give a term such as Part(Correctness())"
            )
        if self.grouped and self.groups.each != "answer":
            raise ValueError(
                f"groups.each is {self.groups.each!r} and grouped is True: samples are answers of one problem, set it to 'answer'"
            )
        self.drawn()  # raises ValueError if the method has no form that holds several answers
        self.evaluated()  # raises ValueError if the method cannot work at that temperature

    def drawn(self) -> RolloutConfig:
        """The rollout of a step."""
        grouped = self.rollout.method.grouped(self.samples) if self.grouped else self.rollout.method
        return dataclasses.replace(self.rollout, method=grouped)

    def evaluated(self) -> RolloutConfig:
        """The rollout of an evaluation."""
        sampling = dataclasses.replace(self.rollout.sampling, temperature=self.held_out_temperature)
        return dataclasses.replace(self.rollout, sampling=sampling) if self.evaluate_every else self.rollout

    @property
    def exported(self) -> Path | None:
        """The path of the trained parameters, None without export."""
        return files.local(self.export.replace("{workdir}", self.workdir), "export") if self.export else None
