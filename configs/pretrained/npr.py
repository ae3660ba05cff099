"""NPR-4B (Wu et al. 2025, arXiv 2512.07461), trained from Qwen3-4B; see `configs/pretrained/released.py`.

Published: eight tags of one id each, the engine's rules (at most five plans, a response of 30,000 tokens less 128, 1,024 of them
left for a fork, a penalty of 1.02 inside steps), temperature 1 and top-p 0.7. The ids are not written down: only that each tag is
one is checked.
"""

from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.methods import NPR, Sampling
from apr_jax.tasks.prompt import Prompt
from configs.pretrained.released import QWEN3_4B, Need, evaluation, proposals

MODEL = QWEN3_4B
METHOD = NPR(trained=True)
PROPOSALS = proposals(Need(lanes=5, threads=64, slots=40960), {"v5e": (2, 3), "v6e": (1, 3), "h100": (1, 10)})


def config() -> EvaluateConfig:
    sampling = Sampling(temperature=1.0, top_p=0.7, max_tokens=METHOD.response)
    ask = Prompt(wrap="{question}\n\nReason step by step, and put the final answer within \\boxed{}.")
    return evaluation(METHOD, sampling, ask, PROPOSALS, "results/npr")
