"""Methods of outlined threads as configurations name them, on real vocabularies: what they look for and say, what they refuse."""

import pytest

import vocabularies
from apr_jax.methods import Multiverse, ThreadWeaver


@pytest.mark.parametrize("codec", [vocabularies.byte_level(), vocabularies.byte_fallback(), vocabularies.sentence()])
@pytest.mark.parametrize("method", [ThreadWeaver(), ThreadWeaver(conclusion=True), Multiverse()])
def test_tags_are_looked_for_as_text_or_as_ids(codec, method):
    for spoken in (codec, codec.with_control_words(method.words)):
        protocol = method.protocol(spoken)
        words = {phrase.name: phrase.text for phrase in protocol.recogniser.phrases}
        assert list(words) == ["outlines", "fork", "outline", "close"] and set(words.values()) < set(method.words)
        for name, texts in method.says(protocol.numbers.texts).items():
            place = protocol.phrases.names.index(name)
            spans = zip(protocol.phrases.starts[place], protocol.phrases.lengths[place], strict=True)
            said = [protocol.templates[start : start + length] for start, length in spans]
            assert said == [tuple(spoken.encode(text, True)) for text in ([texts] if isinstance(texts, str) else texts)]
        whole = [spoken.id(word) for word in method.words] if spoken is not codec else []
        assert set(protocol.templates) & set(whole) or spoken is codec
        assert protocol == method.protocol(spoken) and hash(protocol) == hash(method.protocol(spoken))


def test_what_makes_no_sense_is_refused():
    for made, message in (
        (lambda: ThreadWeaver(most=0), "thread_weaver.most is 0"),
        (lambda: ThreadWeaver(response=-1), "thread_weaver.response is -1"),
        (lambda: Multiverse(max_depth=0), "multiverse.max_depth is 0"),
        (lambda: Multiverse(nested=-1), "multiverse.nested is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            made()
