"""APR on Countdown with four numbers over the children that a fork may have, 0 to 10: accuracy against critical path.

The published scaling curve (arXiv 2504.15466) at temperature 1; there the model was told the number, here a `<spawn>` too many
becomes a `<wait>`, and with 0 it is banned. 400 problems, 3 seeds.

    python -m experiments.sweep configs/sweeps/width.py
    python -m experiments.sweep report results/sweeps/width --x critical_path
    python -m experiments.sweep report results/sweeps/width --x width
"""

from apr_jax.sweep import points
from apr_jax.sweep.config import SweepConfig
from configs.sweeps import temperature


def config() -> SweepConfig:
    grid = points.grid({"methods.apr.rollout.method.width": range(11)})
    base = {**temperature.APR, "problems_per_setting": 400, "methods.apr.rollout.sampling.temperature": 1.0}
    return SweepConfig(
        program="experiments.evaluate", points=points.seeds(grid, 3), base=base, output="results/sweeps/width"
    )
