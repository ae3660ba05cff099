"""What programs of threads (`thread_programs`) must give: an interpreter of the tree.

It is written on the lines of `racing_oracle`, in direct style, and knows neither the numbers that a program is encoded in nor
the engine's book.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import oracle
import thread_programs as programs
from apr_jax.decode import Stop, Transcript
from line_oracle import Group, Line, Thread
from racing_oracle import END, EVENT, World, _last
from reference_model import Forward, draw
from thread_programs import Action, Beside, Body, Context, Instruction, Join, Which


@dataclasses.dataclass(frozen=True)
class Kept:
    """How long the slots of a line are kept after its end, by whom sees it not.

    Attributes:
        joined: until its parent joins it.
        always: until the problem ends,
        ended: or until its parent has ended, if that is the first to wait for it.
    """

    joined: bool = False
    always: bool = False
    ended: bool = False


@dataclasses.dataclass(frozen=True)
class Expected:
    """What is right if nothing runs out.

    Attributes:
        transcript: the record.
        pieces: pieces of messages that were composed.
        kept: by path.
        events: what happened, in words.
    """

    transcript: Transcript
    pieces: int
    kept: dict[tuple[int, ...], Kept]
    events: frozenset[str] = frozenset()


class _Line(Line):
    """A line that runs a program."""

    def __init__(self, thread: Thread, body: Body, parent: Line | None = None, seen: bool = False, holds: bool = False):
        super().__init__(thread, parent, seen, holds)
        self.body, self.live = body, False
        self.bodies: list[Body] = []  # of the children that are opened


class _World(World):
    """A world that also counts pieces of messages, and notes what happens."""

    def __init__(self, together: bool, *arguments: Any):
        super().__init__(*arguments)
        self.together, self.lines, self.decisions = together, [], []
        self.pieces, self.kept, self.events = 1, {(): Kept()}, set()

    def play(self, line: _Line, fed: Sequence[int]) -> Iterator:
        return _play(self, line, fed)


def run(
    forward: Forward,
    problem: Any,
    body: Body,
    seed: int,
    rng: np.random.Generator | None = None,
    together: bool = False,
    choose: oracle.Choose = lambda thread, logits, uniform, problem: draw(logits, uniform, problem),
) -> Expected:
    """Interpret one problem, whose program is `body`; see `oracle.run`. `together`: see `Programs`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), problem.id), problem.sample)
    world, root = _World(together, forward, problem, choose), Thread((), None, key)
    world.add(_Line(root, body), [int(token) for token in problem.prompt])
    world.loop(rng)
    transcript, events = oracle._record(root, problem, together), {*world.events, *world.decisions}
    return Expected(transcript, world.pieces, world.kept, frozenset(events))


# ---- one line, from its header to its end


def _play(world: _World, line: _Line, fed: Sequence[int]) -> Iterator:
    yield from line.feed_handed()
    yield from line.feed(fed)
    for place, now in enumerate(line.body):
        message: list[int] = []
        yield from _say(world, line, now)
        if line.stop is None:
            message = yield from _act(world, line, now)
        if line.stop is None and line.body[place + 1].say and world.spent(line.thread):
            line.stop = Stop.LENGTH
        if line.stop is not None:
            break
        yield from line.feed_handed()
        if message:
            yield from line.feed_unfed()
        yield from line.feed(message)
    yield from _end(world, line)


def _say(world: _World, line: _Line, now: Instruction) -> Iterator:
    """Sample until it has said so many events, or its budget is used up before."""
    left = now.say
    while left:
        yield from line.feed_unfed()
        left -= world.sample(line).token >= programs.FIRST_EVENT
        if left and world.spent(line.thread):
            line.stop = Stop.LENGTH
            return


def _end(world: _World, line: _Line) -> Iterator:
    """It ends later than all that it has not joined, and when that is decided."""
    world.drop(line)
    if line.outstanding:
        waited = list(line.outstanding)
        yield waited
        line.join(waited)
        line.thread.floor = line.thread.stands_at + 1
        world.events.add("waits before its end")
        for child in waited:
            path = child.thread.path
            world.kept[path] = dataclasses.replace(world.kept[path], ended=True)
    if line.group and line.group.contested:
        yield END
    yield from _last(line)


def _act(world: _World, line: _Line, now: Instruction) -> Iterator:
    """Do what an instruction says; returns what the line is fed then."""
    if now.action in (Action.END, Action.FAIL):
        line.stop = Stop.END if now.action == Action.END else Stop.MALFORMED
    elif now.action == Action.OPEN:
        _open(line, now)
    elif now.action == Action.FORK:
        return (yield from _fork(world, line, now))
    elif now.action == Action.WAIT:
        return (yield from _wait(world, line, now))
    elif now.action == Action.KILL:
        yield EVENT
    elif now.action == Action.CUT and _looked_at(line):
        world.events.add("cut refused")
    elif now.action in (Action.TURN, Action.CUT):
        return _turn(world, line, now)
    return []


def _looked_at(line: _Line) -> bool:
    """Whether somebody sees it who may still write, or a child that it has not joined does."""
    return line.live or any(child.sees(line.thread) for child in line.outstanding)


