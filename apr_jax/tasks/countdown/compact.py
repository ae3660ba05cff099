"""The compact text of Countdown: one token per operator or control word, and per number or digit (`tokenizer.compact`).

Threads, prompts and messages in the format of the compiled APR protocol:

    <s>27:22,26,31,53<go>                        the problem (fed)
    <node>31/31=1,26                             a node: operations from the start of this search, the other numbers
    <sub>53-22=31,26,31 ... <exit>               a depth-first sub search (SoS+)
    +27<goal>                                    a result at a node of two numbers; `<goal>` if it is the target
    <spawn>27:53-22=31,26,31 ... <wait>          a fork: one message per child
    <goal><join>53-22=31;31/31=1;26+1=27<end>    the end of a child, `<join><end>` without success
    <result>53-22=31;31/31=1;26+1=27<go>         what the parent is fed (one `<result>` per child)
    <goal>53-22=31;31/31=1;26+1=27<end>          the end of the root, `<end>` without success
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from apr_jax.tasks.countdown.problems import Problem
from apr_jax.tasks.countdown.search import Node, Search, Step

SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
CONTROL = ("<spawn>", "<wait>", "<result>", "<join>", "<end>", "<goal>", "<go>", "<node>", "<sub>", "<exit>")
CHARACTERS = tuple("0123456789+-*/=,:;")

_PIECE = re.compile(r"<[a-z/]+>|.")
_OPERATION = re.compile(r"[0-9]+[-+*/][0-9]+=[0-9]+")


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of a thread's text: written by the model (`generated`) or fed to it."""

    text: str
    generated: bool


@dataclasses.dataclass(frozen=True)
class ThreadText:
    """One thread of a demonstration.

    Attributes:
        path: the ordinals of the forks that lead to the thread, `()` for the root.
        parent: number of the parent in the list of threads, -1 for the root.
        segments: the text, fed and generated parts in turn.
        forked_after: number of the parent's segments before the fork, 0 for the root.
    """

    path: tuple[int, ...]
    parent: int
    segments: tuple[Segment, ...]
    forked_after: int

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


def pieces(text: str) -> list[str]:
    """The tokens of a compact text."""
    return _PIECE.findall(text)


def prompt(problem: Problem) -> str:
    """The prompt of the root thread."""
    return f"<s>{problem.target}:{','.join(map(str, problem.nums))}<go>"


def parse_answer(text: str) -> tuple[str, ...] | None:
    """The operations after the last `<goal>` of a thread, or None if there is no well-formed answer."""
    _, found, answer = text.rpartition("<goal>")
    if not found:
        return None
    answer = answer.removeprefix("<join>").partition("<")[0]
    operations = tuple(answer.split(";"))
    return operations if all(_OPERATION.fullmatch(operation) for operation in operations) else None


def render(problem: Problem, trace: Search) -> tuple[ThreadText, ...]:
    """The threads of a demonstration, root first, each parent before its children."""
    threads: list[ThreadText] = []
    _render_thread(problem.target, trace, (), -1, 0, Segment(prompt(problem), False), threads)
    return tuple(threads)


def _render_thread(
    target: int, search: Search, path: tuple[int, ...], parent: int, forked_after: int, start: Segment, threads: list
) -> None:
    number, segments, children, text = len(threads), [start], [], ""
    for part in _body(target, search):
        if isinstance(part, str):
            text += part
            continue
        messages = [_message(target, child.root) for child in part.searches]
        segments.append(Segment(f"{text}{''.join(messages)}<wait>", True))
        children += [(child, len(segments), message) for child, message in zip(part.searches, messages, strict=True)]
        segments.append(Segment("".join(f"<result>{_returned(child)}" for child in part.searches) + "<go>", False))
        text = ""
    segments.append(Segment(f"{text}{_ending(search, is_child=parent >= 0)}", True))
    threads.append(ThreadText(path, parent, tuple(segments), forked_after))
    for ordinal, (child, after, message) in enumerate(children):
        _render_thread(target, child, (*path, ordinal), number, after, Segment(f"{message}<go>", False), threads)


def _body(target: int, search: Search) -> Iterator[str | Step]:
    """The text of a search up to its `<goal>`, which is left out; steps that spawn are yielded as `Step`s."""
    for step in search.steps:
        if step.node.operations != search.root.operations:
            yield f"<node>{_place(search, step.node)}"
        if len(step.node.nums) == 2:
            yield "".join(_result(child) for child in step.children)
        if step.branch == "spawn":
            yield step
        elif step.branch == "sub":
            for sub in step.searches:
                yield f"<sub>{_place(search, sub.root)}"
                yield from _body(target, sub)
                if sub.goal is None:
                    yield "<exit>"


def _place(search: Search, node: Node) -> str:
    """The text of a node: operations from the start of the search, then the other numbers."""
    return ",".join([";".join(node.operations[len(search.root.operations) :]), *map(str, node.nums[:-1])])


def _result(child: Node) -> str:
    left, _, result = child.operations[-1].partition("=")
    return f"{re.search(r'[-+*/]', left)[0]}{result}"


def _message(target: int, node: Node) -> str:
    return f"<spawn>{target}:{','.join([node.operations[-1], *map(str, node.nums[:-1])])}"


def _returned(child: Search) -> str:
    """The result that a child returns: its own operation, then its path; empty if it failed."""
    return ";".join(child.goal.operations[len(child.root.operations) - 1 :]) if child.goal else ""


def _ending(search: Search, is_child: bool) -> str:
    goal = "<goal>" if search.goal else ""
    answer = f"<join>{_returned(search)}" if is_child else ";".join(search.goal.operations if search.goal else ())
    return f"{goal}{answer}<end>"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Tokens of a demonstration.

    Attributes:
        threads: tokens of each thread, fed and generated.
        generated: generated tokens of each thread.
        critical: generated tokens on the longest chain under fork and join.
    """

    threads: tuple[int, ...]
    generated: tuple[int, ...]
    critical: int


def count(threads: Sequence[ThreadText], encode: Callable[[str], Sequence] = pieces) -> Counts:
    """Count the tokens of a demonstration (forks start at their parent's count, joins take the largest).

    Args:
        threads: a demonstration, root first.
        encode: function from text to tokens; by default a number has one token per digit.
    """
    lengths = [[len(encode(segment.text)) for segment in thread.segments] for thread in threads]

    def finish(number: int, depth: int) -> int:
        for place, (segment, length) in enumerate(zip(threads[number].segments, lengths[number], strict=True)):
            if segment.generated:
                depth += length
            else:
                waited = [k for k, t in enumerate(threads) if t.parent == number and t.forked_after == place]
                depth = max([depth, *(finish(child, depth) for child in waited)])
        return depth

    generated = tuple(
        sum(n for segment, n in zip(thread.segments, row, strict=True) if segment.generated)
        for thread, row in zip(threads, lengths, strict=True)
    )
    return Counts(tuple(map(sum, lengths)), generated, finish(0, 0))
