"""The oracle of `racing.Racing`: lines of threads, groups and decisions, from the text of the rules.

A line of a group takes its step when no other that may step is at a smaller clock, and not beyond a decision that is not taken yet.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import oracle
from apr_jax.record import Stop

END, EVENT = "end", "event"  # what a line waits to be decided


class Thread(oracle.Thread):
    """A thread that may go on as another; that one stands in the place of its children then."""

    offset = 0  # tokens that the threads of its line before it were fed

    @property
    def done(self) -> int:
        return self.offset + len(self.own)

    def ahead(self) -> bool:
        return any(other.stop is None and other.done < self.done for other in self.live)

    def feed(self, entry: oracle.Entry) -> None:
        assert not self.ahead()
        entry.index, entry.position, entry.clock = len(self.own), self.next_position, 1 + max(self.clock, self.floor)
        self.own.append(entry)
        self.next_position += 1
        self.look(self.done - 1)

    def look(self, upto: int) -> None:
        """See what there is, of a live line over all its threads the first so many tokens."""
        entry = self.own[-1]
        views = [other.own[: max(upto - other.offset, 0)] if other in self.live else other.own for other in self.seen]
        entry.sees = [seen for view in views for seen in view]
        entry.mates = [seen for seen in entry.sees if seen.clock == entry.clock]
        earlier = [seen.depth for seen in entry.sees if seen.clock < entry.clock or seen is entry]
        self.count = max([self.count, *earlier])


class Line:
    """A line of reasoning: its threads, of which the last one runs."""

    def __init__(self, thread: Thread, parent: "Line | None", flushed: bool):
        self.threads, self.parent, self.flushed = [thread], parent, flushed
        self.children: list[Line] = []
        self.program: Iterator = iter(())
        self.waits: list[Line] | None = None
        self.decides: str | None = None
        self.stop: Stop | None = None  # set while its end awaits a decision, too
        self.group: Group | None = None
        self.together = self.looks = False

    @property
    def thread(self) -> Thread:
        return self.threads[-1]

    @property
    def ended(self) -> bool:
        return self.thread.stop is not None

    @property
    def runs(self) -> bool:
        return not (self.ended or self.decides or self.waits)

    @property
    def stands_at(self) -> int:
        """The clock of what it decides: a thread that was not fed anything yet is as late as what it goes on from."""
        return max(self.thread.clock, self.thread.floor)

    @property
    def next_clock(self) -> float:
        """Half a clock less while it waits for those that go with it."""
        return 1 + self.stands_at - self.looks / 2

    def with_descendants(self) -> list["Line"]:
        return [self, *(line for child in self.children for line in child.with_descendants())]

    def groups(self) -> list["Group"]:
        """The groups around it that are not over, the outermost last."""
        above = self.parent.groups() if self.parent else []
        return ([self.group] if self.group and not self.group.over else []) + above

    def latest(self) -> int:
        return max(thread.clock for line in self.with_descendants() for thread in line.threads)

    def feed(self, tokens: Sequence[int]) -> Iterator:
        for token in tokens:
            yield []
            entry = oracle.Entry(int(token))
            self.thread.entries.append(entry)
            self.thread.feed(entry)
            yield from self.meet()
            entry.depth = self.thread.count

    def meet(self) -> Iterator:
        """Lines that go together wait until all of them were fed this clock, and see each other's tokens."""
        if not self.together:
            return
        self.looks = True
        yield []
        self.looks = False
        for mate in (self.thread, *self.thread.live):
            if mate.clock == self.thread.clock:
                mate.look(mate.done)

    def go_on(self, seen: Sequence[Thread], position: int) -> None:
        """Go on as a new thread that sees those threads and its live siblings."""
        old = self.thread
        new = Thread(old.path, old.parent, old.key)
        new.children, new.uniforms, new.generated, new.count = old.children, old.uniforms, old.generated, old.count
        new.floor, new.next_position, new.segment = max(old.clock, old.floor), position, old.segment + 1
        new.offset, new.live = old.done, list(old.live)
        new.seen = [*dict.fromkeys([*seen, *old.live, new])]
        for other in {id(other): other for other in old.live}.values():
            other.live.append(new)
            other.seen.append(new)
        old.children, old.stop = [new], Stop.CONTINUED
        self.threads.append(new)

    def split(self, start: int, forgets_head: bool, position: int, world: "World") -> None:
        """Cut the thread in two, and go on as a third that sees one of them."""
        head = self.thread
        onlookers = [
            thread for line in world.lines for thread in line.threads if head in thread.seen and thread != head
        ]
        assert all(thread.stop is not None for thread in onlookers)
        tail = head.open()
        tail.stop, tail.seen = Stop.SPLIT, [*head.seen, tail]
        for thread in onlookers:
            thread.seen.append(tail)
        head.floor = max(head.floor, head.clock)  # the line is later than what it loses
        head.entries, tail.entries = head.entries[:start], head.entries[start:]
        for thread in (head, tail):
            thread.own = [entry for entry in thread.entries if entry.index >= 0]
        self.threads.insert(-1, tail)
        seen = [thread for thread in tail.seen if thread is not (head if forgets_head else tail)]
        self.go_on(seen, position)


