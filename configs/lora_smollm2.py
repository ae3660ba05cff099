"""Low-rank adapters of SmolLM2-135M-Instruct, trained on its own forked rollouts, merged, and saved for `transformers`.

    python -m experiments.evaluate --config configs/smollm2_methods.py --only shared_message
    python -m experiments.train_sft --config configs/lora_smollm2.py

The rows of the control words are trained beside the adapters. So few questions leave few right answers: all rollouts are taken
here, which shows the way and teaches little; evaluate some thousands and give `--data.correct True` for rejection sampling.
"""

from apr_jax.model.config import ModelConfig, padded_vocabulary
from apr_jax.train.logs import LogData
from apr_jax.train.lora import Lora
from apr_jax.train.optimizer import OptimizerConfig
from apr_jax.train.sft import SftConfig
from configs.smollm2_methods import FORK_JOIN, MODEL

IDS = 49152  # of its tokenizer; those of the control words follow
WORDS = FORK_JOIN.words
SMOLLM2 = ModelConfig(
    vocabulary=padded_vocabulary(IDS + len(WORDS)),
    width=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    rope_theta=1e5,
    norm_eps=1e-5,
)


def config() -> SftConfig:
    return SftConfig(
        data=LogData(
            folder="data/smollm2",
            transcripts=("results/smollm2_methods/transcripts_shared_message.jsonl",),
            tokenizer=MODEL,
            control_words=WORDS,
            gain=FORK_JOIN.gain,
            correct=False,
            length=1024,
            threads=16,
        ),
        model=SMOLLM2,
        start=MODEL,
        lora=Lora(rank=8, alpha=16.0, tokens=tuple(range(IDS, IDS + len(WORDS)))),
        optimizer=OptimizerConfig(learning_rate=2e-4, warm_up=2, weight_decay=0.0),
        rows_per_batch=1,
        steps=20,
        remat="nothing_saveable",
        log_every=5,
        evaluate_every=20,
        checkpoint_every=10,
        workdir="work/lora_smollm2",
        export="{workdir}/model",
    )
