"""Lines of threads and the groups they stand in, for the oracles: `racing_oracle` runs and decides them.

A line is a thread and those that continue it. A child that was started is *outstanding* until its parent's line joins it,
whether it runs, has ended or was killed. A group are children of one fork of which an event of one may end another, or who
see each other while they write.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import oracle
from apr_jax.record import Source, Stop
from oracle import Entry

if TYPE_CHECKING:
    from racing_oracle import World


class Thread(oracle.Thread):
    """A thread that may go on as another; that one stands in the place of its children then."""

    offset = 0  # tokens that the threads of its line before it were fed
    handed: int | None = None  # the copy of another thread's token that it is fed first

    @property
    def done(self) -> int:
        return self.offset + len(self.own)

    @property
    def stands_at(self) -> int:
        """The clock that it has come to: that of its last token, or a later one that it waited for."""
        return max(self.clock, self.floor)

    @property
    def unfed(self) -> Entry | None:
        """The token that it sampled last, if that was not fed."""
        return self.entries[-1] if self.entries and self.entries[-1].index < 0 else None

    def ahead(self) -> bool:
        return any(other.stop is None and other.done < self.done for other in self.live)

    def feed(self, entry: Entry) -> None:
        assert not self.ahead()
        entry.index, entry.position, entry.clock = len(self.own), self.next_position, 1 + self.stands_at
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
    """A line of reasoning: its threads, of which the last one runs.

    Attributes:
        flushed: its last token is fed, because it will be seen.
        holds: its threads stay after its join, so that others may go on from them.
        beside: its parent does not wait for it, or no longer, since the fork.
        waits: the lines that it waits for now.
        decides: what it waits to be decided.
        stop: why it ends, set while it has to wait for that, too.
        due: the count of those who brought about that it was ended.
    """

    def __init__(self, thread: Thread, parent: "Line | None", flushed: bool, holds: bool = False):
        self.threads, self.parent, self.flushed, self.holds = [thread], parent, flushed, holds
        self.children: list[Line] = []
        self.outstanding: list[Line] = []
        self.opened: list[Thread] = []  # children that were not started
        self.held: list[Line] = []  # children that hold, joined and not killed
        self.program: Iterator = iter(())
        self.waits: list[Line] | None = None
        self.decides: str | None = None
        self.stop: Stop | None = None
        self.group: Group | None = None
        self.beside = self.together = self.looks = False
        self.due = 0

    @property
    def thread(self) -> Thread:
        return self.threads[-1]

    @property
    def ordinal(self) -> tuple[int, ...]:
        return self.thread.path[-1:]

    @property
    def ended(self) -> bool:
        return self.thread.stop is not None

    @property
    def killed(self) -> bool:
        return self.thread.stop == Stop.KILLED

    @property
    def runs(self) -> bool:
        return not (self.ended or self.decides or self.waits is not None)

    @property
    def flushes(self) -> bool:
        """Whether it has nothing to do but to feed its last token."""
        return self.runs and self.stop is not None

    @property
    def stands_at(self) -> int:
        """The clock of what it decides: a thread that was not fed anything yet is as late as what it goes on from."""
        return self.thread.stands_at

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
        return max(thread.stands_at for line in self.with_descendants() for thread in line.threads)

    def sees(self, thread: Thread) -> bool:
        return any(thread in own.seen for own in self.threads)

    # ---- feeding

    def feed(self, tokens: Sequence[int], source: Source = Source.FED) -> Iterator:
        for token in tokens:
            yield []
            entry = Entry(int(token), source=source)
            self.thread.entries.append(entry)
            self.thread.feed(entry)
            yield from self.meet()
            entry.depth = self.thread.count

    def feed_handed(self) -> Iterator:
        token, self.thread.handed = self.thread.handed, None
        yield from self.feed([] if token is None else [token], Source.HANDED)

    def feed_unfed(self) -> Iterator:
        """Feed the token that was sampled last, if that was not done yet."""
        if self.thread.unfed is not None:
            yield []
            self.thread.feed(self.thread.unfed)
            yield from self.meet()

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

    # ---- joins

    def join(self, waited: Sequence["Line"]) -> list["Line"]:
        """Take clock and count from lines that were waited for, which are outstanding no longer; returns who was not killed."""
        thread, alive = self.thread, [line for line in waited if not line.killed]
        thread.floor = max([thread.floor, *(line.latest() for line in waited)])
        thread.count = max([thread.count, *(line.thread.count for line in alive), *(line.due for line in waited)])
        self.outstanding = [line for line in self.outstanding if line not in waited]
        return alive

    # ---- going on as another thread

    def go_on(self, seen: Sequence[Thread], position: int) -> None:
        """Go on as a new thread that sees those threads and its live siblings."""
        old = self.thread
        new = Thread(old.path, old.parent, old.key)
        new.children, new.uniforms, new.generated, new.count = old.children, old.uniforms, old.generated, old.count
        new.floor, new.next_position, new.segment = old.stands_at, position, old.segment + 1
        new.offset, new.live, new.follows = old.done, list(old.live), old.follows
        new.seen = [*dict.fromkeys([*seen, *old.live, new])]
        for other in {id(other): other for other in old.live}.values():
            other.live.append(new)
            other.seen.append(new)
        for thread in (*self.opened, *(thread for line in self.outstanding for thread in line.threads)):
            thread.parent = new if thread.stop != Stop.SPLIT else thread.parent
        old.children, old.stop = [new], Stop.CONTINUED
        self.threads.append(new)

    def go_on_after(self) -> None:
        """Go on as a new thread that sees the old one, and is handed its unfed token."""
        old = self.thread
        self.go_on(old.seen, old.next_position)
        self.thread.handed = old.handed if old.unfed is None else old.unfed.token

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
        head.floor = head.stands_at  # the line is later than what it loses
        head.entries, tail.entries = head.entries[:start], head.entries[start:]
        for thread in (head, tail):
            thread.own = [entry for entry in thread.entries if entry.index >= 0]
        self.threads.insert(-1, tail)
        seen = [thread for thread in tail.seen if thread is not (head if forgets_head else tail)]
        self.go_on(seen, position)


@dataclasses.dataclass(eq=False)
class Group:
    """Children of a fork that keep pace, with all below them.

    Attributes:
        boss: their parent.
        members: the children.
        enough: so many ends decide it; 0: ends do not, but for `bound`.
        bound: it is decided too when those who have ended have generated so many tokens; 0: any number.
        rest: whoever has not ended when it is decided runs on.
        shared: tokens that all in it may sample; 0: any number.
        awaited: the members that the parent waits for since the fork.
        decided: later ends decide nothing.
        over: nobody keeps pace in it, and its budget is none.
    """

    boss: Line
    members: list[Line]
    enough: int = 0
    bound: int = 0
    rest: bool = False
    shared: int = 0
    awaited: list[Line] = dataclasses.field(default_factory=list)
    decided: bool = False
    over: bool = False
    arrived: list[Line] = dataclasses.field(default_factory=list)
    counted: list[int] = dataclasses.field(default_factory=list)  # clocks of the rows that sampled in it

    @property
    def contested(self) -> bool:
        return bool(self.enough or self.bound) and not (self.decided or self.over)

    def inside(self) -> list[Line]:
        return [line for member in self.members for line in member.with_descendants()]

    def arrive(self, line: Line) -> bool:
        """Whether the race is decided now that this member has ended."""
        self.arrived.append(line)
        generated = sum(member.thread.generated for member in self.arrived if not member.killed)
        self.decided = 0 < self.enough <= len(self.arrived) or 0 < self.bound <= generated
        return self.decided

    def used_up(self) -> int | None:
        """The clock at which its budget was used up."""
        spent = self.shared and len(self.counted) >= self.shared and not self.over
        return max(self.counted) if spent else None

    def limit(self) -> float:
        """The largest clock that may be fed before a decision."""
        decisions = [line.stands_at for line in self.members if line.decides]
        return min([float("inf"), *decisions, *filter(None, [self.used_up()])])
