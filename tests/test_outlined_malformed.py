"""Every breach of the format of outlined threads ends by a name. The threads follow scripts in place of what they sample."""

import dataclasses
import functools

import numpy as np
import pytest

import outlining
import scripting
import test_outlined
from apr_jax.decode import Engine, Problem, Sizes, Source
from apr_jax.methods import Multiverse, ThreadWeaver, npr
from outlining import MULTIVERSE, NPR, THREADWEAVER

SIZES = Sizes(problems=3, lanes=4, rows=8, feed_tiles=2, feed_chunk=8, threads=9, slots=512, page_size=4, log=512, log_page_size=4,
              queue=64, prompt=4, outbox=8, attention_block=128)  # fmt: skip


def scripted(method, codec, texts):
    """The protocol in which problems follow texts: of the root, then by number."""
    plain = method.protocol(codec)
    return scripting.scripted(plain, codec, texts, ("", *plain.numbers.texts))


def played(protocol, count, **options):
    """The transcripts of a scripted protocol's problems, by problem and sample: each is played twice."""
    problems = [Problem(i, np.array([0, 1]), max_tokens=30, child_max_tokens=16, **options) for i in range(count)]
    problems += [dataclasses.replace(problem, sample=1) for problem in problems]  # slots of those before are used again
    found = Engine(test_outlined.model("threadweaver"), protocol, SIZES, kernel=False).decode(problems)
    return {(each.problem, each.sample): each for each in found}


@functools.cache
def decoded(system):
    method, words, cases = SYSTEMS[system]
    texts = [texts for texts, *_ in cases.values()]
    return played(scripted(method, outlining.tagged(words), texts), len(cases))