def _turn(world: _World, line: _Line, now: Instruction) -> list[int]:
    """Go on as a new thread, after a split or without; returns what it is fed."""
    old, position = line.thread, line.thread.next_position
    quoted = _quote(old, now.quote)
    world.pieces += 2
    if now.action == Action.CUT:
        line.split(len(old.entries) // 2, not now.keeps, position, world)
        return _footer()
    line.go_on([other for other in old.seen if now.keeps or other is not old], position)
    return [*quoted, *_footer()]


# ---- forks and joins


def _open(line: _Line, now: Instruction) -> None:
    line.opened += [line.thread.open() for _ in now.children]
    line.bodies += now.children


def _fork(world: _World, line: _Line, now: Instruction) -> Iterator:
    """Start the children that are opened; returns what the parent is fed when it has joined those it waits for."""
    if now.flush:
        yield from line.feed_unfed()
    _open(line, now)
    if not line.opened:
        line.stop = Stop.MALFORMED
        return []
    awaited = {Beside.NOBODY: len(line.opened), Beside.YOUNGER: 1, Beside.ALL: 0}[now.beside]
    born = _start(world, line, now, awaited)
    if awaited:
        return (yield from _join(world, line, born[0].group.awaited if born[0].group else born[:awaited], now))
    world.events.add("fork beside")
    if any(child.sees(line.thread) for child in born):
        world.events.add("fork on a new thread")
        line.go_on_after()
    if line.thread.unfed is not None or line.thread.handed is not None:
        return []
    world.pieces += 1
    return _footer()


def _start(world: _World, line: _Line, now: Instruction, awaited: int) -> list[_Line]:
    """Start the children that are opened; the parent waits for the first `awaited` of them."""
    thread, threads, bodies = line.thread, line.opened, line.bodies
    line.opened, line.bodies = [], []
    seen = {Join.STITCH: threads, Join.REENCODE: threads[:1]}.get(now.join, [])
    born = [_Line(child, body, line, child in seen, now.holds) for child, body in zip(threads, bodies, strict=True)]
    context = _inherit(world, line, threads, now)
    line.children += born
    line.outstanding += born
    live = now.context == Context.LIVE
    if now.race or live:
        group = Group(line, born, now.enough, now.bound, now.rest, now.shared, awaited=born[:awaited])
        for child in born:
            child.group, child.live, child.together = group, live, live and world.together
    for child in born[awaited:]:
        child.beside = True
    for child in born:
        if now.hand and context.unfed is not None:
            child.thread.handed = context.unfed.token
            world.events.add("handed by a held context" if child.thread.follows else "handed")
        begin = child.thread.path[-1] % programs.HEADERS
        world.kept[child.thread.path] = Kept(child.flushed, child.holds)
        world.pieces += 2
        world.add(child, [*_quote(thread, now.quote), *programs.TEMPLATES[begin : begin + now.header]])
    return born


def _inherit(world: _World, line: _Line, threads: Sequence[Thread], now: Instruction) -> Thread:
    """Let children go on from the thread that forks, or from a line that it has joined; returns which."""
    oracle._fork(line.thread, threads, now.context.name.lower())
    held = sorted(line.held, key=lambda child: child.ordinal)
    if not now.source or not held:
        return line.thread
    context = held[(now.source - 1) % len(held)].thread
    world.events.add("held context")
    for child in threads:
        child.seen = [*(other for other in context.seen if other not in context.live), child]
        child.floor, child.count = max(child.floor, context.stands_at), max(child.count, context.count)
        child.next_position, child.follows = context.next_position, context
    return context


def _wait(world: _World, line: _Line, now: Instruction) -> Iterator:
    chosen = {Which.ALL: slice(None), Which.ELDEST: slice(1), Which.YOUNGEST: slice(-1, None)}[now.which]
    waited = sorted(line.outstanding, key=lambda child: child.ordinal)[chosen]
    world.events.add(f"wait for {now.which.name.lower()}" if waited else "wait for nobody")
    if waited:
        return (yield from _join(world, line, waited, now))
    world.pieces += 1
    return _footer()


def _join(world: _World, line: _Line, waited: list[_Line], now: Instruction) -> Iterator:
    """Wait for children; returns what the parent is fed then. A race may take some of them out of `waited` meanwhile."""
    yield waited
    looking = any(child.sees(line.thread) for child in line.outstanding if child not in waited)
    if looking or any(_brings_earlier(child) for child in waited):
        world.events.add("join on a new thread")
        line.go_on_after()
    alive = line.join(waited)
    line.held += [child for child in alive if child.holds]
    for child in alive:
        if child.flushed:
            line.thread.stitch(child.thread)
    return _told(world, [child for child in alive if not child.flushed], now)


def _brings_earlier(child: _Line) -> bool:
    """Whether with a line that is joined its parent, or who goes on from it, may see tokens older than the parent's last ones."""
    late = child.beside or child.thread.follows is not None
    return late and (child.flushed or child.holds) and not child.killed


def _told(world: _World, children: Sequence[_Line], now: Instruction) -> list[int]:
    """What the parent is fed of those that it does not see."""
    text = [[entry.token for entry in child.thread.entries] for child in children]
    told: list[list[int]] = []
    if now.join == Join.MESSAGE:
        told = [[programs.TEMPLATES[programs.RESULT], *words[max(len(words) - now.message, 0) :]] for words in text]
    if now.join == Join.REENCODE:
        told = text
    world.pieces += 2 * len(told) + 1
    return [*(token for words in told for token in words), *_footer()]


def _quote(thread: Thread, count: int) -> list[int]:
    return [entry.token for entry in thread.entries[max(len(thread.entries) - count, 0) :]]


def _footer() -> list[int]:
    return [programs.TEMPLATES[programs.FOOTER]]
