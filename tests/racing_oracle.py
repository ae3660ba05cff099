"""The oracle of `racing.Racing`: lines of threads, groups and decisions, from the text of the rules.

A line of a group takes its step when no other that may step is at a smaller clock, and not beyond a decision that is not taken yet.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

import oracle
from apr_jax.record import Stop
from line_oracle import Group, Line, Thread

END, EVENT = "end", "event"  # what a line waits to be decided


class World(oracle.World):
    """Lines instead of single threads."""

    def begin(self, key: jax.Array, prompt: Sequence[int], protocol: Any, program: None) -> Thread:
        assert program is None, "this world has programs of its own"
        self.protocol, self.lines, self.decisions = protocol, [], []
        root = Thread((), None, key)
        self.add(Line(root, None, False), prompt)
        return root

    def add(self, line: Line, fed: Sequence[int]) -> None:
        line.program = self.play(line, fed)
        self.lines.append(line)
        next(line.program)  # to its first token

    def play(self, line: Line, fed: Sequence[int]) -> Iterator:
        return _play(self, line, fed, self.protocol)

    def sample(self, line: Line) -> oracle.Entry:
        entry = super().sample(line.thread)
        for group in line.groups():
            group.counted.append(entry.predictor.clock)
        return entry

    def may_step(self, line: Line) -> bool:
        if not line.runs or (line.looks and line.thread.ahead()):
            return False
        for group in line.groups():
            others = [other.next_clock for other in group.inside() if other.runs]
            if min(others) < line.next_clock or group.limit() < int(line.next_clock):
                return False
        return True

    def loop(self, rng: np.random.Generator | None) -> None:
        while not all(line.ended for line in self.lines):
            moves = self.moves()
            moves[0 if rng is None else int(rng.integers(len(moves)))]()

    def moves(self) -> list[Callable[[], None]]:
        """What may happen next. Nobody outside of a group depends on when what is due in it is done; those inside wait for it."""
        done = [line for line in self.lines if line.waits is not None and all(other.ended for other in line.waits)]
        joins = [lambda line=line: self.resume(line) for line in done]
        if any(line.groups() for line in done):
            return joins
        due = self.due()
        ready = [line for line in self.lines if self.may_step(line) and not {*line.groups()} & {*due}]
        return [*joins, *due.values(), *(lambda line=line: self.step(line) for line in ready)]

    def resume(self, line: Line) -> None:
        line.waits = None
        self.step(line)

    def step(self, line: Line) -> None:
        wish = next(line.program, None)
        if isinstance(wish, str):
            line.decides = wish
        elif wish:
            line.waits = wish
        assert wish is not None or line.ended

    # ---- decisions

    def due(self) -> dict[Group | Line, Callable[[], None]]:
        """In every group that stands in no other, the first decision, if nobody can precede it; also those of lines in no group."""
        found = []
        for line in self.lines:
            if line.decides and not line.ended:
                level = len(line.parent.thread.path) if line.parent else -1
                groups = line.groups()
                found.append(((line.stands_at, level, 0, line.thread.path), line, groups[-1] if groups else line))
        for group in {id(line.group): line.group for line in self.lines if line.group}.values():
            if group.used_up() and not all(line.ended for line in group.members):
                path = group.boss.thread.path
                found.append(((group.used_up(), len(path), 1, path), group, [group, *group.boss.groups()][-1]))
        first = {}
        for (clock, *_), what, scope in sorted(found, key=lambda item: item[0]):
            first.setdefault(scope, (clock, what))
        return {
            scope: lambda clock=clock, what=what: self.settle(what, clock)
            for scope, (clock, what) in first.items()
            if isinstance(scope, Line) or all(line.next_clock >= clock + 1 for line in scope.inside() if line.runs)
        }

    def settle(self, what: Line | Group, clock: int) -> None:
        if isinstance(what, Group):
            self.decisions.append("shared")
            self.use_up(what, clock)
            return
        decides, what.decides = what.decides, None
        if decides == EVENT:
            others = [line for line in what.group.members if line is not what and not line.ended] if what.group else []
            if others:
                self.decisions.append("kill")
                self.kill(others[-1])
        elif what.group.contested and what.group.arrive(what):
            self.decide(what.group)
        self.step(what)

    def decide(self, group: Group) -> None:
        """End a race, or let those who have not ended run on alone."""
        self.decisions.append("rest" if group.rest else "first")
        self.decisions += [f"{len(group.arrived)} ends suffice"] * (len(group.arrived) > 1)
        group.over = not group.rest
        for rival in group.members:
            if rival.ended or rival in group.arrived:
                continue
            if not group.rest:
                self.kill(rival)
                continue
            rival.beside = True
            if rival in group.awaited:
                self.decisions.append("let go")
                group.awaited.remove(rival)

    def use_up(self, group: Group, clock: int) -> None:
        kills = group.contested and not group.rest
        group.over = True
        count = max(line.thread.count for line in group.members if not line.killed)
        for line in group.members:
            if line.ended or line.flushes:
                continue
            line.due, line.thread.floor = count, max(line.thread.floor, clock)
            if kills:
                self.kill(line)
                continue
            for child in line.children:
                self.kill(child)
            self.drop(line)
            line.waits = line.decides = None
            line.stop = Stop.SHARED
            line.program = _last(line)
            self.step(line)

    def kill(self, line: Line) -> None:
        for other in line.with_descendants():
            if not other.ended:
                self.drop(other)
                other.thread.stop, other.waits, other.decides = Stop.KILLED, None, None

    def drop(self, line: Line) -> None:
        """The children that it opened and never started."""
        started = [child.threads[0] for child in line.children]
        for child in line.thread.children:
            if child not in started and child.stop is None:
                child.stop = Stop.DROPPED


def _last(line: Line) -> Iterator:
    """Feed the last token if somebody will see it, and end."""
    if line.flushed:
        yield from line.feed_unfed()
    line.thread.stop = line.stop


def _play(world: World, line: Line, fed: Sequence[int], protocol: Any) -> Iterator:
    """The program of a line. It yields before it feeds a token, with the lines it waits for, or what is to be decided."""
    yield from line.feed(fed)
    isolated, depth = protocol.context == "isolated", len(line.thread.path)
    opened: list[tuple[Thread, list[int]]] = []
    returns: int | None = None
    while True:
        thread = line.thread
        entry = world.sample(line)
        token = entry.token
        waiting, turning = token == protocol.wait and bool(opened), token == protocol.turn
        cutting = token == protocol.cut and not (protocol.context == "live" and depth)
        if token == protocol.end:
            line.stop = Stop.MALFORMED if opened else Stop.END
        elif (
            token == protocol.spawn
            and depth >= protocol.max_depth
            or token == protocol.wait
            and not opened
            or (turning or cutting)
            and opened
        ):
            line.stop = Stop.MALFORMED
        elif token == protocol.spawn:
            opened.append((thread.open(), []))
        elif turning:
            seen = [other for other in thread.seen if protocol.keeps or other is not thread]
            line.go_on(seen, thread.next_position + (0 if protocol.keeps else 3))
            returns = None
        elif cutting:
            line.split(len(thread.entries) // 2, world.problem.id % 2 == 1, thread.next_position + 2, world)
            returns = None
        elif not waiting:
            if opened:
                opened[-1][1].append(token)
            if token == protocol.join and depth and returns is None:
                returns = len(thread.entries)
            if token == protocol.kill:
                yield EVENT
        if line.stop is None and not waiting and world.spent(line.thread):
            line.stop = Stop.LENGTH
        if line.stop is not None:
            break
        if turning or cutting:
            yield from line.feed([token, protocol.go] if turning else [protocol.go])
            continue
        if not (waiting and isolated):
            yield from line.feed_unfed()
        if not waiting:
            continue
        returns = None if protocol.renew else returns
        message = yield from _fork_and_join(world, line, opened, protocol)
        opened = []
        if world.spent(line.thread):
            line.stop = Stop.LENGTH
            break
        yield from line.feed_unfed()
        yield from line.feed(message)
    if line.stop == Stop.END and returns is not None:
        line.thread.message = [entry.token for entry in line.thread.entries[returns:-1]]
    if line.group and line.group.contested:
        yield END
    yield from _last(line)
    world.drop(line)


def _fork_and_join(world: World, line: Line, opened: Sequence, protocol: Any) -> Iterator:
    """Start children and wait for them; returns what the parent is fed then."""
    saw, threads = list(line.thread.seen), [thread for thread, _ in opened]
    oracle._fork(line.thread, threads, protocol.context)
    born = [Line(thread, line, protocol.returns == "stitch") for thread in threads]
    line.children += born
    line.outstanding += born
    if protocol.races or protocol.live:
        shared = protocol.shared and protocol.shared + world.problem.id % 4
        group = Group(line, born, enough=int(protocol.first), shared=shared)
        for child in born:
            child.group = group
            child.together = protocol.together > 0
        if 0 < protocol.together < len(born):
            world.decisions.append("crowded")
    for child, (_, message) in zip(born, opened, strict=True):
        world.add(child, [protocol.spawn, *message, protocol.go])
    yield born
    alive = line.join(born)
    for child in alive:
        if child.flushed:
            line.thread.stitch(child.thread)
    if protocol.renew:
        old = line.thread
        line.go_on([other for other in old.seen if other is not old], old.next_position)
        old.seen = saw  # it has not come to see them
    texts: list[list[int]] = []
    if protocol.returns == "message":
        texts = [[protocol.result, *child.thread.message] for child in alive]
    return [*(token for text in texts for token in text), protocol.go]