# The texts of the root and of the numbers, how the root ends, how its threads end; what is counted as errors stands in ERRORS.
A, F, N, T = "<Outlines>", "</Outlines>", "<Outline>", "</Thread>"
E = "<|end|>"
THREADWEAVER_CASES = {
    "good": ({"": f"a{A}{N}1: a{N}2: b{F}b{E}", "1": f"q{T}", "2": f"qq{T}"}, "END", ["END", "END"]),
    "no list": ({"": f"a{N}1:{F}"}, "MALFORMED", []),
    "no outlines": ({"": f"{A}{F}"}, "MALFORMED", []),
    "no numbers": ({"": f"{A}{N}a: b{N}:{F}"}, "MALFORMED", []),
    "a number twice": ({"": f"{A}{N}2: a{N}2: b{F}{E}", "2": T}, "END", ["END"]),
    "one number missing": ({"": f"{A}{N}1: a{N}a{N}3: b{F}{E}", "1": T, "3": T}, "END", ["END", "END"]),
    "a number beyond": ({"": f"{A}{N}1: a{N}12: b{F}"}, "MALFORMED", []),
    "a hundred outlines": ({"": f"{A}{N}1:{N}2:{N}3:{N}1.1:{N}1.2:{N}2.1:{F}"}, "MALFORMED", []),
    "the list begins anew": ({"": f"{A}{N}1:{N}12:{A}{N}2:{F}{E}", "2": T}, "END", ["END"]),
    "an end inside the list": ({"": f"{A}{N}1:{E}"}, "MALFORMED", []),
    "a second fork without a list": ({"": f"{A}{N}1:{F}b{N}2:{F}", "1": T}, "MALFORMED", ["END"]),
    "too many blocks": ({"": 3 * f"{A}{N}1:{F}", "1": T}, "MALFORMED", ["END", "END"]),
    "an end inside a thread": ({"": f"{A}{N}1:{N}2:{F}b", "1": f"q{E}", "2": T}, "MALFORMED", ["MALFORMED", "END"]),
    "an end at once": ({"": f"{A}{N}1:{N}2:{F}b", "1": T, "2": E}, "MALFORMED", ["END", "MALFORMED"]),
    "a thread that never ends": ({"": f"{A}{N}1:{N}2:{F}b", "1": "q", "2": T}, "LENGTH", ["LENGTH", "END"]),
    "both break off": ({"": f"{A}{N}1:{N}2:{F}b", "1": "q", "2": E}, "LENGTH", ["LENGTH", "MALFORMED"]),
    "tags inside a thread": ({"": f"{A}{N}1:{F}{E}", "1": f"{A}{N}2:{F}a<Thread>{T}"}, "END", ["END"]),
    "tags of threads outside": ({"": f"{T}<Thread>a{T}{E}"}, "END", []),
    "tags inside an outline": ({"": f"{A}{N}{N}1{T}:{N}2:{F}{E}", "2": T}, "END", ["END"]),
    "the budget, plain": ({"": "a"}, "LENGTH", []),
    "the budget, in the list": ({"": f"{A}{10 * f'{N}1:'}"}, "LENGTH", []),
    "the budget, with the fork": ({"": f"{'a' * 25}{A}{N}1:{F}", "1": T}, "LENGTH", ["END"]),
    "the budget, after the join": ({"": f"{'a' * 24}{A}{N}1:{F}b", "1": T}, "LENGTH", ["END"]),
}  # fmt: skip
G, H, P = "<Goal>", "</Goal>", "</Path>"
MULTIVERSE_CASES = {
    "good": ({"": f"a{G}{N}1: a{N}2: b{H}b{E}", "1": f"q{P}", "2": f"qq{P}"}, "END", ["END", "END"]),
    "nested": (
        {"": f"{G}{N}1:{N}2:{H}{E}", "1": f"{G}{N}1.1:{N}1.2:{H}q{P}", "2": P, "1.1": f"q{P}", "1.2": P}, "END", 4 * ["END"],
    ),
    "too deep": (
        {"": f"{G}{N}1:{H}{E}", "1": f"{G}{N}1.1:{H}q{P}", "1.1": f"{G}{N}1.2:{H}"}, "END", ["END", "MALFORMED"],
    ),
    "no list": ({"": f"a{N}1:{H}"}, "MALFORMED", []),
    "no outlines": ({"": f"{G}{H}"}, "MALFORMED", []),
    "a path's end outside": ({"": f"a{P}"}, "MALFORMED", []),
    "a path's end inside the list of a path": ({"": f"{G}{N}1:{H}{E}", "1": f"{G}{N}2:{P}"}, "END", ["MALFORMED"]),
    "no list in a path": ({"": f"{G}{N}1:{H}{E}", "1": f"q{H}"}, "END", ["MALFORMED"]),
    "an end inside a path": ({"": f"{G}{N}1:{N}2:{H}b{E}", "1": f"q{E}", "2": P}, "END", ["MALFORMED", "END"]),
    "a path that never ends": ({"": f"{G}{N}1:{N}2:{H}b{E}", "1": "q", "2": P}, "END", ["LENGTH", "END"]),
    "a path's budget, in its list": ({"": f"{G}{N}1:{H}b{E}", "1": f"{G}{6 * f'{N}2:'}"}, "END", ["LENGTH"]),
    "a path's budget, at its join": (
        {"": f"{G}{N}1:{H}b{E}", "1": f"{'q' * 11}{G}{N}2:{H}", "2": P}, "END", ["LENGTH", "END"],
    ),
    "too many blocks": ({"": 3 * f"{G}{N}1:{H}", "1": P}, "MALFORMED", ["END", "END"]),
    "the budget, with the fork": ({"": f"{'a' * 25}{G}{N}1:{H}", "1": P}, "LENGTH", ["END"]),
    "forks of more than there is room for": (
        {"": f"{G}{N}1:{N}2:{N}3:{H}", **{n: f"{G}{N}1.1:{N}1.2:{H}" for n in "123"}}, "THREADS_FULL", None,
    ),
}  # fmt: skip
S = "</step>"
L, R, K = "<guideline>", "</guideline>", "<plan>"
NPR_CASES = {
    "good": ({"": f"a{L}{K}1: a</plan>{K}2: b{R}b{E}", "1": f"q{S}", "2": f"qq{S}"}, "END", ["END", "END"]),
    "too many plans": ({"": f"{L}{K}1:{K}2:{K}3:{K}1.1:{R}"}, "MALFORMED", []),
    "no plans": ({"": f"{L}a{R}"}, "MALFORMED", []),
    "no guideline": ({"": f"a{K}1:{R}"}, "MALFORMED", []),
    "a step's end outside": ({"": f"a{S}"}, "MALFORMED", []),
    "a fork in a step": ({"": f"{L}{K}1:{R}b{E}", "1": f"{L}{K}2:{R}q{S}"}, "END", ["END"]),
    "a fork in a step, of no plans": ({"": f"{L}{K}1:{R}b{E}", "1": f"{L}{R}q{S}"}, "END", ["MALFORMED"]),
    "too little is left": ({"": f"{L}{K}1:{R}{L}{K}2:{R}b{E}", "1": f"{'q' * 12}{S}"}, "END", ["END"]),
    "a budget divided": (
        {"": f"{L}{K}1:{K}2:{K}3:{R}b{E}", "1": "q", "2": f"q{S}", "3": "q"}, "LENGTH", ["LENGTH", "END", "LENGTH"],
    ),
    "the response is used up": ({"": f"{L}{K}1:{R}{'b' * 30}", "1": f"{'q' * 14}{S}"}, "LENGTH", ["END"]),
    "an end inside a step": ({"": f"{L}{K}1:{R}b{E}", "1": f"q{E}"}, "END", ["MALFORMED"]),
}  # fmt: skip
CHOICES = dict(end=E, most=3, nested=2, blocks=2)
SYSTEMS = {
    "threadweaver": (ThreadWeaver(**CHOICES), THREADWEAVER, THREADWEAVER_CASES),
    "multiverse": (Multiverse(**CHOICES), MULTIVERSE, MULTIVERSE_CASES),
    "npr": (npr.NPR(**CHOICES, largest=3, max_depth=1, response=45, reserve=20, penalty=1.0), NPR, NPR_CASES),
}
ERRORS = {
    "threadweaver": {
        "no list": dict(misplaced=1, no_outlines=1),
        "no outlines": dict(no_outlines=1),
        "no numbers": dict(no_number=2, no_outlines=1),
        "a number twice": dict(number_twice=1),
        "one number missing": dict(no_number=1),
        "a number beyond": dict(number_unknown=1),
        "a hundred outlines": dict(too_many=3),
        "the list begins anew": dict(number_unknown=1, misplaced=1),
        "an end inside the list": dict(unclosed=1),
        "a second fork without a list": dict(misplaced=1, no_outlines=1),
        "too many blocks": dict(too_many=1),
        "an end inside a thread": dict(broken_off=1),
        "an end at once": dict(broken_off=1),
        "a thread that never ends": dict(broken_off=1),
        "both break off": dict(broken_off=2),
        "tags inside a thread": dict(too_deep=1),
        "tags of threads outside": dict(misplaced=2),
        "tags inside an outline": dict(no_number=2, misplaced=1),
        "the budget, in the list": dict(number_twice=8, unclosed=1),
    },
    "multiverse": {
        "too deep": dict(too_deep=1),
        "no list": dict(misplaced=1, no_outlines=1),
        "no outlines": dict(no_outlines=1),
        "a path's end outside": dict(misplaced=1),
        "a path's end inside the list of a path": dict(unclosed=1),
        "no list in a path": dict(no_outlines=1),
        "an end inside a path": dict(broken_off=1),
        "a path that never ends": dict(broken_off=1),
        "a path's budget, in its list": dict(number_twice=4, unclosed=1, broken_off=1),
        "a path's budget, at its join": dict(broken_off=1),
        "too many blocks": dict(too_many=1),
    },
    "npr": {
        "too many plans": dict(too_many=1),
        "no plans": dict(no_outlines=1),
        "no guideline": dict(misplaced=1, no_outlines=1),
        "a step's end outside": dict(misplaced=1),
        "a fork in a step": dict(refused=1),
        "a fork in a step, of no plans": dict(no_outlines=1),
        "too little is left": dict(refused=1),
        "a budget divided": dict(broken_off=2),
        "an end inside a step": dict(broken_off=1),
    },
}


