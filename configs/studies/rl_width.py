"""Does reinforcement learning teach a model that forks at any width to fork wider, and to be right more often? (APR, section 4.4)

    python -m experiments.train_sft --config configs/sft_width.py
    python -m experiments.reproduce rl_width
    python -m experiments.reproduce rl_width --smoke True

Countdown with three numbers. Answers are drawn at temperature 1, as in training. The width of the parent's forks says nothing of
the problem, and has an entropy of 2.3 nats (`python -m experiments.measure_width`).
"""

import dataclasses

from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.evaluate.methods import MethodConfig
from apr_jax.sweep.study import Arm, Claim, Stage, Study
from apr_jax.tasks.countdown.task import Countdown
from configs import rl_width, sft_width

RL = "configs/rl_width.py"
CHECKPOINT = {"methods.apr.rollout.checkpoint": "{trained}/model.safetensors"}
EVALUATION = "configs/studies/rl_width.py:answers"
THREE = {"settings": "three", "problems_per_setting": 1000, "shown": 1}
SMALL = {
    "experiments.train_rl": {
        "steps": 1, "prompts": 2, "samples": 2, "groups.rows": 24, "evaluate_every": 0, "tensorboard": False,
    },
    "experiments.evaluate": {"problems_per_setting": 4},
}  # fmt: skip


def answers() -> EvaluateConfig:
    """The parent on held-out problems."""
    run = rl_width.config()
    checkpoint = str(sft_width.config().exported)
    return EvaluateConfig(
        methods={"apr": MethodConfig(dataclasses.replace(run.rollout, checkpoint=checkpoint))},
        task=Countdown(),
        tokenizer=run.tokenizer,
    )


def config() -> Study:
    return Study(
        question="Does reinforcement learning teach a model that forks at any width to fork wider, and to be right more often?",
        arms=(Arm("parent", "apr"), Arm("RL", "apr", (Stage(RL),), evaluate=CHECKPOINT)),
        claims=(
            Claim("RL", "parent", target=0.03, published="75.5 % to 83.4 %"),
            Claim("RL", "parent", "threads", published="6.1 to 8.2"),
        ),
        evaluation=EVALUATION,
        options=THREE,
        hours=2,
        small=SMALL,
        output="results/studies/rl_width",
    )
