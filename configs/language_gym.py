"""Questions of reasoning-gym, judged by its own verifiers.

pip install -r requirements-gym.txt
python -m experiments.evaluate --config configs/language_gym.py --count 20
python -m experiments.evaluate --config configs/language_gym.py --dataset products --count 20
"""

import dataclasses

from apr_jax.evaluate.config import EvaluateConfig
from apr_jax.tasks.language.gym import ReasoningGym
from configs import language_math


def config() -> EvaluateConfig:
    task = ReasoningGym(dataset="gsm_symbolic", count=20)
    return dataclasses.replace(language_math.config(), task=task, output="results/language_gym")
