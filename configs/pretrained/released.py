"""What the configurations of released checkpoints share: the shapes of their models, and proposals for devices.

A configuration has a method for each device, whose sizes fit there. Give the checkpoint's folder twice, for its weights and its
tokenizer, and the questions:

    python -m experiments.evaluate --config configs/pretrained/npr.py --only v6e --methods.v6e.rollout.checkpoint FOLDER \\
        --tokenizer FOLDER --problems-file questions.jsonl

The tags are looked for as ids of that tokenizer, and the evaluation ends before it decodes anything if they are not the published
ones. An evaluation runs on one device. A model that `Proposal.chips` cuts over several is decoded by a program of one's own:

    mesh = sharding.make_mesh(model=proposal.chips)
    engine = Engine(load_pretrained(folder, mesh), method.protocol(load(folder)), proposal.sizes, mesh=mesh)
"""

import dataclasses
from collections.abc import Mapping

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.methods import Method, Sampling
from apr_jax.model.config import PRESETS, ModelConfig
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.tasks.prompt import Prompt

FOLDER = "give the checkpoint's folder"
MEMORY = {"v5e": 16e9, "v6e": 32e9, "h100": 80e9}  # bytes of a chip

QWEN3_8B = PRESETS["qwen3_8b"]
QWEN3_4B = dataclasses.replace(QWEN3_8B, width=2560, ffn=9728, tied=True)
QWEN25_32B = ModelConfig(
    vocabulary=152064, width=5120, layers=64, heads=40, kv_heads=8, head_dim=128, ffn=27648, rope_theta=1e6, bias="qkv", tied=False,
    dtype="bfloat16", param_dtype="bfloat16",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Sizes for a kind of device.

    Attributes:
        chips: that the model is cut over.
        sizes: with so many problems in flight as fit.
    """

    chips: int
    sizes: Sizes


@dataclasses.dataclass(frozen=True)
class Need:
    """What one problem of a method may need.

    Attributes:
        lanes: threads that compute at once.
        threads: over the life of a problem.
        slots: tokens that the pool holds, prompt and partly filled pages included.
    """

    lanes: int
    threads: int
    slots: int

    def sizes(self, problems: int) -> Sizes:
        """The sizes for so many problems in flight."""
        return Sizes(
            problems=problems, lanes=self.lanes, rows=problems * self.lanes, threads=self.threads, slots=self.slots, page_size=128,
            log=self.slots, log_page_size=128, prompt=2048, feed_tiles=2, feed_chunk=128, queue=64, outbox=8,
        )  # fmt: skip


def proposals(need: Need, chips_and_problems: Mapping[str, tuple[int, int]]) -> dict[str, Proposal]:
    """For each device the number of chips, and of problems in flight."""
    return {name: Proposal(chips, need.sizes(problems)) for name, (chips, problems) in chips_and_problems.items()}


def evaluation(
    method: Method, sampling: Sampling, ask: Prompt, proposed: Mapping[str, Proposal], output: str
) -> EvaluateConfig:
    """An evaluation on questions of mathematics that has a method for each device."""
    rollouts = {
        name: RolloutConfig(method=method, checkpoint=FOLDER, sampling=sampling, sizes=proposal.sizes)
        for name, proposal in proposed.items()
    }
    return EvaluateConfig(
        methods={name: MethodConfig(rollout) for name, rollout in rollouts.items()},
        task=Mathematics(ask=ask, read=("boxed", "number")),
        tokenizer=FOLDER,
        output=output,
    )
