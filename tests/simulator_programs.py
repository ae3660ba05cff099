"""Programs of threads for the simulator, as data: what lines of reasoning do with the tokens that they sample.

A program says for each path what the line there does: one action for each token that it samples, and its end when none is left.
Actions are drawn when a line first asks for them, so a program is a seed. What is drawn how often is itself drawn for each program:
some do little but race, others little but wait.
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

Path = tuple[int, ...]
ISOLATED, OWN, HELD_LINE = "isolated", "own", "held line"  # contexts of a child
DROPPED, JOINED, HELD = (
    "dropped",
    "joined",
    "held",
)  # until when a child's slots are kept: its end, its join, its release
MESSAGE, NOTHING, REENCODE, STITCH = "message", "nothing", "reencode", "stitch"
HEAD, TAIL, THIRD = "head", "tail", "third"
# How to make a word of a program simpler.
SIMPLER = {OWN: ISOLATED, HELD_LINE: OWN, JOINED: DROPPED, HELD: JOINED, NOTHING: MESSAGE, REENCODE: STITCH, STITCH: MESSAGE,
           TAIL: HEAD, THIRD: HEAD}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Token:
    """Go on."""


@dataclasses.dataclass(frozen=True)
class End:
    """The line ends."""


@dataclasses.dataclass(frozen=True)
class Join:
    """A wait, and what the line goes on from.

    Attributes:
        names: bits of the outstanding children that are waited for, in the order in which they were started; 0: all of them.
        need: the wait is over when ends are worth that much, by their weights; 0: when all have ended.
        decided: of a scope that decides which of its members are waited for: those, instead of `names`.
        how: a message of every line, stitching those that are kept, re-encoding all but the first, or nothing.
        whole: stitching adds all that the lines see, their contexts too, and not only the lines.
        message: tokens that each line says.
        footer: tokens fed after them.
        feed: the unfed last token is fed first, otherwise dropped.
        quiet: the line acts again when all is fed, without having sampled.
        forget: the latter half of the thread is split off before the message is fed.
    """

    names: int = 0
    need: int = 0
    decided: bool = False
    how: str = MESSAGE
    whole: bool = False
    message: int = 1
    footer: int = 0
    feed: bool = True
    quiet: bool = False
    forget: bool = False


@dataclasses.dataclass(frozen=True)
class Child:
    """How a child begins.

    Attributes:
        context: ISOLATED, OWN (its parent and what that sees), or HELD_LINE, number `which` of those that its parent holds.
        header: tokens that it is fed.
        handed: before them, a copy of the unfed last token of its context.
        kept: until when its slots are kept.
        flushed: its last token is fed at its end, otherwise dropped.
        closing: tokens that it is fed after that.
        member: it is a member of the fork's scope.
        weight: what its end is worth.
    """

    context: str = ISOLATED
    which: int = 0
    header: int = 1
    handed: bool = False
    kept: str = DROPPED
    flushed: bool = False
    closing: int = 0
    member: bool = True
    weight: int = 1


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the members of one fork have to do with each other.

    Attributes:
        live: 1: they see each other's tokens of smaller clocks; 2: of the same clock too.
        need: ends decide when they are worth that much, by their weights; 0: they never do.
        kills: the rest is killed then; otherwise the rest stays outstanding.
        budget: tokens that they and all below may sample together; 0: any number.
        strikes: a member may kill its youngest sibling.
    """

    live: int = 0
    need: int = 0
    kills: bool = False
    budget: int = 0
    strikes: bool = False


@dataclasses.dataclass(frozen=True)
class Fork:
    """Start children.

    Attributes:
        children: how they begin.
        rule: of the scope of those that are members.
        beside: the parent goes on while they run; otherwise it waits for them.
        flush: the parent's last token is fed before they start.
        footer: tokens that a parent that goes on is fed.
        join: for whom of them a parent waits, and how it goes on.
    """

    children: tuple[Child, ...]
    rule: Rule | None = None
    beside: bool = False
    flush: bool = False
    footer: int = 0
    join: Join = Join()


