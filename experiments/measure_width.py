"""How wide a model forks, and what that is worth: the distribution of the width of the root's first fork, and accuracy by width.

    python -m experiments.measure_width --config configs/rl_width.py
    python -m experiments.measure_width --config configs/rl_width.py --rollout.checkpoint work/rl_width/model.safetensors

Each held-out question of a configuration of reinforcement learning is answered once, at temperature 1. The entropy is that of the
width over all answers, in nats; *by size* is the part of it that the size of the problem (how many numbers) tells. Rewards teach
nothing about width below about 0.1 nats: there is no choice to be made better.
"""

import collections
import dataclasses
import sys
from collections.abc import Hashable, Sequence

import numpy as np

from apr_jax import settings
from apr_jax.evaluate import methods, metrics
from apr_jax.pretrained.tokenizer import load


def table(widths: Sequence[int], correct: Sequence[bool], size: Sequence[Hashable]) -> str:
    """The lines that are printed, from the width, the grade and the size of the problem of each answer."""
    total = metrics.entropy(widths)
    sizes = collections.defaultdict(list)
    for width, each in zip(widths, size, strict=True):
        sizes[each].append(width)
    within = sum(len(some) * metrics.entropy(some) for some in sizes.values()) / max(len(widths), 1)
    lines = ["width  answers  right"]
    for width in sorted(set(widths)):
        right = [grade for grade, other in zip(correct, widths, strict=True) if other == width]
        lines.append(f"{width:5}  {len(right):7}  {np.mean(right):.1%}")
    support = len(set(widths))
    lines.append(
        f"mean width {np.mean(widths):.2f}, entropy {total:.3f} nats over {support} widths (by size {total - within:.3f}); "
        f"right {np.mean(correct):.1%} of {len(widths)}"
    )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    config = settings.parse(argv, "configs/rl_width.py")
    codec = load(config.tokenizer)
    asked = dataclasses.replace(config.rollout, sampling=dataclasses.replace(config.rollout.sampling, temperature=1.0))
    questions = config.held_out.questions(config.seed)
    engine, codec = methods.make_engine(asked, codec)
    problems = methods.requests(config.held_out, questions, asked, codec)
    found = sorted(engine.decode(problems, config.seed, slice_steps=200), key=lambda each: each.problem)
    answers = methods.read(methods.put(config.held_out, asked), questions, found, codec, asked)
    correct = [any(answer.candidate.correct for answer in given) for given in answers]
    widths = [next(iter(metrics.widths(transcript)), 0) for transcript in found]
    print(table(widths, correct, [len(getattr(question, "nums", ())) for question in questions]))


if __name__ == "__main__":
    main(sys.argv[1:])
