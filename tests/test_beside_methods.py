"""Methods beside and below one parent, as their configuration has them, on real vocabularies."""

import pytest

import vocabularies
from apr_jax.decode.program import fit
from configs import beside

METHODS = beside.config().methods
CODECS = {
    "byte level": vocabularies.byte_level,
    "byte fallback": vocabularies.byte_fallback,
    "sentence": vocabularies.sentence,
}
BEGINNINGS = ("sprint", "pasta")  # some words are beginnings of tags, which SentencePiece models do not take


@pytest.mark.parametrize(
    ("name", "kind"), [(n, kind) for n in METHODS for kind in CODECS if n not in BEGINNINGS or kind != "sentence"]
)
def test_words_become_ids_and_what_is_said_has_tokens(name, kind):
    codec, method, sizes = CODECS[kind](), METHODS[name].rollout.method, METHODS[name].rollout.sizes
    spoken = method.spoken(codec)
    assert len({spoken.id(word) for word in method.words}) == len(method.words)
    protocol = method.protocol(spoken)
    assert protocol == method.protocol(spoken) and hash(protocol) == hash(method.protocol(spoken))
    assert set(protocol.templates) & {spoken.id(word) for word in method.words}
    fit(protocol, sizes)


@pytest.mark.parametrize("name", BEGINNINGS)
def test_words_may_be_text(name):
    codec, method = vocabularies.byte_level(), METHODS[name].rollout.method
    assert set(method.protocol(codec).templates) < set(range(codec.size))


@pytest.mark.parametrize("name", METHODS)
def test_prompts_show_their_words(name):
    rollout = METHODS[name].rollout
    shown = "".join(shot.answer for shot in rollout.ask.shots) + rollout.ask.system
    inserted = {"<Plan_", "<go>"}
    assert sum(word in shown for word in {*rollout.method.words} - inserted) >= 4
