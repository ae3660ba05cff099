"""Parallel-R1-4B (Zheng et al. 2025, arXiv 2509.07980), trained from Qwen3-4B-Base; see `configs/pretrained/released.py`.

Published: six tags of one id each, two paths of at most 4,096 tokens at temperature 1, four blocks, a response of 3,000 tokens
behind a prompt of 2,000. Its authors say that the tags vanish under any prompt but the one it was trained with: give that of its
data preparation as `--ask.wrap`. The ids are not written down: only that each tag is one is checked.

This is Seen. For a checkpoint trained as Unseen set `--methods.v6e.rollout.method.join stitch`.
"""

from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.methods import ParallelR1, Sampling
from apr_jax.tasks.prompt import Prompt
from configs.pretrained.released import QWEN3_4B, Need, evaluation, proposals

MODEL = QWEN3_4B
METHOD = ParallelR1(trained=True)
# The second path is held twice while the parent is fed it.
PROPOSALS = proposals(Need(lanes=2, threads=12, slots=12288), {"v5e": (1, 2), "v6e": (1, 8), "h100": (1, 32)})


def config() -> EvaluateConfig:
    sampling = Sampling(temperature=1.0, max_tokens=3000, child_max_tokens=4096)
    return evaluation(METHOD, sampling, Prompt(), PROPOSALS, "results/parallel_r1")
