"""Reads answers from model output."""

import decimal
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

Rule = Literal["tag", "boxed", "number", "text"]

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_MINUS = "-\u2212"  # as typed, as typeset
_SEPARATOR = r"(?:,\\!|\{,\}|\\,|,)"  # of thousands: 9,500 and what LaTeX makes of it
_DIGITS = rf"(?:\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A minus after a word, a number or a bracket is not the sign of a number: 3-5 is a range, or a difference.
_SIGN = rf"(?:(?<![\w)\]}}])[{_MINUS}])"
_NUMBER = re.compile(rf"{_SIGN}?\\?\$?(?:{_DIGITS})(?:[eE][+{_MINUS}]?\d+)?(?:/\d+)?")
_TYPOGRAPHY = re.compile(rf"{_SEPARATOR}|\\?\$")
_EDGES = re.compile(r"^[\s$]+|[\s$.]+$")
_LONGEST = 1000  # most letters of an answer; a longer text is no answer and would only keep a verifier busy
LARGEST = 308
"""Powers of ten, up and down, that are written out; they are those of a double."""


def read(text: str, rules: Sequence[Rule]) -> str | None:
    """The answer found by the first rule that finds one, in normal form; None if no rule finds one."""
    found = (RULES[rule](text) for rule in rules)
    answer = next((normal(answer) for answer in found if answer is not None and answer.strip()), None)
    return answer if answer and len(answer) <= _LONGEST else None


def tag(text: str) -> str | None:
    """The content of the last `<answer> ... </answer>`."""
    return (_TAG.findall(text) or [None])[-1]


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces are balanced."""
    for start in reversed([match.end() for match in re.finditer(r"\\f?box(?:ed)?\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0) * (text[place - 1] != "\\")
            if depth == 0:
                return text[start:place]
    return None


def number(text: str) -> str | None:
    """The last number: `1,234`, `-0.5`, `3/4`, `$18`, `1e-5`."""
    found = _NUMBER.findall(text)
    return _plain(found[-1]) if found else None


def whole(text: str) -> str | None:
    """The whole text."""
    return text


def normal(answer: str) -> str:
    r"""The normal form, in which votes compare answers: no outer white space, dollar signs or full stop, `1,234` as
    `1234`, `18.0` as `18`, `1e-5` as `0.00001`."""
    answer = _EDGES.sub("", answer)
    if not _NUMBER.fullmatch(answer):
        return answer
    plain = _plain(answer)
    return plain.rstrip("0").removesuffix(".") if "." in plain and not set("/eE") & set(plain) else plain


def _plain(number: str) -> str:
    """A number without typography; its power of ten is written out if a double can hold it."""
    plain = _TYPOGRAPHY.sub("", number).replace("\u2212", "-")
    if "e" not in plain.lower() or "/" in plain:
        return plain
    value = decimal.Decimal(plain)
    return f"{value:f}" if abs(value.adjusted()) <= LARGEST else plain


RULES: Mapping[Rule, Callable[[str], str | None]] = MappingProxyType(
    {"tag": tag, "boxed": boxed, "number": number, "text": whole}
)
