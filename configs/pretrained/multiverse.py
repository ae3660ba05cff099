"""Multiverse-32B (Yang et al. 2025, arXiv 2506.09991), trained from Qwen2.5-32B-Instruct; see `configs/pretrained/released.py`.

Published: the tags and their ids (twelve after the last id of Qwen2.5's tokenizer: `</Goal>` is 151670, `</Path>` 151674), the
words after a question that ask for parallel thinking, two levels of paths. Not published: sampling; here that of its base model.
"""

from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.methods import Multiverse, Sampling
from apr_jax.tasks.prompt import Prompt
from configs.pretrained.released import QWEN25_32B, Need, evaluation, proposals

MODEL = QWEN25_32B
METHOD = Multiverse(trained=True, first_id=151665)
PROPOSALS = proposals(Need(lanes=8, threads=64, slots=40960), {"v5e": (8, 4), "v6e": (4, 4), "h100": (2, 5)})


def config() -> EvaluateConfig:
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=20, max_tokens=32768)
    ask = Prompt(wrap="{question} Think step by step and in parallel before answering.")
    return evaluation(METHOD, sampling, ask, PROPOSALS, "results/multiverse")
