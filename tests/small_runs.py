"""Training runs of seconds, supervised and by reinforcement, in a folder of their own: with every part of a large run."""

import dataclasses
from pathlib import Path

import jax

from apr_jax.decode import Sizes
from apr_jax.evaluate.methods import RolloutConfig
from apr_jax.methods import Sampling, SpawnJoin
from apr_jax.model import io, transformer
from apr_jax.model.config import PRESETS
from apr_jax.rl.config import RlConfig
from apr_jax.rl.estimators import NAMED
from apr_jax.rl.groups import GroupConfig
from apr_jax.rl.rewards import Case, Correctness, Measure, Part
from apr_jax.tasks.countdown import SHIPPED, problems, training
from apr_jax.tasks.countdown.demonstrations import DemonstrationConfig
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.sft import SftConfig

MODEL = dataclasses.replace(PRESETS["tiny"], layers=1, width=32, ffn=32, heads=2, kv_heads=2, head_dim=16)
THREE = DemonstrationConfig(
    setting=problems.PRESETS["three"], beam=(3, 3), sub_beam=(3, 3), order="canonical", promising=0.0
)
SIZES = Sizes(
    problems=4, lanes=4, rows=8, threads=16, slots=256, log=256, feed_tiles=2, feed_chunk=8, prompt=16, queue=8, outbox=8,
    attention_block=128,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Even(Measure):
    """Whether the first token is even: something to learn for a model that knows nothing."""

    def of(self, case: Case) -> float:
        return float(case.transcript.generated(0)[0] % 2 == 0)


def sft(folder: Path) -> SftConfig:
    """Six updates; of everything that a run writes there is more than one."""
    return SftConfig(
        training.DataConfig(str(folder / "data"), "apr", (training.Part(1.0, THREE),), 12, 2, 128, 16),
        MODEL,
        OptimizerConfig(learning_rate=1e-2, warm_up=2),
        rows_per_batch=2,
        steps=6,
        log_every=2,
        evaluate_every=3,
        checkpoint_every=2,
        workdir=str(folder / "run"),
        tensorboard=False,
    )


def wild(folder: Path) -> RlConfig:
    """The same with steps into nowhere."""
    optimizer = OptimizerConfig(learning_rate=1e30, clip=1e30, warm_up=0, final=1.0, weight_decay=0.0)
    return dataclasses.replace(rl(folder), optimizer=optimizer)


def rl(folder: Path) -> RlConfig:
    """Four steps of a model drawn at random; prompts whose samples are all alike are drawn again."""
    start = folder.parent / "start.safetensors"
    if not start.exists():
        io.save(start, transformer.init(MODEL, jax.random.key(0)), MODEL)
    return RlConfig(
        rollout=RolloutConfig(SpawnJoin(), str(start), Sampling(temperature=1.0, max_tokens=24), sizes=SIZES),
        task=Countdown(settings=("three",), problems_per_setting=6, split="train"),
        tokenizer=str(SHIPPED / "compact.model"),
        rewards=(Part(Correctness()), Part(Even())),
        estimator=dataclasses.replace(NAMED["dapo"], kl=0.1),
        groups=GroupConfig(length=128, threads=16, rows=8),
        optimizer=OptimizerConfig(learning_rate=1e-2, warm_up=0, final=1.0, weight_decay=0.0),
        control=("<spawn>", "<wait>", "<end>"),
        prompts=2,
        samples=2,
        micro_rows=4,
        steps=4,
        held_out=Countdown(settings=("three",), problems_per_setting=2, split="val"),
        evaluate_every=2,
        checkpoint_every=2,
        keep_every=1,
        show_every=2,
        workdir=str(folder / "run"),
        tensorboard=False,
    )
