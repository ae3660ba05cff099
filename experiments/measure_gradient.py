"""What a gradient of reinforcement learning is worth: how much of it is noise, and how large a step along it the model bears.

    python -m experiments.measure_gradient --config configs/rl_three.py --prompts 64 --groups.rows 384

From the checkpoint that a configuration starts from, four batches are drawn, each of `prompts` x `samples`. Printed are the cosines
between their gradients (the square root of their mean is the share of a gradient's length that is signal), and then the accuracy of
other samples after steps of several sizes: along the gradient of all four, against it, and in a random direction. The size is the
change of each weight, by the sign of its gradient (Adam's first step). Nothing is written.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax import settings
from apr_jax.evaluate import methods
from apr_jax.model.transformer import Params
from apr_jax.pretrained.tokenizer import load
from apr_jax.rl import kept
from apr_jax.rl.config import RlConfig
from apr_jax.rl.samples import Sampler, Samples
from apr_jax.rl.update import Learner, born

BATCHES = 4
SIZES = (3e-5, 1e-4, 3e-4, 1e-3)


def cosines(vectors: Sequence[np.ndarray]) -> list[float]:
    """The cosine of each pair of vectors."""
    cosine = lambda a, b: float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    return [cosine(a, b) for a, b in itertools.combinations(vectors, 2)]


def moved(params: Params, direction: Params, size: float) -> Params:
    """Parameters after a step of one size for every weight."""
    return jax.tree.map(lambda leaf, slope: leaf + (size * jnp.sign(slope)).astype(leaf.dtype), params, direction)


def measure(config: RlConfig, sizes: Sequence[float], count: int) -> Iterator[str]:
    """The lines that are printed, as they are found; `count` batches are drawn each time."""
    estimator = dataclasses.replace(config.estimator, dynamic=False, kl=0.0)
    config = dataclasses.replace(config, evaluate_every=0, estimator=estimator)
    model, codec = methods.load(config.rollout, load(config.tokenizer))
    learner = Learner(config, model.graph, tuple(codec.id(word) for word in config.control))
    params = born(config, learner.layout, model.params).params
    engine, _ = methods.make_engine(config.drawn(), codec, model, learner.layout.mesh)
    sampler = Sampler(config, engine, engine, codec, config.task.questions(config.seed))

    def drawn(params: Params, first: int) -> list[Samples]:
        engine.update(params)
        steps = range(first, first + count)
        return [each for step in steps if (each := sampler.draw(step, config.prompts * step, lambda: False))]

    def accuracy(params: Params) -> str:
        each = [samples.numbers["accuracy"] for samples in drawn(params, count)]
        return f"{np.mean(each):.1%} ({', '.join(f'{value:.1%}' for value in each)})"

    batches = [kept.batch(config, samples.groups, samples.rewards) for samples in drawn(params, 0)]
    gradients = [learner.gradient(params, batch, learner.score(params, batch))[0] for batch in batches]
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(each))]) for each in gradients]
    of = f"gradients of {config.prompts * config.samples} samples"
    yield f"cosines between {of}: {', '.join(f'{cosine:.3f}' for cosine in cosines(flat))}"
    slope, rng = jax.tree.map(lambda *leaves: sum(leaves), *gradients), np.random.default_rng(config.seed)
    random = jax.tree.map(lambda leaf: jnp.asarray(rng.choice([-1.0, 1.0], leaf.shape)), slope)
    directions = {"along": (slope, -1), "against": (slope, 1), "at random": (random, 1)}
    yield f"no step: {accuracy(params)}"
    for size, (name, (direction, sign)) in itertools.product(sizes, directions.items()):
        yield f"{size:g} {name}: {accuracy(moved(params, direction, sign * size))}"


def main(argv: Sequence[str]) -> None:
    for line in measure(settings.parse(argv, "configs/rl_three.py"), SIZES, BATCHES):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
