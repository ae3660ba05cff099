"""How well and at what length the demonstrators of Countdown solve: a table over beams.

Example: python -m experiments.measure_demonstrator --preset four --beams 5,5 8,10 --count 500
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from apr_jax import tokenizer
from apr_jax.tasks.countdown import compact, problems, search

HEADER = (
    f"{'method':6} {'beams':>7} {'solved':>6} {'root':>6} {'child':>6} {'children':>8} {'total':>7} {'generated':>9} "
    f"{'longest p50':>11} {'p95':>6} {'max':>6} {'critical':>8} {'per s':>6}"
)


def measure(
    method: str, samples: list[problems.Problem], config: search.SearchConfig, seed: int, encode: Callable
) -> str:
    """One line of the table: means over problems, in tokens of `encode`; child: mean over children."""
    demonstrator = {"apr": search.apr, "sos": search.sos}[method]
    start = time.perf_counter()
    solved, counts = [], []
    for index, problem in enumerate(samples):
        trace = demonstrator(problem, config, problems.generator(seed, method, index))
        solved.append(trace.goal is not None)
        counts.append(compact.count(compact.render(problem, trace), encode))
    rate = len(samples) / (time.perf_counter() - start)
    children = [length for c in counts for length in c.threads[1:]]
    longest = np.array([max(c.threads) for c in counts])
    return (
        f"{method:6} {config.beam:3},{config.sub_beam:3} {np.mean(solved):6.3f} "
        f"{np.mean([c.threads[0] for c in counts]):6.0f} "
        f"{np.mean(children) if children else 0:6.0f} {len(children) / len(samples):8.2f} "
        f"{np.mean([sum(c.threads) for c in counts]):7.0f} {np.mean([sum(c.generated) for c in counts]):9.0f} "
        f"{np.percentile(longest, 50):11.0f} {np.percentile(longest, 95):6.0f} {longest.max():6} "
        f"{np.mean([c.critical for c in counts]):8.0f} {rate:6.0f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(problems.PRESETS), default="four")
    parser.add_argument("--beams", nargs="+", default=["5,5", "6,6", "7,7", "8,8", "8,10", "10,10", "12,10"])
    parser.add_argument("--methods", nargs="+", choices=("apr", "sos"), default=["apr", "sos"])
    parser.add_argument("--order", choices=("canonical", "shuffled"), default="canonical")
    parser.add_argument("--largest", type=int, default=0, help="numbers above are pruned, 0: none")
    parser.add_argument("--promising", type=float, help="default: 0.9 for apr, 0.5 for sos, as published")
    parser.add_argument("--whole", type=int, default=199, help="numbers up to this one are one token, 9: digits")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val")
    parser.add_argument("--count", type=int, default=500, help="problems")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    samples = [problems.generate(problems.PRESETS[args.preset], args.seed, args.split, k) for k in range(args.count)]
    encode = tokenizer.compact(args.whole).encode
    print(f"preset {args.preset}, order {args.order}, {args.count} problems of {args.split}, seed {args.seed}")
    print(HEADER)
    for method in args.methods:
        promising = {"apr": 0.9, "sos": 0.5}[method] if args.promising is None else args.promising
        for beams in args.beams:
            beam, sub_beam = map(int, beams.split(","))
            config = search.SearchConfig(beam, sub_beam, promising, args.order, args.largest)
            print(measure(method, samples, config, args.seed, encode), flush=True)


if __name__ == "__main__":
    main()
