"""1,000 held-out problems of each size and every method: the figures of docs/reproduce.md.

    python -m experiments.evaluate --config configs/countdown_1000.py --settings three --output results/three
    python -m experiments.evaluate --config configs/countdown_1000.py --settings four --output results/four

About half an hour on two CPU cores.
"""

import dataclasses

from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.tasks.countdown.task import Countdown
from configs import demo


def config() -> EvaluateConfig:
    return dataclasses.replace(
        demo.config(), task=Countdown(problems_per_setting=1000), output="results/countdown_1000"
    )
