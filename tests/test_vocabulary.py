"""Control tags as single ids: rows, padding, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apr_jax import sharding, tokenizer
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.pretrained import CONTROL_TAGS, add_control_tokens

CONFIG = ModelConfig(vocabulary=60, width=8, layers=1, heads=2, kv_heads=2, head_dim=4, ffn=8)


def random_model(**changes):
    config, rng = dataclasses.replace(CONFIG, **changes), np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype)
    return transformer.Model(transformer.graph_of(config), jax.tree.map(draw, transformer.abstract_params(config)))


@pytest.fixture(scope="module")
def words():
    """A vocabulary of characters: the words of a tag are its letters."""
    return tokenizer.train(["/abcdefghijklmnopqrstuvwxyzTPOC"], control_words=())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("format", CONTROL_TAGS)
def test_rows_are_means_of_the_words(words, tied, format):
    old = random_model(tied=tied, vocabulary=words.size + 2)
    new, ids = add_control_tokens(old, CONTROL_TAGS[format], words)
    assert list(ids.values()) == list(range(words.size, words.size + 12)) and new.config.vocabulary == 64
    tables = [(old.params["embed"], new.params["embed"])]
    tables += [] if tied else [(old.params["head"].T, new.params["head"].T)]
    for before, after in tables:
        before, after = np.asarray(before), np.asarray(after)
        np.testing.assert_array_equal(after[: words.size], before[: words.size])
        for tag, letters in (("<Parallel>", "Parallel"), ("</Parallel>", "/Parallel")):
            np.testing.assert_allclose(after[ids[tag]], np.mean(before[words.encode(letters)], axis=0), atol=1e-7)
        padding = after[words.size + 12 :]
        np.testing.assert_allclose(padding, np.broadcast_to(before.mean(axis=0), padding.shape), atol=1e-7)
    assert new.params["layers"] is old.params["layers"]


def test_published_ids_of_multiverse():
    """Qwen2.5's tokenizer has 151,665 ids; the engine of Multiverse knows </Goal> as 151670 and </Path> as 151674."""
    tags = CONTROL_TAGS["multiverse"]
    assert (151665 + tags.index("</Goal>"), 151665 + tags.index("</Path>")) == (151670, 151674)


def test_spare_rows_are_used_and_meshes_kept(words):
    mesh = sharding.make_mesh(model=2)
    old = random_model(vocabulary=128, tied=False)
    params = sharding.shard_tree(old.params, transformer.logical_axes(old.config), mesh)
    new, ids = add_control_tokens(transformer.Model(old.graph, params), ("<a>",), words)
    assert new.config == old.config and ids == {"<a>": words.size}
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, new.params, params))
    changed = np.flatnonzero(np.any(np.asarray(new.params["embed"] != old.params["embed"]), axis=1))
    assert changed.tolist() == [words.size]


def test_what_does_not_fit_is_refused(words):
    model = random_model()
    with pytest.raises(ValueError, match="each must be listed once"):
        add_control_tokens(model, ("<a>", "<a>"), words)
    with pytest.raises(ValueError, match=r"tags \['<>'\] have no words"):
        add_control_tokens(model, ("<>",), words)
    small = random_model(vocabulary=8)
    with pytest.raises(ValueError, match="the model 8; they do not belong together"):
        add_control_tokens(small, ("<a>",), words)
