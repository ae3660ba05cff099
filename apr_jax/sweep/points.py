"""An algebra of points: lists of overrides, made by pure functions.

    seeds(grid({"optimizer.learning_rate": (1e-4, 3e-4)}, zip({"prompts": (8, 16), "samples": (16, 8)})), 3)

A point is a dict from dotted names of a configuration's fields to values; its name is made of the point alone, so that a point
keeps its name when others are added to the sweep.
"""

import builtins
import hashlib
import itertools
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Point = dict[str, Any]
PLAIN = "base"
"""The name of the point that overrides nothing."""
LONGEST = 180
"""Characters of a name; longer ones end with a digest. File systems allow 255 bytes."""


def grid(*parts: Mapping[str, Sequence] | Sequence[Point]) -> list[Point]:
    """Every combination: of the values of each field, and of the points of each list; the last part varies fastest.

    Raises:
        ValueError: two parts override one field.
    """
    lists: list[Sequence[Point]] = []
    for part in parts:
        lists += [[{name: value} for value in values] for name, values in _axes(part)] if _is_axes(part) else [part]
    return [_joined(chosen) for chosen in itertools.product(*lists)]


def zip(axes: Mapping[str, Sequence]) -> list[Point]:
    """The first values of all fields together, the second values, and so on.

    Raises:
        ValueError: the fields have different numbers of values.
    """
    lengths = {name: len(values) for name, values in _axes(axes)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"zip: the fields have different numbers of values: {lengths}")
    return [dict(builtins.zip(axes, values, strict=True)) for values in builtins.zip(*axes.values(), strict=True)]


def chain(*lists: Iterable[Point]) -> list[Point]:
    """The points of all lists, each once."""
    found: list[Point] = []
    for point in itertools.chain(*lists):
        if point not in found:
            found.append(dict(point))
    return found


def where(points: Iterable[Point], condition: Callable[[Point], bool]) -> list[Point]:
    """The points for which the condition is true."""
    return [point for point in points if condition(point)]


def seeds(points: Sequence[Point], count: int, field: str = "seed") -> list[Point]:
    """Each point with the seeds 0 .. count - 1."""
    return grid(points, {field: range(count)})


def name(point: Point) -> str:
    """The name of a point: `field=value` by sorted names, fit for a folder; different points have different names."""
    quoted = lambda value: urllib.parse.quote(str(value), safe="")
    parts = (
        f"{field}={'+'.join(map(quoted, value if isinstance(value, tuple | list) else [value]))}"
        for field, value in sorted(point.items())
    )
    whole = ",".join(parts) or PLAIN
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}~{digest}"


def text(value: Any) -> str:
    """A value in one word."""
    return ",".join(map(text, value)) if isinstance(value, tuple | list) else str(value)


def options(point: Mapping[str, Any], folder: str = "") -> list[str]:
    """A point as options of a command line; `{folder}` in values stands for the folder of the run.

    Raises:
        ValueError: a value is no number, text, truth value or path, or a sequence of these: options cannot say others.
    """
    found: list[str] = []
    for field, value in point.items():
        values = value if isinstance(value, tuple | list | range) else [value]
        for one in values:
            if isinstance(one, Mapping | tuple | list | set) or callable(one):
                raise ValueError(
                    f"{field}: an option cannot say {one!r}; write it into a configuration file (--config FILE.py:FUNCTION)"
                )
        found += [f"--{field.replace('_', '-')}", *(str(one).replace("{folder}", folder) for one in values)]
    return found


def _is_axes(part: Any) -> bool:
    return isinstance(part, Mapping)


def _axes(axes: Mapping[str, Sequence]) -> list[tuple[str, Sequence]]:
    for field, values in axes.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ValueError(f"{field}: {values!r} is no list of values; give a tuple, even of one")
    return list(axes.items())


def _joined(chosen: Iterable[Point]) -> Point:
    joined: Point = {}
    for point in chosen:
        if both := joined.keys() & point.keys():
            raise ValueError(
                f"grid: two parts override {', '.join(sorted(both))}; a field can have one value in a point"
            )
        joined |= point
    return joined
