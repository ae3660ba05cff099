"""The configuration of a run of supervised training."""

import dataclasses
from pathlib import Path

from apr_jax import files, settings
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.train.data import Data
from apr_jax.train.layout import MeshConfig, Remat
from apr_jax.train.lora import Lora
from apr_jax.train.optimizer import OptimizerConfig


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
        micro_rows: rows of a micro-batch, whose gradients are added up; it divides `rows_per_batch`. 0: all rows at once.
        chunk: queries per block of attention, and entries per block of logits where those are many.
        remat: what each layer keeps for the backward pass, see `apr_jax.train.layout.Remat`.
        mesh: the devices; a run may go on on others (free).
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
    micro_rows: int = 0
    chunk: int = 128
    remat: Remat = "everything_saveable"
    mesh: MeshConfig = dataclasses.field(default=MeshConfig(), metadata=settings.FREE)
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
        if self.micro_rows < 0 or self.rows_per_batch % self.rows_at_once:
            raise ValueError(
                f"micro_rows is {self.micro_rows}; it must divide rows_per_batch = {self.rows_per_batch}, or be 0 for all at once"
            )
        self.mesh.check_rows("micro_rows" if self.micro_rows else "rows_per_batch", self.rows_at_once)
        if self.model.int8_weights:
            raise ValueError("model.int8_weights is True; int8 is for decoding and has no gradients, train with False")
        if self.lora and not self.start:
            raise ValueError("start is empty; adapters (lora) are trained beside the parameters of a model, name it")

    @property
    def rows_at_once(self) -> int:
        """Rows of a micro-batch."""
        return self.micro_rows or self.rows_per_batch

    @property
    def exported(self) -> Path | None:
        """The path of the trained parameters, None without export."""
        return files.local(self.export.replace("{workdir}", self.workdir), "export") if self.export else None
