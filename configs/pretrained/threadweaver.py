"""ThreadWeaver (Lian et al. 2025, arXiv 2512.07843), trained from Qwen3-8B; see `configs/pretrained/released.py`.

Published: twelve tags after the last id of Qwen3's tokenizer, and the client without conclusions. The paper bounds a response by
40,000 tokens, as here; the released configuration, for multiplication, by 8,192. Not published: sampling at evaluation; here that
of its base model.
"""

from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.methods import Sampling, ThreadWeaver
from apr_jax.tasks.prompt import Prompt
from configs.pretrained.released import QWEN3_8B, Need, evaluation, proposals

MODEL = QWEN3_8B
METHOD = ThreadWeaver(trained=True, first_id=151669, response=40_000)
# A token of a thread but the first is held twice while the parent is fed it.
PROPOSALS = proposals(Need(lanes=8, threads=96, slots=65536), {"v5e": (4, 3), "v6e": (2, 3), "h100": (1, 5)})


def config() -> EvaluateConfig:
    sampling = Sampling(temperature=0.6, top_p=0.95, top_k=20, max_tokens=40_000)
    ask = Prompt(wrap="{question}\n\nReason step by step, and put the final answer within \\boxed{}.")
    return evaluation(METHOD, sampling, ask, PROPOSALS, "results/threadweaver")
