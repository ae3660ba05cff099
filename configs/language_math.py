"""Any file of questions in language: a pretrained model that chats, one thread and a vote over four.

    python -m experiments.evaluate --config configs/language_math.py --problems-file my_questions.jsonl

The file holds a question and its answer a line: {"question": "What is 6 times 7?", "answer": "42"}.
"""

from apr_jax.decode import Sizes
from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig, RolloutConfig
from apr_jax.evaluate.select import Majority, Verifier
from apr_jax.methods import Samples, Sampling, Sequential
from apr_jax.tasks.language.mathematics import Mathematics
from apr_jax.tasks.prompt import Prompt

MODEL = "work/smollm2.gguf"  # carries its tokenizer and chat template
BOXED = Prompt(wrap="{question}\n\nThink step by step, and put the final answer in \\boxed{}.")
QUEUES = dict(prompt=512, feed_tiles=2, feed_chunk=64, queue=64, outbox=16)

SEQUENTIAL = RolloutConfig(
    method=Sequential(end=""),
    checkpoint=MODEL,
    sampling=Sampling(max_tokens=512),
    sizes=Sizes(problems=8, lanes=1, rows=8, threads=1, slots=1024, log=1024, **QUEUES),
)
SAMPLES = RolloutConfig(
    method=Samples(4, end=""),
    checkpoint=MODEL,
    sampling=Sampling(temperature=0.6, top_p=0.95, max_tokens=512),
    sizes=Sizes(problems=4, lanes=4, rows=16, threads=5, slots=2560, log=2560, **QUEUES),
)
METHODS = {
    "sequential": MethodConfig(SEQUENTIAL),
    "self_consistency": MethodConfig(SAMPLES, select=Majority(), also=(Verifier(),)),
}


def config() -> EvaluateConfig:
    return EvaluateConfig(
        methods=METHODS,
        task=Mathematics(ask=BOXED, read=("boxed", "number"), problems_file="my_questions.jsonl"),
        tokenizer=MODEL,
        output="results/language_math",
    )
