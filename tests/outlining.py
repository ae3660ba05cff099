"""Outlined threads once more: vocabularies and models that write outlines a lot, and an interpreter of the rules for the oracle."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

import oracle
from apr_jax.decode import Problem, Source, Stop
from apr_jax.decode.recogniser import Phrase
from phrase_matcher import Plain, Table
from reference_model import draw, log_softmax

PLAIN = [b"a", b"b", b"\n", b"p", b"q", b":", b":p", b"1", b"2", b"3", b".", b" ", b"12"]


@dataclasses.dataclass(frozen=True)
class Words:
    """The tags of a system."""

    outlines: str
    fork: str
    outline: str
    outline_end: str
    thread: str
    close: str
    conclusion: str
    stop: str
    end: str = "<|end|>"


THREADWEAVER = Words(
    "<Outlines>", "</Outlines>", "<Outline>", "</Outline>", "<Thread>", "</Thread>", "<Conclusion>", "</Parallel>"
)


@dataclasses.dataclass(frozen=True)
class Kinds(Words):
    """The tags of a system with outlines of several kinds, and its word for answers."""

    subtask: str = "<Subtask>"
    trial: str = "<Trial>"
    answer: str = "<Answer>"


PARASON = Kinds(*dataclasses.astuple(THREADWEAVER))
MULTIVERSE = Words("<Goal>", "</Goal>", "<Outline>", "</Outline>", "<Path>", "</Path>", "<Conclusion>", "</Parallel>")
NPR = Words("<guideline>", "</guideline>", "<plan>", "</plan>", "<step>", "</step>", "<takeaway>", "</takeaway>")
VOCABULARY = 28


def tagged(words: Words) -> Table:
    """A codec in which each tag is one id."""
    return Table(PLAIN, [getattr(words, field.name) for field in dataclasses.fields(words)])


def spelt() -> Table:
    """ThreadWeaver's tags in pieces, one of which opens a tag and closes another."""
    pieces = [
        "<Outlines>",
        "</Outline>",
        "<Out",
        "line>",
        "</Out",
        "lines>",
        "<Thread>",
        "</Thr",
        "ead>",
        "ead>\n",
        "</Parallel>",
    ]
    pieces = [piece.encode() for piece in (*pieces, "<Conclusion>")]
    return Table([*PLAIN, *pieces], ["<|end|>"])


def bias(codec: Table, words: Words) -> np.ndarray:
    """A table for `forking.biased_model` under which threads mostly list outlines, fork, and end in good order, but not always.

    Plain text is a, b outside, p in outlines, q in threads.
    """
    table = np.full((VOCABULARY, VOCABULARY), -8.0)

    def row(before: Sequence[str], **after: float) -> None:
        for text in before:
            for follows, value in after.items():
                first = codec.encode(_TEXT.get(follows) or getattr(words, follows))[0]
                at = codec.encode(_TEXT.get(text) or getattr(words, text))[-1]
                table[at, first] = max(table[at, first], value)

    row(("a", "b"), a=-0.5, b=-0.5, line=-1.0, outlines=2.0, close=-2.5, end=-1.0, stop=-2.0)
    row(("line", "space"), a=0.0, b=0.0, q=-0.5, outlines=1.0, one=-1.0, close=-2.0)
    row(("outlines",), outline=3.0, line=-1.0, fork=-1.5, end=-2.0)
    row(("outline",), one=2.0, two=2.0, three=1.5, twelve=-0.5, space=0.5, line=0.0, p=-1.0)
    row(("one", "two", "three", "twelve"), outlined=3.0, colon=0.5, dot=0.0, space=-1.0, one=-1.5)
    row(("dot",), one=1.0, two=1.0, p=-2.0)
    row(("colon",), p=-1.5, q=1.5, outline_end=-1.5, close=0.0, outlines=0.0)
    row(("p", "outlined"), p=-0.5, outline_end=2.0, outlines=-1.5, close=-2.5, end=-2.5)
    row(("q",), q=0.5, a=-0.5, outlines=0.5, close=1.5, end=-1.0, line=-0.5)
    row(("outline_end",), outline=1.5, fork=2.0, line=-1.0)
    row(("fork", "close", "thread", "stop", "conclusion"), a=0.5, line=0.5, end=-1.0, outlines=0.0)
    for text in {
        getattr(words, field.name) for field in dataclasses.fields(words)
    }:  # what begins a tag goes on with it
        for this, following in itertools.pairwise(codec.encode(text)):
            table[this, following] = max(table[this, following], 3.0)
    return table


