"""Does reinforcement learning make the shipped APR model better, and more parallel? (APR, arXiv 2504.15466, section 4.4)

    python -m experiments.reproduce rl_apr
    python -m experiments.reproduce rl_apr --smoke True

Three learning rates, chosen on validation problems, three seeds: nine runs of 150 steps, about 45 minutes each on two cores. In the
shipped model the number of threads is a constant of the problem's size, so that "more threads" is not to be expected of it.
"""

from apr_jax.sweep import points
from apr_jax.sweep.study import Arm, Claim, Stage, Study

RL = "configs/rl_countdown.py"
CHECKPOINT = {"methods.apr.rollout.checkpoint": "{trained}/model.safetensors"}
EVALUATION = "configs/demo.py"
FOUR = {"settings": "four", "problems_per_setting": 1000, "shown": 1}
SMALL = {
    "experiments.train_rl": {
        "steps": 1, "prompts": 2, "samples": 2, "groups.rows": 24, "tensorboard": False,
    },
    "experiments.evaluate": {"problems_per_setting": 4},
}  # fmt: skip


def config() -> Study:
    rates = points.grid({"optimizer.learning_rate": (3e-5, 1e-4, 3e-4)})
    return Study(
        question="Does reinforcement learning on its own rollouts make the shipped APR model better, and does it fork more?",
        arms=(Arm("parent", "apr"), Arm("RL", "apr", (Stage(RL),), tuple(rates), CHECKPOINT)),
        claims=(
            Claim("RL", "parent", target=0.05, published="75.5 % to 83.4 %"),
            Claim("RL", "parent", "threads", published="6.1 to 8.2"),
        ),
        evaluation=EVALUATION,
        options=FOUR,
        hours=7,
        small=SMALL,
        output="results/studies/rl_apr",
    )
