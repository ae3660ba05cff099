"""Control tags as tokens of their own: rows for new ids, initialised from the tags' names.

Axes: V vocabulary, D width.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from apr_jax.model.config import padded_vocabulary
from apr_jax.model.transformer import Model, graph_of
from apr_jax.tokenizer import TextCodec


def _pairs(*words: str) -> tuple[str, ...]:
    return tuple(tag for word in words for tag in (f"<{word}>", f"</{word}>"))


CONTROL_TAGS: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        # In the order of the releases: Multiverse's engine expects 151670 for </Goal> and 151674 for </Path> of Qwen2.5.
        "threadweaver": _pairs("Think", "Parallel", "Outlines", "Outline", "Thread", "Conclusion"),
        "multiverse": _pairs("Think", "Parallel", "Goal", "Outline", "Path", "Conclusion"),
    }
)


def add_control_tokens(
    model: Model, tags: Sequence[str], tokenizer: TextCodec, multiple: int = 64, gain: float = 1.0
) -> tuple[Model, dict[str, int]]:
    """A model with a row for each tag, in embedding and output table: the mean of the rows of the words in its brackets.

    The ids follow the last id of the tokenizer, in the order of `tags`, as when the same tags are added to the tokenizer.
    `</Thread>` is initialised from "/Thread": the mean includes the slash, as in ThreadWeaver and Multiverse.

    Args:
      model: a model whose vocabulary holds that of the tokenizer.
      tags: the tags, such as `CONTROL_TAGS["threadweaver"]`.
      tokenizer: the tokenizer before the tags are added to it.
      multiple: the vocabulary is padded to a multiple of this number, and never made smaller.
      gain: factor of the means. The logit of a mean is never above the largest logit of its words: a model without further
        training chooses a tag over the words of its name only with a gain a little above 1.

    Returns:
      The model, whose configuration has the new vocabulary, and the id of each tag.

    Raises:
      ValueError: a tag is listed twice or has no words, the gain is not above 0, or the tokenizer's vocabulary is larger
        than the model's.
    """
    if not gain > 0:
        raise ValueError(f"gain is {gain}; it must be above 0 (1 leaves the means as they are)")
    if len(set(tags)) != len(tags):
        raise ValueError(f"tags are {list(tags)}; each must be listed once")
    if tokenizer.size > model.config.vocabulary:
        raise ValueError(
            f"the tokenizer has {tokenizer.size} ids, the model {model.config.vocabulary}; they do not belong together"
        )
    words = {tag: list(tokenizer.encode(tag.strip("<>"))) for tag in tags}
    empty = [tag for tag, ids in words.items() if not ids]
    if empty:
        raise ValueError(f"tags {empty} have no words between their brackets to be initialised from")
    ids = {tag: tokenizer.size + i for i, tag in enumerate(tags)}
    return extend_vocabulary(model, {ids[tag]: words[tag] for tag in tags}, multiple, gain), ids


def with_control_words(
    model: Model, tokenizer: TextCodec, words: Sequence[str], multiple: int = 64, gain: float = 1.0
) -> tuple[Model, TextCodec]:
    """Model and tokenizer in which each of `words` is one id, the same in both.

    A word that is one id already keeps its id and row; the others are added by `add_control_tokens`.

    Args:
      model: a model whose vocabulary holds that of the tokenizer.
      tokenizer: the tokenizer of the model.
      words: control words, such as `CONTROL_TAGS["threadweaver"]`.
      multiple, gain: see `add_control_tokens`.

    Raises:
      ValueError: see `add_control_tokens`.
    """
    extended = tokenizer.with_control_words(words)
    new = [word for word in dict.fromkeys(words) if extended.id(word) >= tokenizer.size]
    model, _ = add_control_tokens(model, new, tokenizer, multiple, gain)
    return model, extended


def extend_vocabulary(model: Model, rows: Mapping[int, Sequence[int]], multiple: int = 64, gain: float = 1.0) -> Model:
    """A model in which some rows of the tables are means of others.

    Args:
      model: the model.
      rows: for each id, the ids whose mean its row becomes; the id may be new or unused in the model.
      multiple: the vocabulary is padded to a multiple of this number. Padding rows are the mean of all rows, whose logits are
        average; rows of zeros could win.
      gain: factor of the means of `rows`.
    """
    old = model.config.vocabulary
    size = padded_vocabulary(max(old, *(i + 1 for i in rows)), multiple) if rows else old
    params = dict(model.params)
    params["embed"] = _extended(model.params["embed"], rows, size, gain)
    if not model.config.tied:
        # The table may be cut over the vocabulary axis on a mesh: transpose, extend, transpose back.
        params["head"] = _extended(model.params["head"].T, rows, size, gain).T
    params = {
        name: jax.device_put(value, model.params[name].sharding) if name in ("embed", "head") else value
        for name, value in params.items()
    }
    return Model(graph_of(dataclasses.replace(model.config, vocabulary=size)), params)


def _extended(
    table: Float[Array, "V D"], rows: Mapping[int, Sequence[int]], size: int, gain: float
) -> Float[Array, "W D"]:
    """The table extended to W rows, with means of old rows (in f32) in the rows of `rows`."""
    mean = jnp.mean(table, axis=0, keepdims=True, dtype=jnp.float32).astype(table.dtype)
    new = jnp.concatenate([table, jnp.broadcast_to(mean, (size - len(table), table.shape[1]))])
    means = [gain * jnp.mean(table[jnp.asarray(words)], axis=0, dtype=jnp.float32) for words in rows.values()]
    return new.at[jnp.asarray(list(rows))].set(jnp.stack(means).astype(table.dtype)) if rows else new