@dataclasses.dataclass(frozen=True)
class Turn:
    """The line goes on as a new thread.

    Attributes:
        keeps: it sees the old thread and what that saw (2), what that saw (1), nothing (0).
        feed: the unfed last token is handed over, otherwise dropped.
        footer: tokens fed after it.
    """

    keeps: int = 0
    feed: bool = False
    footer: int = 1


@dataclasses.dataclass(frozen=True)
class Split:
    """Cut the thread in two: the line goes on as its head, as its tail, or as a third thread, which sees `keeps` of them (bits)."""

    where: str = HEAD
    share: int = 2
    keeps: int = 0


@dataclasses.dataclass(frozen=True)
class Release:
    """Give up one of the lines that are held."""

    which: int = 0


@dataclasses.dataclass(frozen=True)
class Strike:
    """Kill the youngest sibling in the scope, when that may be decided."""


@dataclasses.dataclass(frozen=True)
class Meet:
    """Wait at a barrier for the siblings of the fork: until each of them waits there too, or has ended.

    Attributes:
        keeps: how many of those that wait there go on, by path; the others are killed. 0: all go on. The first one's is used.
        footer: tokens that the line is fed when it goes on.
    """

    keeps: int = 0
    footer: int = 0


Action = Token | End | Join | Fork | Turn | Split | Release | Strike | Meet
LEVELS = (0.0, 0.1, 0.3, 0.6, 0.9)
CHANCES = (
    "beside", "flush", "flushed", "closing", "outsider", "own", "isolated", "held", "joined", "handed", "live", "kills", "budget",
    "strikes", "all", "decided", "some", "stitch", "whole", "drop", "quiet", "forget",
)  # fmt: skip


class Program:
    """A program whose actions are drawn when they are asked for."""

    def __init__(self, seed: int):
        rng = random.Random(seed)
        self.seed, self.drawn = seed, {}
        self.chance = {name: rng.choice(LEVELS) for name in CHANCES}
        self.chance |= {name: rng.choice(LEVELS[2:]) for name in ("rule", "need")}
        self.weights = {kind: rng.choice((0, 1, 2, 4)) for kind in (Join, Turn, Split, Release, Strike, Meet)}
        self.weights |= {Fork: rng.choice((4, 8, 16)), Token: rng.choice((2, 4, 8))}
        self.depth = rng.choice((1, 2, 2, 3))
        self.length = rng.randint(2, 9 - 2 * self.depth)
        self.children = rng.choice((2, 3, 3, 4))

    def actions(self, path: Path) -> tuple[Action, ...]:
        if path not in self.drawn:
            rng = random.Random(f"{self.seed}/{path}")
            count = rng.randint(0 if path else 2, self.length)
            self.drawn[path] = tuple(self._action(rng, len(path)) for _ in range(count))
        return self.drawn[path]

    def _action(self, rng: random.Random, nesting: int) -> Action:
        (kind,) = rng.choices(tuple(self.weights), tuple(self.weights.values()))
        if kind is Fork:
            return self._fork(rng) if nesting < self.depth else Token()
        if kind is Join:
            return self._join(rng)
        if kind is Turn:
            return Turn(rng.randrange(3), rng.random() < 0.5, rng.randint(0, 2))
        if kind is Split:
            return Split(rng.choice((HEAD, TAIL, THIRD)), rng.randint(1, 4), rng.randrange(4))
        if kind is Meet:
            return Meet(rng.randrange(3), rng.randint(0, 2))
        return Release(rng.randrange(2)) if kind is Release else kind()

    def _fork(self, rng: random.Random) -> Fork:
        often = lambda name: rng.random() < self.chance[name]  # noqa: E731
        rule = None
        if often("rule"):
            need = rng.randint(1, self.children) if often("need") else 0
            budget = rng.randint(2, 8) if often("budget") else 0
            rule = Rule(rng.randint(1, 2) if often("live") else 0, need, often("kills"), budget, often("strikes"))
        return Fork(
            children=tuple(
                self._child(rng) for _ in range(max(rng.randint(1, self.children), rng.randint(1, self.children)))
            ),
            rule=rule,
            beside=often("beside"),
            flush=often("flush"),
            footer=rng.randint(0, 2),
            join=self._join(rng),
        )

    def _child(self, rng: random.Random) -> Child:
        often = lambda name: rng.random() < self.chance[name]  # noqa: E731
        return Child(
            context=OWN if often("own") else ISOLATED if often("isolated") else HELD_LINE,
            which=rng.randrange(3),
            header=rng.choice((0, 1, 1, 2, 4)),
            handed=often("handed"),
            kept=HELD if often("held") else JOINED if often("joined") else DROPPED,
            flushed=often("flushed"),
            closing=rng.randint(1, 2) if often("closing") else 0,
            member=not often("outsider"),
            weight=rng.choice((1, 1, 1, 2)),
        )

    def _join(self, rng: random.Random) -> Join:
        often = lambda name: rng.random() < self.chance[name]  # noqa: E731
        return Join(
            names=0 if often("all") else rng.choice((rng.randint(1, 15), 1 << rng.randrange(3))),
            need=rng.randint(1, 3) if often("some") else 0,
            decided=often("decided"),
            how=STITCH if often("stitch") else rng.choice((MESSAGE, NOTHING, REENCODE, STITCH)),
            whole=often("whole"),
            message=rng.randint(0, 3),
            footer=rng.randint(0, 2),
            feed=not often("drop"),
            quiet=often("quiet"),
            forget=often("forget"),
        )


