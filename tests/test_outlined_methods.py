"""Methods of tagged threads as configurations name them, on real vocabularies: what they look for and say, what they refuse."""

import pytest

import vocabularies
from apr_jax.methods import NPR, Multiverse, ParallelR1, Parason, ThreadWeaver

OUTLINED = ["outlines", "fork", "outline", "close"]
WORDS = {
    ThreadWeaver(): OUTLINED,
    ThreadWeaver(conclusion=True): OUTLINED,
    Multiverse(): OUTLINED,
    NPR(): OUTLINED,
    Parason(): [*OUTLINED, "subtask", "trial", "answer"],
    Parason(answer=""): [*OUTLINED, "subtask", "trial"],
}
PATHS = {ParallelR1(): ["fork", "close", "resume"], ParallelR1(join="stitch", paths=3): ["fork", "close", "resume"]}


def said(spoken, texts):
    return [tuple(spoken.encode(text, True)) for text in ([texts] if isinstance(texts, str) else texts)]


@pytest.mark.parametrize("codec", [vocabularies.byte_level(), vocabularies.byte_fallback(), vocabularies.sentence()])
@pytest.mark.parametrize("method", [*WORDS, *PATHS])
def test_tags_are_looked_for_as_text_or_as_ids(codec, method):
    for spoken in (codec, codec.with_control_words(method.words)):
        if spoken is codec and method in PATHS:  # an end of the text is rewritten to a tag
            with pytest.raises(ValueError, match="it must be one token"):
                method.protocol(codec)
            continue
        protocol = method.protocol(spoken)
        words = {phrase.name: phrase.text for phrase in protocol.recogniser.phrases}
        assert list(words) == {**WORDS, **PATHS}[method]
        assert {text for name, text in words.items() if name != "answer"} < set(method.words)
        for name, texts in method.says(protocol.numbers.texts).items():
            place = protocol.phrases.names.index(name)
            spans = zip(protocol.phrases.starts[place], protocol.phrases.lengths[place], strict=True)
            assert [protocol.templates[start : start + length] for start, length in spans] == said(spoken, texts)
        whole = [spoken.id(word) for word in method.words] if spoken is not codec else []
        assert set(protocol.templates) & set(whole) or spoken is codec
        assert protocol == method.protocol(spoken) and hash(protocol) == hash(method.protocol(spoken))


def test_what_makes_no_sense_is_refused():
    for made, message in (
        (lambda: ThreadWeaver(most=0), "thread_weaver.most is 0"),
        (lambda: ThreadWeaver(response=-1), "thread_weaver.response is -1"),
        (lambda: Multiverse(max_depth=0), "multiverse.max_depth is 0"),
        (lambda: Multiverse(nested=-1), "multiverse.nested is -1"),
        (lambda: NPR(penalty=0.0), "npr.penalty is 0.0; it must be above 0"),
        (
            lambda: NPR(response=1000),
            "npr.reserve is 1024; every fork would be refused, it must be less than response = 1000",
        ),
        (lambda: NPR(max_depth=0), "npr.max_depth is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            made()
