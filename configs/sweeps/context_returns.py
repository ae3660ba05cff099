"""What a child sees, and what comes back, on the shipped APR model of Countdown, which was trained for one of the combinations only
(isolated children, results as messages): 200 problems of each size, 3 seeds.

    python -m experiments.sweep configs/sweeps/context_returns.py
    python -m experiments.sweep report results/sweeps/context_returns --values accuracy critical_path peak_context threads
"""

from apr_jax.sweep import points
from apr_jax.sweep.config import SweepConfig
from configs.sweeps import temperature

METHOD = "methods.apr.rollout.method"


def config() -> SweepConfig:
    grid = points.grid(
        {
            f"{METHOD}.context": ("isolated", "shared", "live"),
            f"{METHOD}.returns": ("message", "stitch", "reencode"),
            "settings": ("three", "four"),
        }
    )
    return SweepConfig(
        program="experiments.evaluate",
        points=points.seeds(grid, 3),
        base=temperature.APR,
        output="results/sweeps/context_returns",
    )
