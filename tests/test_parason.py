"""Parason's client written plainly: ThreadWeaver's, with outlines of two kinds, and trials of which not all may be needed."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

import forking
import outlining
import requesting
import test_outlined_malformed as malformed
import test_threadweaver_client as threadweaver
from apr_jax.decode import Engine, Stop
from apr_jax.decode.recogniser import Phrase
from apr_jax.methods import Parason
from outlining import PARASON
from phrase_matcher import Plain
from test_early_vote import certain
from test_outlined import CONFIG, ONE_ROW, SEED, SIZES, case

CODEC = outlining.tagged(PARASON)
RULE = outlining.Rule(CODEC, PARASON, stitches=False)
PATTERN = re.compile(r"<(Outline|Subtask|Trial)>\s*([0-9]+(?:\.[0-9]+)*)\s*:")
MANY = dataclasses.replace(SIZES, lanes=8, rows=20, feed_chunk=2, feed_threshold=0)
CHOICES = dict(end=PARASON.end, most=3, nested=2, answer=PARASON.answer, answer_end="\n")


@functools.cache
def model():
    """Lists of trials and subtasks, threads that mostly name an answer; out of order too, as the weights are random."""
    table = np.full((CONFIG.vocabulary, CONFIG.vocabulary), -8.0)
    of = lambda *texts: [CODEC.encode(text)[0] for text in texts]
    for before, after in (
        (("a", "p", "<|end|>"), {"a": 0.0, "<Outlines>": 1.0, "<|end|>": -2.0, "</Thread>": -3.0}),
        (("<Outlines>",), {"<Trial>": 2.0, "<Subtask>": 1.0, "<Outline>": 0.0, "</Outlines>": -2.0}),
        (("<Trial>", "<Subtask>", "<Outline>"), {"1": 1.0, "2": 1.0, "3": 1.0, "\n": -2.0, "a": -3.0}),
        (("1", "2", "3"), {":p": 2.0, ".": -2.0}),
        ((":p",), {"<Trial>": 2.6, "<Subtask>": 0.0, "</Outlines>": 0.8, "</Outline>": -1.0}),
        ((":", "q"), {"q": 0.5, "<Answer>": 2.0, "</Thread>": -0.5, "<|end|>": -2.0, "a": -2.0, "<Outlines>": -2.0}),
        (("<Answer>",), {"b": 2.0, "12": 0.5}),
        (("b", "12"), {"\n": 2.0, "b": -1.0, "</Thread>": -1.0}),
        (("\n",), {"</Thread>": 2.0, "a": 0.5, "<Trial>": -1.0}),
        (("</Outline>", "</Outlines>", "</Thread>", "</Parallel>"), {"a": 1.0, "<Outlines>": 0.5, "<Trial>": 0.0}),
    ):
        for text, value in after.items():
            table[of(*before), of(text)] = value
    return forking.biased_model(CONFIG, 0, table, 0.4)


class Client(threadweaver.Client):
    """Runs every trial to its end, and takes back what one had sampled after the decision that ended it."""

    codec = CODEC

    def listed(self, text):
        kinds = {}
        for kind, number in PATTERN.findall(text):
            kinds.setdefault(number, kind)
        self.trials = {number for number, kind in kinds.items() if kind == "Trial"}
        return list(kinds)

    def read(self, told):
        lines = self.root.children[-len(told) :]
        trials = [i for i, (number, *_) in enumerate(told) if number in self.trials]
        self.killed, self.early = getattr(self, "killed", set()), getattr(self, "early", 0)
        if self.method.read == "all" or not trials:
            return told
        before = [len(self.codec.encode(f"\n<Thread>\n{number}:")) for number, *_ in told]
        order = sorted(trials, key=lambda i: (before[i] + len(told[i][1]), i))
        votes = {i: self.answer(*told[i][1:]) for i in order}
        if self.method.read == "vote":
            enough = certain([votes[i] for i in order])
        else:
            enough = next((n for n, i in enumerate(order, start=1) if votes[i] is not None), len(order))
        last = before[order[enough - 1]] + len(told[order[enough - 1]][1])
        for i in order[enough:]:
            lines[i].tokens = lines[i].tokens[: max(last - before[i], 0)]
            self.killed.add(lines[i])
        self.early += enough < len(order)
        counts = collections.Counter(votes[i] for i in sorted(order[:enough]) if votes[i] is not None)
        if not counts:
            return told
        best = counts.most_common(1)[0][0]  # the first listed of those that are equal
        winner = next(i for i in sorted(order[:enough]) if votes[i] == best)
        return [each for i, each in enumerate(told) if i not in trials or i == winner]

    def answer(self, said, stop):
        """What a trial names; None if it fails."""
        words = dict(outlines=0, fork=0, outline=":", close=0, subtask=":", trial=":", answer="\n")
        plain = Plain(CODEC, tuple(Phrase(name, getattr(PARASON, name), until or "") for name, until in words.items()))
        found = [plain.text.strip() for token in said if plain.step(token) == "answer captured"]
        return found[-1] if found and stop == CODEC.id(PARASON.close) else None


@functools.cache
def problems(count):
    rng = np.random.default_rng(5)
    drawing = dict(temperature=1.0, top_k=0, top_p=1.0, max_tokens=60, child_max_tokens=14)
    return [dataclasses.replace(case(rng, number, RULE), **drawing) for number in range(count)]


@pytest.mark.parametrize(("read", "sizes"), [("all", SIZES), ("first", ONE_ROW), ("vote", MANY)])
def test_the_client_says_the_same(read, sizes):
    method, params = Parason(**CHOICES, read=read), jax.tree.map(np.asarray, model().params)
    engine = Engine(model(), method.protocol(CODEC), sizes, kernel=False)
    happened = collections.Counter()
    for found in engine.decode(problems(40), seed=SEED):
        problem = problems(40)[found.problem]
        client = Client(method, problem, requesting.Server(params, CONFIG, problem, SEED))
        assert client.run() == found.stop
        lines = [client.root, *client.root.children]
        assert [found.generated(i).tolist() for i in range(len(found.threads))] == [line.tokens for line in lines]
        killed = [line in getattr(client, "killed", ()) for line in lines]
        assert [thread.stop == Stop.KILLED for thread in found.threads] == killed
        assert threadweaver.seen_by_the_last(found) == client.context[: len(client.context) - client.unfed]
        happened.update(forked=len(lines) > 1, killed=sum(killed), early=getattr(client, "early", 0))
        happened["trials"] += int(found.own["trial"].sum())
    print(read, dict(happened))
    assert happened["forked"] > 8 and happened["trials"] > 12
    assert happened["early"] > {"all": -1, "first": 8, "vote": 1}[read] and engine.traces == 1


# The texts of the root and of the numbers, how the root ends, how its threads end, errors; by first success.
A, F, S, T, C, E = "<Outlines>", "</Outlines>", "<Subtask>", "<Trial>", "</Thread>", "<|end|>"
LIST = f"{A}{S}1: a{T}2: b{T}3:{F}b{E}"
CASES = {
    "the first that succeeds": (
        {"": LIST, "1": f"qq{C}", "2": "q", "3": f"q<Answer>a\n{C}"}, "END", ["END", "KILLED", "END"], {},
    ),
    "one without an answer": (
        {"": LIST, "1": C, "2": C, "3": f"qqq<Answer>b\n{C}"}, "END", ["END", "END", "END"], {},
    ),
    "an answer that is not ended": (
        {"": LIST, "1": C, "2": f"<Answer>a{C}", "3": f"qqq<Answer>b\n{C}"}, "END", ["END", "END", "END"], {},
    ),
    "at the same clock": (
        {"": LIST, "1": C, "2": f"<Answer>a\n{C}", "3": f"<Answer>b\n{C}"}, "END", ["END", "END", "KILLED"], {},
    ),
    "none succeeds": ({"": LIST, "1": C, "2": C, "3": f"q{C}"}, "END", ["END", "END", "END"], {}),
    "one breaks off": (
        {"": LIST, "1": C, "2": f"<Answer>a\n{E}", "3": f"qqqq<Answer>b\n{C}"},
        "END", ["END", "MALFORMED", "END"], dict(broken_off=1),
    ),
    "all break off": (
        {"": LIST, "1": C, "2": E, "3": "q"}, "LENGTH", ["END", "MALFORMED", "LENGTH"], dict(broken_off=2),
    ),
    "a subtask that never ends": (
        {"": LIST, "1": "q", "2": f"<Answer>a\n{C}", "3": ""}, "LENGTH", ["LENGTH", "END", "KILLED"], dict(broken_off=1),
    ),
    "an outline among them": (
        {"": f"{A}<Outline>1:{T}1:{T}2:{F}b{E}", "1": f"<Answer>a\n{C}", "2": f"q<Answer>a\n{C}"},
        "END", ["END", "END"], dict(number_twice=1),
    ),
    "a subtask outside": ({"": f"a{S}1:{T}b{E}"}, "END", [], dict(misplaced=2)),
    "a trial without a number": ({"": f"{A}{T}{S}1:{F}{E}", "1": C}, "END", ["END"], dict(no_number=1)),
}  # fmt: skip


@functools.cache
def scripted():
    method = Parason(**CHOICES, read="first", blocks=2)
    protocol = malformed.scripted(method, CODEC, [texts for texts, *_ in CASES.values()])
    return method, malformed.played(protocol, len(CASES))


@pytest.mark.parametrize("case", CASES)
def test_every_breach_ends_by_a_name(case):
    _, stop, threads, errors = CASES[case]
    method, played = scripted()
    first, again = (played[list(CASES).index(case), sample] for sample in (0, 1))
    assert first.stop.name == stop and [thread.stop.name for thread in first.threads[1:]] == threads
    assert first.threads == again.threads and first.log.token.tolist() == again.log.token.tolist()
    assert method.format_errors(first) == errors


def test_threads_have_kinds():
    method, played = scripted()
    kinds = lambda case: method.kinds(played[list(CASES).index(case), 0])
    assert kinds("the first that succeeds") == ["", "subtask", "trial", "trial"]
    assert kinds("an outline among them") == ["", "subtask", "trial"]
    assert kinds("a trial without a number") == ["", "subtask"]


def test_the_parent_reads_what_is_needed():
    def told(case):
        found = scripted()[1][list(CASES).index(case), 0]
        return b"".join(map(CODEC.token_bytes, found.tokens(0))).decode().partition(F)[2]

    # The subtask is seen where it stands.
    assert told("the first that succeeds") == f"<Thread>\n3:q<Answer>a\n{C}\nb{E}"
    assert told("at the same clock") == f"<Thread>\n2:<Answer>a\n{C}\nb{E}"
    assert told("none succeeds") == f"<Thread>\n2:{C}<Thread>\n3:q{C}\nb{E}"
    assert told("all break off") == f"<Thread>\n2:\n{C}<Thread>\n3:q{15 * 'a'}\n{C}\n</Parallel>"


def test_what_makes_no_sense_is_refused():
    for fields, message in (
        (dict(read="best"), "parason.read is 'best'; allowed are all, first, vote"),
        (dict(read="vote", answer=""), "parason.answer is empty; trials vote for what stands after it"),
    ):
        with pytest.raises(ValueError, match=message):
            Parason(**fields)