@pytest.mark.parametrize(("system", "case"), [(system, case) for system in SYSTEMS for case in SYSTEMS[system][2]])
def test_every_breach_ends_by_a_name(system, case):
    cases = SYSTEMS[system][2]
    _, stop, children = cases[case]
    first, again = (decoded(system)[list(cases).index(case), sample] for sample in (0, 1))
    text = [f"{thread.path} {thread.stop.name} {first.tokens(i)}" for i, thread in enumerate(first.threads)]
    assert first.stop.name == stop, text
    if children is not None:
        assert [thread.stop.name for thread in first.threads if thread.path] == children, text
        assert first.threads == again.threads and first.log.token.tolist() == again.log.token.tolist()
        assert SYSTEMS[system][0].format_errors(first) == ERRORS[system].get(case, {})


def joined(system, case):
    """The text of the root's log, and those of its threads."""
    method, words, cases = SYSTEMS[system]
    found, codec = decoded(system)[list(cases).index(case), 0], outlining.tagged(words)
    told = [b"".join(codec.token_bytes(token) for token in found.tokens(i)).decode() for i in range(len(found.threads))]
    return found, told


def test_what_is_said_to_those_that_broke_off():
    _, told = joined("threadweaver", "both break off")
    assert told[0].endswith(f"{F}\n{T}<Thread>\n2:\n{T}\n</Parallel>")  # the first is seen where it stands
    found, told = joined("threadweaver", "an end inside a thread")
    assert told[0].endswith(f"{F}\n{T}<Thread>\n2:{T}\n</Parallel>") and told[1] == f"\n<Thread>\n1:q{E}"
    assert found.log.clock[found.log.thread == 1].tolist()[-1] < 0, "the end is not fed"
    _, told = joined("threadweaver", "good")
    assert told[0] == f"aba{A}{N}1: a{N}2: b{F}<Thread>\n2:qq{T}\nb{E}"
    found, told = joined("multiverse", "a path that never ends")
    assert told[0].endswith(f"{H}<Conclusion>\nb{E}") and told[1] == "<Path>\n1:q" + 15 * "a" + f"\n{P}"
    mine = found.log.thread == 1
    assert (found.log.clock[mine] < 0).tolist() == [False] * (4 + 15) + [True, False, False]
    assert found.log.source[mine].tolist()[-2:] == [Source.FED] * 2


def test_a_step_has_its_part_of_what_is_left_of_the_response():
    found, _ = joined("npr", "a budget divided")
    assert [len(found.generated(i)) for i in (1, 2, 3)] == [10, 2, 10]  # 45 - 11 - a header of 5 are 29 for three
    found, _ = joined("npr", "the response is used up")
    assert len(found.generated(0)) == 5 + 18  # 45 - 5 - 5 - 15 - what is said at the join
    _, told = joined("npr", "a fork in a step")
    assert told[1] == f"\n<step>\n1:{L}{K}2:{R}q{S}", "a fork that is refused is text"