_TEXT = {
    "a": "a", "b": "b", "p": "p", "q": "q", "line": "\n", "space": " ", "one": "1", "two": "2", "three": "3", "twelve": "12",
    "dot": ".", "colon": ":", "outlined": ":p",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the interpreter knows: the texts, as the published systems have them, and the choices."""

    codec: Table
    words: Words
    stitches: bool
    most: int = 3
    blocks: int = 2
    max_depth: int = 1
    conclusion: bool = False
    response: int = 0
    reserve: int = 0
    penalty: float = 1.0
    line: bool | None = None  # whether a header begins with a new line; by default if threads are re-encoded
    numbers: tuple[str, ...] = ("1", "2", "3", "1.1", "1.2", "2.1", "2.2")

    @property
    def end(self) -> int:
        return self.codec.id(self.words.end)

    def ids(self, text: str) -> list[int]:
        return self.codec.encode(text)

    def header(self, number: str) -> list[int]:
        line = not self.stitches if self.line is None else self.line
        return self.ids(f"{chr(10) * line}{self.words.thread}\n{number}:")

    def again(self, number: str) -> list[int]:
        return self.ids(f"{self.words.thread}\n{number}:")

    def close(self) -> list[int]:
        return self.ids(f"\n{self.words.close}")

    def joined(self) -> list[int]:
        if self.stitches:
            return self.ids(f"{self.words.conclusion}\n")
        return self.ids(f"\n{self.words.conclusion}\n" if self.conclusion else "\n")

    def matcher(self) -> Plain:
        words = self.words
        named = (("outlines", words.outlines, ""), ("fork", words.fork, ""), ("outline", words.outline, ":"))
        return Plain(self.codec, tuple(Phrase(*name) for name in (*named, ("close", words.close, ""))))


class Reader:
    """What a thread has been asked for: reads its tokens one by one."""

    def __init__(self, rule: Rule, depth: int):
        self.rule, self.depth, self.plain = rule, depth, rule.matcher()
        self.outlines: list[str] | None = None
        self.refused = False
        self.blocks = 0

    def read(self, token: int, left: int) -> Stop | bool:
        """What a sampled token does to the thread: ends it, lets it fork (True), or nothing (False).

        Args:
            left: tokens of the response.
        """
        rule, event = self.rule, self.plain.step(token)
        can = self.depth < rule.max_depth
        if token == rule.end:
            return Stop.MALFORMED if self.depth or self.outlines is not None else Stop.END
        if event == "outlines" and (can or rule.reserve):
            self.outlines, self.refused = [], False
        if event == "outline captured" and self.outlines is not None:
            self._list(self.plain.text.strip().decode())
        if event == "fork" and (can or rule.stitches):
            formed = bool(self.outlines and not self.refused and self.blocks < rule.blocks)
            if formed and rule.reserve and (not can or left < rule.reserve):
                self.outlines = None  # the fork is refused
                return False
            return (formed and can) or Stop.MALFORMED
        if event == "close" and (self.depth or rule.stitches):
            return Stop.END if self.depth and self.outlines is None else Stop.MALFORMED
        return False

    def _list(self, number: str) -> None:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)*", number) and number not in self.outlines:
            lacks = number not in self.rule.numbers or len(self.outlines) == self.rule.most
            self.refused |= lacks
            self.outlines += [] if lacks else [number]

    def fork(self) -> list[str]:
        outlines, self.outlines, self.refused, self.blocks = self.outlines, None, False, self.blocks + 1
        return outlines


class Line(oracle.Thread):
    """A thread that may have a budget of its own, and knows what it was fed of the response."""

    budget: int | None = None
    fed_of_response = 0
    degree = 1  # threads that are taken to write as much as it does

    @property
    def used(self) -> int:
        """Tokens of the response so far."""
        return self.generated + self.fed_of_response


def budget(thread: Line, problem: Problem) -> int:
    mine = (thread.path and problem.child_max_tokens) or problem.max_tokens
    return mine if thread.budget is None else min(mine, thread.budget)


def penalised(rule: Rule) -> oracle.Choose:
    """Draws under the penalty on what a thread repeats of itself; the root is free of it."""

    def choose(thread, logits, uniform, problem):
        said = [entry.token for entry in thread.entries if entry.source == Source.SAMPLED] if thread.path else []
        changed = np.array(logits)
        changed[said] = np.where(logits[said] > 0, logits[said] / rule.penalty, logits[said] * rule.penalty)
        token, _, behaviour = draw(changed, uniform, problem)
        return token, log_softmax(logits)[token], behaviour

    return choose


def interpreter(rule: Rule) -> oracle.Interpreter:
    def root(world, thread, prompt, protocol):
        thread.__class__ = Line
        yield from _run(world, thread, prompt, rule, 0)

    return root


def _run(world, thread: Line, fed: Sequence[int], rule: Rule, depth: int, seen: bool = False) -> Iterator[list]:
    """`seen`: its parent will see it where it stands."""
    yield from thread.feed_tokens(fed)
    reader, header = Reader(rule, depth), len(fed)
    while True:
        entry = world.sample(thread)
        does = reader.read(entry.token, rule.response - thread.used)
        if does is True and rule.response and thread.used >= rule.response:
            does = Stop.LENGTH
        spent = does is False and thread.generated >= budget(thread, world.problem)
        does = Stop.LENGTH if spent else does
        if not isinstance(does, bool):
            break
        yield []
        thread.feed(entry)
        if not does:
            continue
        names, before = reader.fork(), thread.used
        children = [thread.open() for _ in names]
        oracle._fork(thread, children, "shared")
        for child, name in zip(children, names, strict=True):
            child.fed_of_response, child.degree = thread.used + len(rule.header(name)), thread.degree * len(names)
            if rule.response and not rule.stitches:
                child.budget = max(rule.response - thread.used, 1)
            elif rule.response:
                child.budget = max(math.ceil((rule.response - child.used) / child.degree), 1)
            first = rule.stitches or child is children[0]
            world.start(child, _run(world, child, rule.header(name), rule, depth + 1, first))
        yield from thread.await_children(children)
        for child in children if rule.stitches else children[:1]:
            thread.stitch(child)
        if rule.stitches:
            does, entry, spent = Stop.LENGTH, None, True
            thread.fed_of_response += sum(child.used - before for child in children) + len(rule.joined())
            if rule.response:
                thread.budget = thread.generated + math.ceil((rule.response - thread.used) / thread.degree)
            if thread.generated >= budget(thread, world.problem):
                break
            yield from thread.feed_tokens(rule.joined())
            continue
        stop = yield from _again(world, thread, rule, children, names)
        if stop is not None:
            thread.stop = stop
            return
    broke = spent or entry.token == rule.end
    if depth and broke and rule.stitches:  # closed in place of its last token
        yield []
        thread.fed_of_response += len(rule.close()) - 1
        yield from thread.feed_tokens(rule.close())
    elif seen and entry.index < 0 and (spent or entry.token != rule.end):
        yield []
        thread.feed(entry)
    thread.header, thread.stop = header, does


def _again(world, thread: Line, rule: Rule, children: Sequence[Line], names: Sequence[str]):
    """Feed the parent what its threads wrote; returns why it ends, if it does."""
    message, fed = [], 0
    for child, name in zip(children, names, strict=True):
        text = [entry.token for entry in child.entries[child.header :]]
        text = text[:-1] if text[-1] == rule.end else text
        closing = [] if child.stop == Stop.END else rule.close()
        first = child is children[0]
        message += closing if first else [*rule.again(name), *text, *closing]
        fed += len(rule.header(name) if first else rule.again(name)) + len(text) + len(closing)
    thread.fed_of_response += fed
    if rule.response:
        thread.budget = rule.response - thread.fed_of_response - len(rule.joined())
    long = any(child.stop == Stop.LENGTH for child in children)
    long |= thread.generated >= budget(thread, world.problem)
    over = long or any(child.stop != Stop.END for child in children)
    footer = rule.ids(f"\n{rule.words.stop}") if over else rule.joined()
    thread.fed_of_response += len(footer)
    yield from thread.feed_tokens([*message, *footer])
    return (Stop.LENGTH if long else Stop.MALFORMED) if over else None
