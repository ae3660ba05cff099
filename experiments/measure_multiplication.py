"""What the demonstrations of multiplication cost in each format, by the length of the product: a table, without any model.

    python -m experiments.measure_multiplication --factors 2 8 --count 500

Lengths are means, in tokens. The speed-up of a format is the mean over problems of the critical path of the sequential
rendering over that of the format's (ThreadWeaver, Lian et al. 2025, arXiv 2512.07843, defines speed-up as such a mean).
"""

import argparse
import math
from collections.abc import Sequence

import numpy as np

from apr_jax.tasks.multiplication import problems, text
from apr_jax.tasks.multiplication.problems import MOST, Problem, Setting
from apr_jax.tasks.script import record

NAMES = tuple(text.METHODS)


def paths(samples: Sequence[Problem]) -> np.ndarray:
    """The critical path of each problem in each format of `NAMES`: Int [problems, formats]."""
    encode = text.vocabulary().encode
    return np.array(
        [[record(text.render(problem, name), encode).log.depth.max() for name in NAMES] for problem in samples]
    )


def table(samples: Sequence[Problem]) -> list[str]:
    """The lines of the table: a line for every three digits of the product."""
    found, digits = paths(samples), np.array([len(str(math.prod(problem.factors))) for problem in samples])
    ratio = found[:, [NAMES.index("sequential")]] / found
    lines = [f"{'digits':>7} {'problems':>8} " + " ".join(f"{name:>19}" for name in NAMES)]
    for low in range(1, digits.max() + 1, 3):
        chosen = (digits >= low) & (digits < low + 3)
        if chosen.any():
            means = zip(found[chosen].mean(axis=0), ratio[chosen].mean(axis=0), strict=True)
            cells = " ".join(f"{path:11.1f} ({speed:.2f}x)" for path, speed in means)
            lines.append(f"{low:3}-{low + 2:<3} {chosen.sum():8} {cells}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--factors", nargs=2, type=int, default=(2, MOST), metavar=("LEAST", "MOST"))
    parser.add_argument("--largest", type=int, default=1_000, help="largest integer")
    parser.add_argument("--count", type=int, default=300, help="problems")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        setting = Setting(tuple(args.factors), args.largest)
        samples = [problems.generate(setting, args.seed, args.split, index) for index in range(args.count)]
    except ValueError as error:
        parser.error(str(error))
    print(f"critical path (speed-up over sequential), {args.count} problems of {args.split}, seed {args.seed}")
    print("\n".join(table(samples)))


if __name__ == "__main__":
    main()
