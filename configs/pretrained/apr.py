"""The checkpoints that were released with APR (Pan et al. 2025, arXiv 2504.15466), in the text that they were trained to write.

    python -m experiments.evaluate --config configs/pretrained/apr.py --tokenizer FOLDER --methods.apr.rollout.checkpoint FOLDER

FOLDER holds a download of one of them, `llama-apr_cond10_grpo` for example: `config.json`, the weights, and the tokenizer of Llama
2, which has no words of the format: these are ordinary text. There is no chat template, and nothing is added to the vocabulary.
The prompt is `Moving to Node #0` and the state of the problem, after the id that begins a text; `task.budget` puts
`Sub Call Budget: 10 ` before it, as in the training of the conditioned models: `--task.budget None` for the others. The models of
SoS+ decode with the method `Sequential(end="")`, `--task.form sos`, and budgets in tokens, in steps of 512 up to 4096.

Published: temperature 1, up to 4096 tokens a request and a thread.

Sizes: a token costs 74 kB of keys and values in bfloat16, a problem with `slots` = 12288 about 0.9 GB. The defaults suit a v5e
(16 GB); on an H100 (80 GB) take `--methods.apr.rollout.sizes.problems 64 --methods.apr.rollout.sizes.rows 512`. A call takes one
thread a child and two more, which hold what is forgotten and what goes on.
"""

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.methods import AprText, Sampling
from apr_jax.tasks.countdown.text import CountdownSearch, CountdownText

FOLDER = "checkpoints/llama-apr_cond10_grpo"

ROLLOUT = RolloutConfig(
    method=AprText(search=CountdownSearch()),
    checkpoint=FOLDER,
    sampling=Sampling(temperature=1.0, max_tokens=4096),
    sizes=Sizes(
        problems=12, lanes=8, rows=96, feed_tiles=8, feed_chunk=64, threads=64, slots=12288, page_size=32, log=16384,
        log_page_size=32, prompt=128, queue=256, outbox=16, host=8192,
    ),
)  # fmt: skip


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods={"apr": MethodConfig(ROLLOUT)},
        task=CountdownText(settings=("four",), problems_per_setting=1000, split="val", budget=10),
        tokenizer=FOLDER,
        output="results/pretrained_apr",
    )