@dataclasses.dataclass(eq=False)
class Group:
    boss: Line
    members: list[Line]
    first: bool
    shared: int
    over: bool = False
    counted: list[int] = dataclasses.field(default_factory=list)  # clocks of the rows that sampled in it

    def inside(self) -> list[Line]:
        return [line for member in self.members for line in member.with_descendants()]

    def used_up(self) -> int | None:
        """The clock at which its budget was used up."""
        spent = self.shared and len(self.counted) >= self.shared and not self.over
        return sorted(self.counted)[self.shared - 1] if spent else None

    def bound(self) -> float:
        """The largest clock that may be fed before a decision."""
        decisions = [line.stands_at for line in self.members if line.decides]
        return min([float("inf"), *decisions, *filter(None, [self.used_up()])])


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
            if min(others) < line.next_clock or group.bound() < int(line.next_clock):
                return False
        return True

    def loop(self, rng: np.random.Generator | None) -> None:
        while not all(line.ended for line in self.lines):
            joining = [
                line for line in self.lines if not line.ended and line.waits and all(w.ended for w in line.waits)
            ]
            if joining:
                joining[0].waits = None
                self.step(joining[0])
            elif not self.decide():
                ready = [line for line in self.lines if self.may_step(line)]
                self.step(ready[0] if rng is None else ready[int(rng.integers(len(ready)))])

    def step(self, line: Line) -> None:
        wish = next(line.program, None)
        if isinstance(wish, str):
            line.decides = wish
        elif wish:
            line.waits = wish
        assert wish is not None or line.ended

    # ---- decisions

    def decide(self) -> bool:
        """Take the first decision that nobody can precede."""
        found = []
        for line in self.lines:
            if line.decides and not line.ended:
                level = len(line.parent.thread.path) if line.parent else -1
                found.append(((line.stands_at, level, 0, line.thread.path), line, line.groups()))
        for group in {id(line.group): line.group for line in self.lines if line.group}.values():
            if group.used_up() and group.boss.waits:
                path = group.boss.thread.path
                found.append(((group.used_up(), len(path), 1, path), group, [group, *group.boss.groups()]))
        for (clock, *_), what, groups in sorted(found, key=lambda item: item[0]):
            if not groups or all(line.next_clock >= clock + 1 for line in groups[-1].inside() if line.runs):
                self.settle(what, clock)
                return True
        return False

    def settle(self, what: Line | Group, clock: int) -> None:
        if isinstance(what, Group):
            self.decisions.append("shared")
            self.use_up(what, clock)
        elif what.decides == EVENT:
            what.decides = None
            siblings = what.parent.waits if what.parent else []
            others = [line for line in siblings if line is not what and not line.ended]
            if others:
                self.decisions.append("kill")
                self.kill(others[-1])
            self.step(what)
        else:
            self.decisions.append("first")
            what.decides, what.group.over = None, True
            for rival in what.group.members:
                if rival is not what and not rival.ended:
                    self.kill(rival)
            self.step(what)

    def use_up(self, group: Group, clock: int) -> None:
        group.over = True
        boss = group.boss.thread
        alive = [line for line in group.members if line.thread.stop != Stop.KILLED]
        boss.count = max([boss.count, *(line.thread.count for line in alive)])
        boss.floor = max(boss.floor, clock)
        for line in group.members:
            if line.ended or (line.stop and not group.first):  # a flush goes on
                continue
            if group.first:
                self.kill(line)
                continue
            for child in line.children:
                self.kill(child)
            self.drop(line)
            line.thread.floor = max(line.thread.floor, clock)
            line.waits = line.decides = None
            line.stop = Stop.SHARED
            line.program = _last(line, line.thread.entries[-1] if line.thread.entries else None)
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


