"""A model trained to fork, decoded in one thread, and the reverse: open question 1. Nothing is trained; a quarter of an hour.

    python -m experiments.reproduce decoded_otherwise
    python -m experiments.reproduce decoded_otherwise --smoke True

In one thread `<spawn>` and `<wait>` are words like others: the model goes on writing, and nobody answers. Masked, `<spawn>` cannot
be written at all. (With the children one after another instead of side by side it would write the same tokens: what is drawn does
not depend on the schedule.)
"""

from apr_jax.sweep.study import Arm, Study
from configs import demo
from configs.studies import rl_apr


def config() -> Study:
    return Study(
        question="What does a model trained to fork lose in one thread, and does one trained in one thread fork?",
        arms=(
            Arm("APR forking", "apr"),
            Arm("APR in one thread", "sequential", evaluate={"methods.sequential.rollout.checkpoint": demo.APR}),
            Arm("APR with spawn masked", "apr", evaluate={"methods.apr.rollout.method.width": 0}),
            Arm("SoS+ in one thread", "sequential"),
            Arm("SoS+ forking", "apr", evaluate={"methods.apr.rollout.checkpoint": demo.SOS}),
        ),
        claims=(),
        evaluation=rl_apr.EVALUATION,
        options=rl_apr.FOUR,
        hours=0.25,
        small=rl_apr.SMALL,
        exploratory=True,
        output="results/studies/decoded_otherwise",
    )
