"""Models and problems that fork, return and end a lot, in good order and out of it: random ones, then scripted ones."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import oracle
import reference_model
from apr_jax.model.config import ModelConfig
from apr_jax.model.transformer import Model, abstract_params, graph_of
from apr_jax.tokenizer import TextCodec


def biased_model(config: ModelConfig, seed: int, bias: np.ndarray, strength: float = 2.0) -> Model:
    """A model with random weights so large that its logits depend on the whole context, in float64.

    Args:
      config: its shape; not `tied`, and wider than its vocabulary.
      seed: of its weights.
      bias: [V, V]; `bias[token, after]` is added to the logits of `after` where `token` was fed last. It cannot be
        exact: the deeper layers write to the same coordinates.
      strength: deviation of the rest of the logits.
    """
    size = config.vocabulary
    assert not config.tied and config.width > size, "the bias needs coordinates and an output table of its own"
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape) / np.sqrt(config.width) if leaf.ndim > 1 else np.ones(leaf.shape),
        abstract_params(config),
    )
    # Large one-hot coordinates survive the layers, which add numbers of about 1 to all coordinates.
    params["embed"] = np.concatenate([24.0 * np.eye(size), rng.normal(size=(size, config.width - size))], axis=1)
    root_mean_square = 24.0 / np.sqrt(config.width)
    params["head"] = strength * root_mean_square / np.sqrt(config.width) * rng.normal(size=params["head"].shape)
    params["head"][:size] = bias * root_mean_square / 24.0
    return Model(graph_of(config), jax.tree.map(jnp.asarray, params))


def likely(codec: TextCodec, size: int, rows: Mapping[tuple[str, ...], Mapping[str, float]]) -> np.ndarray:
    """A table for `biased_model`.

    Args:
      rows: what follows the tokens of these texts, and the bias of each; all else is unlikely.
    """
    table = np.full((size, size), -8.0)
    for before, after in rows.items():
        for text in before:
            for follows, value in after.items():
                table[codec.encode(text)[-1], codec.encode(follows)[0]] = value
    return table


@dataclasses.dataclass(frozen=True)
class Words:
    """Token ids of the tests' vocabulary of 16. Inside a message other words are likely than outside of one."""

    spawn: int = 2
    wait: int = 3
    result: int = 4
    join: int = 5
    end: int = 6
    go: int = 7
    plain: tuple[int, ...] = (0, 1, 8, 9)
    late: tuple[int, ...] = (10, 11)
    message: tuple[int, ...] = (12, 13, 14, 15)

    def bias(self) -> np.ndarray:
        """A table for `biased_model` under which threads mostly fork, return and end in good order, but not always."""
        table = np.full((16, 16), -8.0)

        def row(tokens: Sequence[int], **likely: float) -> None:
            for name, value in likely.items():
                words = getattr(self, name)
                for word in words if isinstance(words, tuple) else (words,):
                    table[list(tokens), word] = value

        row((*self.plain, self.wait, self.result), plain=0.0, spawn=1.5, join=0.0, end=-1.5, late=-1.0)
        row((*self.message, self.spawn), message=0.0, spawn=0.5, wait=2.5, join=-2.0, end=-2.0)
        row((*self.late, self.go), plain=-1.0, late=0.5, spawn=0.0, join=2.0, end=1.0)
        row((self.join,), late=1.5, spawn=-0.5, join=-1.0, end=-1.0)
        return table


@dataclasses.dataclass(frozen=True)
class Case:
    """Has the fields of `apr_jax.decode.Problem`."""

    id: int
    prompt: np.ndarray
    sample: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 16
    child_max_tokens: int = 0
    arguments: tuple[int, ...] = ()


def random_case(
    rng: np.random.Generator, number: int, greedy: float = 0.3, prompt: int = 6, max_tokens: int = 24
) -> Case:
    """A problem with any mix of sampling parameters that f32 holds exactly; most prompts end outside of a message."""
    words = Words()
    text = rng.integers(0, 16, size=rng.integers(1, prompt + 1))
    if rng.random() < 0.9:
        text[-1] = rng.choice(words.plain)
    budget = int(rng.integers(max_tokens // 4, max_tokens + 1))
    return Case(
        id=number,
        prompt=text.astype(np.int32),
        sample=int(rng.integers(0, 3)),
        temperature=0.0 if rng.random() < greedy else float(rng.choice([0.5, 0.75, 1.0, 1.25])),
        top_k=int(rng.choice([0, 0, 1, 2, 5, 16])),
        top_p=float(rng.choice([1.0, 1.0, 0.5, 0.875, 0.984375])),
        max_tokens=budget,
        child_max_tokens=budget // 2 if number % 3 == 0 else 0,
    )


# ---- problems whose threads follow a script


@dataclasses.dataclass(frozen=True)
class Sequential:
    """This and the next two have the names and fields of protocols of `apr_jax.protocols`."""

    end: int = Words.end


@dataclasses.dataclass(frozen=True)
class Samples:
    count: int
    end: int = Words.end


@dataclasses.dataclass(frozen=True)
class SpawnJoin:
    max_depth: int = 1
    spawn: int = Words.spawn
    wait: int = Words.wait
    result: int = Words.result
    join: int = Words.join
    end: int = Words.end
    go: int = Words.go
    context: str = "isolated"
    returns: str = "message"


def scripted(texts: Mapping[tuple[int, ...], Sequence[int]]) -> Callable:
    """A choice of tokens that follows a script per thread, END after it."""

    def choose(thread, logits, uniform, problem):
        text = texts.get(thread.path, ())
        return (text[thread.generated] if thread.generated < len(text) else Words.end), -1.0, -0.5

    return choose


def played(
    texts: Mapping[tuple[int, ...], Sequence[int]],
    protocol,
    prompt: Sequence[int],
    max_tokens: int = 60,
    forward: reference_model.Forward = lambda fed: np.zeros(16),
):
    """The transcript of a problem whose threads follow scripts."""
    case = Case(id=0, prompt=np.array(prompt), max_tokens=max_tokens)
    return oracle.run(forward, case, protocol, 0, choose=scripted(texts))


def rows(transcript, thread: int) -> list[tuple[int, ...]]:
    """(token, source, index, position, clock, depth if sampled) of every entry of a thread."""
    log, out = transcript.log, []
    for i in np.flatnonzero(log.thread == thread):
        depth = int(log.depth[i]) if log.sampled[i] else None
        out.append(
            (int(log.token[i]), int(log.source[i]), int(log.index[i]), int(log.position[i]), int(log.clock[i]), depth)
        )
    return out


def span(source: int, tokens: Sequence[int], index: int, position: int, clock: int, depth: int | None = None):
    """The `rows` of tokens that were fed one after the other."""
    counts = [None if depth is None else depth + i for i in range(len(tokens))]
    return [(t, source, index + i, position + i, clock + i, counts[i]) for i, t in enumerate(tokens)]
