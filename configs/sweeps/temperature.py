"""APR on Countdown with four numbers over the temperature of sampling: 6 temperatures, 3 seeds, 200 problems each.

    python -m experiments.sweep configs/sweeps/temperature.py
    python -m experiments.sweep report results/sweeps/temperature --x temperature

A seed draws problems and samples.
"""

from apr_jax.sweep import points
from apr_jax.sweep.config import SweepConfig

APR = {
    "config": "configs/demo.py",
    "only": "apr",
    "settings": "four",
    "problems_per_setting": 200,
    "resume": True,
    "output": "{folder}",
}


def config() -> SweepConfig:
    grid = points.grid({"methods.apr.rollout.sampling.temperature": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)})
    return SweepConfig(
        program="experiments.evaluate", points=points.seeds(grid, 3), base=APR, output="results/sweeps/temperature"
    )
