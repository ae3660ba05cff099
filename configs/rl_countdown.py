"""The shipped APR model learns on from its own rollouts: Countdown with four numbers (APR, arXiv 2504.15466, section 4.4).

    python -m experiments.train_rl --config configs/rl_countdown.py

Correctness alone, advantages centred and not scaled (P-GRPO), no divergence from the start. A smoke run:

    python -m experiments.train_rl --config configs/rl_countdown.py --steps 2 --prompts 4 --workdir work/smoke
"""

import dataclasses

from apr_jax.decode import Sizes
from apr_jax.methods import Sampling
from apr_jax.rl.config import RlConfig
from apr_jax.rl.estimators import NAMED
from apr_jax.rl.groups import GroupConfig
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.train.optimizer import OptimizerConfig
from configs import demo


def config() -> RlConfig:
    sizes: Sizes = demo.SPAWN_JOIN.sizes
    return RlConfig(
        rollout=dataclasses.replace(demo.SPAWN_JOIN, sampling=Sampling(temperature=1.0, max_tokens=320), sizes=sizes),
        task=Countdown(settings=("four",), problems_per_setting=2_400, split="train"),
        held_out=Countdown(settings=("four",), problems_per_setting=100, split="val"),
        tokenizer=str(SHIPPED / "compact.model"),
        estimator=NAMED["p_grpo"],
        groups=GroupConfig(length=640, threads=32, rows=384),
        optimizer=OptimizerConfig(learning_rate=1e-4, warm_up=0, final=1.0, weight_decay=0.0),
        control=("<spawn>", "<wait>", "<end>"),
        prompts=16,
        samples=8,
        micro_rows=8,
        steps=150,
        workdir="work/rl_countdown",
    )
