"""What threads may do against the format of blocks, by kind: protocols count it in the threads' own states, methods report it."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.record import Transcript

KINDS = (
    "unclosed",  # a list of outlines, or a conclusion
    "no_outlines",  # a fork without any
    "no_number",  # an outline
    "number_twice",
    "number_unknown",
    "too_many",  # outlines of one fork, or forks
    "too_deep",  # a fork
    "misplaced",  # a word where it means nothing
    "broken_off",  # a thread: by its budget, or by the end of the text
    "refused",  # a fork, and the thread went on
)


def one_each(**happened: Bool[Array, "*M"]) -> Int[Array, "*M kinds"]:
    """Counts of the kinds: one for each that happened."""
    none = jnp.zeros_like(next(iter(happened.values())))
    return jnp.stack([happened.get(kind, none) for kind in KINDS], axis=-1).astype(jnp.int32)


def of(transcript: Transcript) -> Mapping[str, int]:
    """The counts over all threads, without the kinds that did not happen."""
    counts = transcript.own["errors"].sum(axis=0)
    return {kind: int(count) for kind, count in zip(KINDS, counts, strict=True) if count}
