"""Facts about a compiled program, read from its HLO text: its collectives, their devices and places, and copies of arrays.

The text comes from `jax.stages.Compiled.as_text()`: one operation per line, `%name = type operation(operands), attributes`.
"""

import dataclasses
import math
import re

import numpy as np

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
    "ragged-all-to-all",
)  # fmt: skip
_OPERATION = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (.*?[})\]]) ([a-z][\w\-]*)\(")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
        kind: one of `COLLECTIVES`.
        shape: shape of the result, in the notation of the text: `f32[8,128]`.
        groups: groups of devices that communicate, as numbers of the program's devices in their order.
        path: traced scopes and loops around the collective: `jit(run)/while/body/decode/...`; empty if the text has none.
    """

    kind: str
    shape: str
    groups: tuple[tuple[int, ...], ...]
    path: str


def collectives(text: str) -> list[Collective]:
    """All collectives of the text; an asynchronous collective counts once, at its start.

    Raises:
        ValueError: the groups of a collective have an unknown notation.
    """
    found = []
    for line in text.splitlines():
        match = _OPERATION.match(line.strip())
        if match and match[3].removesuffix("-start") in COLLECTIVES:
            kind, path = match[3].removesuffix("-start"), re.search(r'op_name="([^"]*)"', line)
            found.append(Collective(kind, _shape(match[2]), _groups(line), path[1] if path else ""))
    return found


def _shape(result: str) -> str:
    """The type without layouts; for a tuple, its largest member."""
    shapes = re.findall(r"\w+\[[\d,]*\]", result)
    size = lambda shape: np.prod([int(n) for n in re.findall(r"\d+", shape.split("[")[1])] or [1])
    return max(shapes, key=size)


def nbytes(shape: str) -> int:
    """Bytes of an array of a shape in the notation of the text, `bf16[8,128]`; raises ValueError for an unknown type."""
    kind, _, sizes = shape.removesuffix("]").partition("[")
    bits = 8 if kind == "pred" else int(re.sub(r"^[a-z]+(\d+).*", r"\1", kind))
    return math.prod(_numbers(sizes) if sizes else []) * bits // 8


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line)
    if listed:
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        devices = np.arange(np.prod(_numbers(iota[2]))).reshape(_numbers(iota[2]))
        devices = devices.transpose(_numbers(iota[3])) if iota[3] else devices
        return tuple(map(tuple, devices.reshape(_numbers(iota[1])).tolist()))
    # mesh['data'=2,'model'=4] {'model'}; mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'} if devices have another order
    named = re.search(
        r"replica_groups=\w*\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}", line
    )
    if named:
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        within = re.findall(r"'(\w+)'", named[4])
        outside = [name for name in axes if name not in within]
        devices = np.arange(np.prod(list(axes.values())))
        devices = devices.reshape(_numbers(named[2])) if named[2] else devices
        devices = devices.transpose(_numbers(named[3])) if named[3] else devices
        devices = devices.reshape(tuple(axes.values()))
        devices = devices.transpose([list(axes).index(name) for name in (*outside, *within)])
        return tuple(map(tuple, devices.reshape(-1, np.prod([axes[name] for name in within])).tolist()))
    raise ValueError(f"unknown form of the groups of a collective: {line.strip()[:400]}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def crosses(collective: Collective, model: int) -> bool:
    """Whether devices of different places along `data` communicate, on a mesh [data, model] in row-major order."""
    return any(len({device // model for device in group}) > 1 for group in collective.groups)


def computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of a module, by the computation's name.

    Computations that copy their operand onto itself are left out: TPU programs use such a copy to rename a tiling of int8.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        start = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            lines = found.setdefault(start[1], [])
        elif line.startswith(" "):
            lines.append(line.strip())
    same = re.findall(r"output_to_operand_aliasing=\{\{\}: \(0, \{\}\)\}, calls=%?([\w.\-]+)", text)
    only_copies = lambda lines: len(lines) == 2 and " parameter(0)" in lines[0] and " copy(" in lines[1]
    return {name: lines for name, lines in found.items() if name not in same or not only_copies(lines)}


def inside_loops(text: str) -> list[str]:
    """The lines of all computations inside loops, fused and called computations included; empty if there is no loop."""
    found = computations(text)
    called = {name: set(re.findall(r"[\w.\-]+", " ".join(lines))) & found.keys() for name, lines in found.items()}
    left = [name for lines in found.values() for line in lines for name in re.findall(r"body=%?([\w.\-]+)", line)]
    seen: set[str] = set()
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left.extend(called[name])
    return [line for name in sorted(seen) for line in found[name]]


def operations(lines: list[str], shape: str) -> list[tuple[str, str]]:
    """The operations of these lines whose result is one array of the given shape (`f32[8,128]`): (operation, whole line)."""
    matches = [(_OPERATION.match(line), line) for line in lines]
    return [(match[3], line) for match, line in matches if match and match[2].startswith(shape)]
