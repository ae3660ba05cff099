"""The text of multiplication, one token per character or control word, and its rendering in the format of each method.

A number is written least significant digit first, each digit with the carry that it leaves, `a` for 0 to `i` for 8. Integers of the
prompt are marked `A` to `H`. For 21 x 43, in our own format:

    <s>A1a2aB3a4a<go>                  the problem (fed): 21 and 43
    B<spawn>1<spawn>2<wait>            the root names the next integer, and forks: one message for each place of its digits
    33a6a0a<end>                       the child of <spawn>1<go> looks up its digit, 3, and multiplies: 21 x 3 = 063
    44a8a0a<end>                       that of <spawn>2<go>: 21 x 4 = 084
    =3a0b9a<end>                       the root sees both, is fed <go>, and adds column by column: 903; then the next integer

Children share the root's context: the operands are nowhere copied. Messages name places, not digits, because all children of a fork
write at the same positions: two equal digits would make two children that their parent cannot tell apart.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

from apr_jax import methods, tokenizer
from apr_jax.decode.problem import one_of
from apr_jax.tasks.multiplication import columns
from apr_jax.tasks.multiplication.columns import Pairs, Partial, Step
from apr_jax.tasks.multiplication.problems import MOST, Problem
from apr_jax.tasks.script import Fed, Fork, Said, Thread
from apr_jax.tokenizer import Tokenizer

Method = Literal["parallel", "sequential", "threadweaver", "multiverse", "parathinker"]

PLACES = 4  # digits of an integer, and paths of ParaThinker
MARKS = "ABCDEFGH"
DIGITS = "0123456789"
CARRIES = "abcdefghi"
SIGNS = "=|:"

METHODS: Mapping[str, methods.Method] = MappingProxyType(
    {
        "parallel": methods.SpawnJoin(context="shared", returns="stitch"),
        "sequential": methods.Sequential(),
        "threadweaver": methods.ThreadWeaver(end="<end>", most=PLACES, nested=0, blocks=MOST - 1),
        "multiverse": methods.Multiverse(end="<end>", most=PLACES, nested=0, blocks=MOST - 1, max_depth=1),
        "parathinker": methods.ParaThinker(paths=PLACES, enough="last", phrase=""),
    }
)
"""What decodes the renderings."""
CLASSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "digit": tuple(DIGITS),
        "carry": tuple(CARRIES),
        "mark": tuple(MARKS + SIGNS),
        "control": tuple(dict.fromkeys(word for method in METHODS.values() for word in (*method.words, "<end>"))),
    }
)
"""Symbols by class of token."""

_ANSWER = re.compile(r"=((?:[0-9][a-i])+)(?:<[^<>]*>)+$")


def vocabulary() -> Tokenizer:
    """One id for each character and for each control word of all methods: 76 ids, so that all methods train on the same tokens."""
    return tokenizer.train((), [*CLASSES["control"], "\n"], characters=f"{DIGITS}{CARRIES}{MARKS}{SIGNS}")


def number(pairs: Pairs) -> str:
    """A number: each digit with its carry."""
    return "".join(f"{digit}{CARRIES[carry]}" for digit, carry in pairs)


def prompt(problem: Problem) -> str:
    """The prompt: the integers, each behind its mark."""
    integers = (number(tuple((digit, 0) for digit in columns.digits(factor))) for factor in problem.factors)
    return f"<s>{''.join(map(''.join, zip(MARKS, integers, strict=False)))}<go>"


def parse_answer(text: str) -> str | None:
    """The number that closing words follow at the end of a text, in decimal without leading zeros; None if there is none."""
    found = _ANSWER.search(text)
    return (found[1][-2::-2].lstrip("0") or "0") if found else None


def render(problem: Problem, method: Method) -> Thread:
    """The demonstration of a problem in the format of a method: the same digits and carries in all of them.

    Raises:
        ValueError: the method is unknown.
    """
    one_of("method", method, get_args(Method))
    steps = columns.work(problem)
    if method == "sequential":
        return Thread((Fed(prompt(problem)), Said(f"{''.join(map(_alone, steps))}<end>")))
    if method == "parathinker":
        return _two_stage(problem, steps)
    return _forking(problem, steps, _RULES[method])


def _alone(step: Step) -> str:
    """A multiplication in one thread."""
    partials = "".join(f"|{partial.place}{_partial(partial)}" for partial in step.partials)
    return f"{MARKS[step.factor]}{partials}{_sum(step)}"


def _partial(partial: Partial) -> str:
    return f"{partial.digit}{number(partial.pairs)}"


def _sum(step: Step) -> str:
    return f"={number(step.total)}"


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How a method writes a fork of as many threads as the next integer has digits; `{}` stands for the place of a digit.

    Attributes:
        begin, item, end: what the parent samples: before, for each thread, and behind.
        header: what a thread is fed.
        close: the word with which a thread ends.
        again: what stands before the text of each thread but the first that the parent is fed; None: the parent sees all threads.
        joined: what the parent is fed last at the join.
        before, after: what the parent samples around the sum.
    """

    begin: str
    item: str
    end: str
    header: str
    close: str
    joined: str
    again: str | None = None
    before: str = ""
    after: str = ""


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "parallel": _Rule("", "<spawn>{}", "<wait>", "<spawn>{}<go>", "<end>", "<go>"),
        "threadweaver": _Rule(
            "<Parallel><Outlines>", "<Outline>{}:</Outline>", "</Outlines>", "\n<Thread>\n{}:", "</Thread>", "\n",
            again="<Thread>\n{}:", before="</Parallel>",
        ),
        "multiverse": _Rule(
            "<Parallel><Goal>", "<Outline>{}:</Outline>", "</Goal>", "<Path>\n{}:", "</Path>", "<Conclusion>\n",
            after="</Conclusion></Parallel>",
        ),
    }
)  # fmt: skip


def _forking(problem: Problem, steps: Sequence[Step], rule: _Rule) -> Thread:
    """A fork for each multiplication."""
    parts: list[Fed | Said | Fork] = [Fed(prompt(problem))]
    for step in steps:
        items = "".join(rule.item.format(partial.place) for partial in step.partials)
        texts = [f"{_partial(partial)}{rule.close}" for partial in step.partials]
        headers = [Fed(rule.header.format(partial.place)) for partial in step.partials]
        threads = tuple(Thread((header, Said(text))) for header, text in zip(headers, texts, strict=True))
        joined, seen = rule.joined, len(threads)
        if rule.again is not None:
            read = zip(step.partials[1:], texts[1:], strict=True)
            joined = f"{''.join(rule.again.format(partial.place) + text for partial, text in read)}{joined}"
            seen = 1
        parts += [
            Said(f"{MARKS[step.factor]}{rule.begin}{items}{rule.end}"),
            Fork(threads, seen),
            Fed(joined),
            Said(f"{rule.before}{_sum(step)}{rule.after}"),
        ]
    return Thread((*parts, Said("<end>")))


def _two_stage(problem: Problem, steps: Sequence[Step]) -> Thread:
    """ParaThinker forks once, before it has written anything: a path for each place of the second integer, of which those that it
    lacks end at once; the sum and all further integers are the summary's."""
    said = {partial.place: _partial(partial) for partial in steps[0].partials}
    paths = tuple(
        Thread((Fed(f"<think{place}>"), Said(f"{said.get(place, '')}</think{place}>")), branch=place)
        for place in range(1, PLACES + 1)
    )
    summary = f"{_sum(steps[0])}{''.join(map(_alone, steps[1:]))}</summary>"
    return Thread((Fed(prompt(problem)), Fork(paths, len(paths)), Fed("<summary>"), Said(summary)))
