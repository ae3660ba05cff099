"""Configurations of released checkpoints, with random weights and tokenizers of the same construction: tags after the last id."""

import dataclasses

import jax
import numpy as np
import pytest

import vocabularies
from apr_jax.decode import Sizes, memory
from apr_jax.evaluate import methods
from apr_jax.methods import Sampling
from apr_jax.model.config import ModelConfig
from apr_jax.model.transformer import init
from apr_jax.pretrained import save_pretrained
from apr_jax.pretrained.tokenizer import load
from apr_jax.pretrained.vocabulary import CONTROL_TAGS
from apr_jax.tasks.language.task import Question
from configs.pretrained import multiverse, npr, parallel_r1, released, threadweaver

MODULES = {"threadweaver": threadweaver, "multiverse": multiverse, "npr": npr, "parallel_r1": parallel_r1}
QUESTION = Question(0, "What is 6 times 7?", "42")


def tokenizer(method):
    """Byte-level, the tags after its last id, as in the published ones; and the first tag's id."""
    plain = vocabularies.byte_level()
    return plain.with_control_words(method.words), plain.size


def test_tags_have_the_published_ids():
    at = {word: 151665 + i for i, word in enumerate(MODULES["multiverse"].METHOD.words)}
    assert (at["</Goal>"], at["</Path>"]) == (151670, 151674) and MODULES["multiverse"].METHOD.first_id == 151665
    for name in ("threadweaver", "multiverse"):
        assert MODULES[name].METHOD.words == CONTROL_TAGS[name]


@pytest.mark.parametrize("name", MODULES)
def test_tags_are_read_off_the_tokenizer_and_checked(name):
    method = MODULES[name].METHOD
    codec, first = tokenizer(method)
    made = dataclasses.replace(method, first_id=first).protocol(codec)
    assert set(map(codec.id, method.words)) & set(made.templates)
    with pytest.raises(ValueError, match=r"trained is True; <\w+> is \d+ tokens of this tokenizer, it must be one"):
        method.protocol(vocabularies.byte_level())
    with pytest.raises(ValueError, match=f"<{method.tag_names[0]}> must have the id 7, this tokenizer has {first}"):
        dataclasses.replace(method, first_id=7).protocol(codec)
    swapped = vocabularies.byte_level().with_control_words((*method.words[:-2], method.words[-1], method.words[-2]))
    with pytest.raises(ValueError, match=f"{method.words[-2]} must have the id"):
        dataclasses.replace(method, first_id=first).protocol(swapped)
    with pytest.raises(ValueError, match="add is True; a checkpoint that is trained has the tags"):
        dataclasses.replace(method, add=True)


@pytest.mark.parametrize("device", released.MEMORY)
@pytest.mark.parametrize("name", MODULES)
def test_proposed_sizes_fit_their_devices(name, device):
    """And what they have room for is not much more than they use: with twice as many problems they would not."""
    proposal, most = MODULES[name].PROPOSALS[device], 0.92 * released.MEMORY[device]
    mesh = jax.sharding.AbstractMesh((1, proposal.chips), ("data", "model"))
    need = lambda sizes: memory.estimate(MODULES[name].MODEL, sizes, mesh).total
    sizes = proposal.sizes
    double = dataclasses.replace(sizes, problems=2 * sizes.problems, rows=2 * sizes.rows)
    assert need(sizes) <= most < need(double)


@pytest.mark.parametrize("name", ["npr", "parallel_r1"])  # the others differ in words
def test_a_folder_is_decoded(name, tmp_path):
    """Loaded as one's own folder would be; the model says what it likes, so no more than the ends is looked at."""
    module = MODULES[name]
    codec, first = tokenizer(module.METHOD)
    shape = ModelConfig(
        vocabulary=codec.size, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=16, qk_norm=True
    )
    save_pretrained(tmp_path, init(shape, jax.random.key(0)))
    codec.save_folder(tmp_path)
    config = module.config()
    given = dataclasses.replace(
        config.methods["v6e"].rollout,
        checkpoint=str(tmp_path),
        method=dataclasses.replace(module.METHOD, first_id=first if module.METHOD.first_id else 0),
        sampling=Sampling(temperature=1.0, max_tokens=12),
        sizes=Sizes(
            problems=2,
            lanes=2,
            rows=4,
            threads=12,
            slots=512,
            log=512,
            attention_block=128,
            queue=8,
            prompt=256,
            outbox=4,
        ),
    )
    questions = [dataclasses.replace(QUESTION, number=i) for i in range(2)]
    asked = methods.requests(config.task, questions, given, load(tmp_path))
    engine, spoken = methods.make_engine(given, load(tmp_path))
    for found in engine.decode(asked, seed=0):
        assert given.method.said(found, 0, spoken).size and set(given.method.format_errors(found).values()) <= set(
            range(99)
        )
        assert np.all(found.log.token < codec.size)