def _last(line: Line, entry: oracle.Entry | None) -> Iterator:
    """Feed the last token if somebody will see it, and end."""
    if line.flushed and entry is not None and entry.index < 0:
        yield []
        line.thread.feed(entry)
        yield from line.meet()
    line.thread.stop = line.stop


def _play(world: World, line: Line, fed: Sequence[int], protocol: Any) -> Iterator:
    """The program of a line. It yields before it feeds a token, with the lines it waits for, or what is to be decided."""
    yield from line.feed(fed)
    isolated, depth = protocol.context == "isolated", len(line.thread.path)
    opened: list[tuple[Thread, list[int]]] = []
    returns: int | None = None
    while True:
        thread = line.thread
        entry: oracle.Entry | None = world.sample(line)
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
            entry, returns = None, None
        elif cutting:
            line.split(len(thread.entries) // 2, world.problem.id % 2 == 1, thread.next_position + 2, world)
            entry, returns = None, None
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
            yield []
            thread.feed(entry)
            yield from line.meet()
        if not waiting:
            continue
        yield from _fork_and_wait(world, line, opened, protocol)
        opened = []
        alive = [child for child in line.children if child.thread.stop != Stop.KILLED and child in line.born]
        thread.floor = max([thread.floor, *(child.latest() for child in line.born)])
        thread.count = max([thread.count, *(child.thread.count for child in alive)])
        for child in alive:
            if child.flushed:
                thread.stitch(child.thread)
        if protocol.renew:
            line.go_on([other for other in thread.seen if other is not thread], thread.next_position)
            thread.seen = line.saw  # the old one has not come to see them
            entry, returns = None, None
        if world.spent(line.thread):
            line.stop = Stop.LENGTH
            break
        if isolated and not protocol.renew:
            yield []
            thread.feed(entry)
        texts: list[list[int]] = []
        if protocol.returns == "message":
            texts = [[protocol.result, *child.thread.message] for child in alive]
        yield from line.feed([*(token for text in texts for token in text), protocol.go])
    if line.stop == Stop.END and returns is not None:
        line.thread.message = [entry.token for entry in line.thread.entries[returns:-1]]
    if line.group and line.group.first and not line.group.over:
        yield END
    yield from _last(line, entry)
    world.drop(line)


def _fork_and_wait(world: World, line: Line, opened: Sequence, protocol: Any) -> Iterator:
    line.saw = list(line.thread.seen)
    oracle._fork(line.thread, [thread for thread, _ in opened], protocol.context)
    line.born = [Line(thread, line, protocol.returns == "stitch") for thread, _ in opened]
    line.children += line.born
    if protocol.races or protocol.live:
        shared = protocol.shared and protocol.shared + world.problem.id % 4
        group = Group(line, line.born, protocol.first, shared)
        for child in line.born:
            child.group = group
            child.together = protocol.together > 0
        if 0 < protocol.together < len(line.born):
            world.decisions.append("crowded")
    for child, (_, message) in zip(line.born, opened, strict=True):
        world.add(child, [protocol.spawn, *message, protocol.go])
    yield line.born