# ---- making a program smaller

Lines = dict[Path, tuple[Action, ...]]


class Fixed:
    """A program that is written down; a path that it does not name ends at once."""

    def __init__(self, lines: Lines):
        self.drawn = lines

    def actions(self, path: Path) -> tuple[Action, ...]:
        return self.drawn.get(path, ())


def size(value: Any) -> int:
    """How much there is of a program, or of a part of one."""
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    if isinstance(value, tuple):
        return sum(4 + size(item) for item in value)
    if dataclasses.is_dataclass(value):
        parts = (getattr(value, field.name) for field in dataclasses.fields(value))
        return (not isinstance(value, Token)) + sum(map(size, parts))
    if isinstance(value, str):
        return 1 + size(SIMPLER[value]) if value in SIMPLER else 0
    return 1 + value if value else 0


def smaller(value: Any) -> Iterator[Any]:
    """The next simpler ones of a program, or of a part of one, the simplest first."""
    if isinstance(value, dict):
        for path in value:
            yield {other: actions for other, actions in value.items() if other[: len(path)] != path}
        for path, actions in value.items():
            yield from (value | {path: less} for less in smaller(actions))
    elif isinstance(value, tuple):
        yield from (value[:place] + value[place + 1 :] for place in range(len(value)))
        for place, item in enumerate(value):
            simpler = (Token(),) if isinstance(item, Action) and not isinstance(item, Token) else ()
            yield from (value[:place] + (less,) + value[place + 1 :] for less in (*simpler, *smaller(item)))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            of = getattr(value, field.name)
            less = (None, *smaller(of)) if isinstance(of, Rule) else smaller(of)
            yield from (dataclasses.replace(value, **{field.name: part}) for part in less if part != ())
    elif isinstance(value, str):
        yield from (SIMPLER[value],) if value in SIMPLER else ()
    elif isinstance(value, bool):
        yield from (False,) if value else ()
    elif isinstance(value, int) and value:
        yield from sorted({0, value - 1})


def show(value: Any) -> str:
    """A program, or a part of one, as Python without what is as it is by default."""
    if isinstance(value, dict):
        return "\n".join(f"{path}: {show(actions)}," for path, actions in value.items() if actions)
    if isinstance(value, tuple):
        return f"({', '.join(map(show, value))}{',' * (len(value) == 1)})"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
    told = (f"{field.name}={show(of)}" for field, of in fields if of != field.default)
    return f"{type(value).__name__}({', '.join(told)})"
