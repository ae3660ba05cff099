"""Reading an answer out of what a model wrote."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

Rule = Literal["tag", "boxed", "number", "text"]

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?|-?\$?\.\d+")
_EDGES = re.compile(r"^[\s$]+|[\s$.]+$")
_LONGEST = 1000  # letters of an answer; more is no answer, and would only keep a verifier busy


def read(text: str, rules: Sequence[Rule]) -> str | None:
    """What the first rule that finds something finds, in its normal form; None if none does."""
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
    """The last number: `1,234`, `-0.5`, `3/4`, `$18`."""
    found = _NUMBER.findall(text)
    return found[-1].replace("$", "") if found else None


def whole(text: str) -> str | None:
    """Everything."""
    return text


def normal(answer: str) -> str:
    r"""The form in which answers are compared by a vote: no outer white space, dollar signs or full stop, `1,234` as
    `1234`, `18.0` as `18`."""
    answer = _EDGES.sub("", answer)
    if not _NUMBER.fullmatch(answer):
        return answer
    plain = answer.replace(",", "").replace("$", "")
    return plain.rstrip("0").removesuffix(".") if "." in plain and "/" not in plain else plain


RULES: Mapping[Rule, Callable[[str], str | None]] = MappingProxyType(
    {"tag": tag, "boxed": boxed, "number": number, "text": whole}
)
