"""The world of the simulator of threads: log entries, threads, lines and scopes; how they are born, and who sees what.

There are no tensors, tokens or positions: an entry of the log is where it came from, its clock, its count, and the entries that it
saw when it was fed. `simulator_lines` ends, continues and joins lines, `simulator_scopes` decides by clock, `simulator_actions`
does what programs say, `thread_simulator` runs all of it and checks what comes out.
"""

import collections
import dataclasses
import random
from bisect import bisect_left, bisect_right
from typing import Any

from simulator_programs import HELD_LINE, ISOLATED, Child, Fork, Join, Meet, Path, Rule

READY, WAITING, DECIDING, FINISHED = "ready", "waiting", "deciding", "finished"
SAMPLED, FED, HANDED = "sampled", "fed", "handed"
KILLED, CUT = "killed", "cut"


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Entry:
    """An entry of the log.

    Attributes:
        thread: its thread, another one after a split.
        number: its place in the log.
        predictor: of a sampled one: the entry from whose row it was sampled.
        original: of a handed one: the entry that it is a copy of.
        after: what its thread had waited for when it was fed: entries, and lines that had ended.
        clock: -1 until it is fed.
        count: on the critical path, up to its row; of one that is not fed, up to its sampling.
        saw: bits of the entries that its row saw.
        step: the step in which it was fed.
    """

    thread: "Thread"
    source: str
    number: int
    predictor: "Entry | None" = None
    original: "Entry | None" = None
    after: tuple = ()
    clock: int = -1
    count: int = 0
    saw: int = 0
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Sampling:
    """That a token was sampled, which says nothing of the row that it may be fed in later."""

    entry: Entry


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Thread:
    """A thread.

    Attributes:
        line, serial: its line, and its number among all threads of that.
        sees: threads that it may see beside itself.
        live: the scopes in which it is live, with the member that it belongs to.
        queue: entries that wait to be fed.
        then: what it does when they are: "sample", "act", "start" the children of a fork, or "end"; of one that waits for all its
            children: "end", or "meet" its siblings.
        unfed: the token that it sampled last, until it is fed, handed over or dropped.
        after: what it has waited for since it fed an entry.
        released, freed: nobody will read it any more but who sees it; its slots are gone.
        clocks, bits, counts: of its entries; bits and counts of the first n of them together.
    """

    line: "Line"
    serial: int
    sees: set["Thread"]
    live: dict["Scope", "Line"]
    entries: list[Entry] = dataclasses.field(default_factory=list)
    queue: list[Entry] = dataclasses.field(default_factory=list)
    status: str = READY
    then: str = "sample"
    unfed: Entry | None = None
    after: list = dataclasses.field(default_factory=list)
    released: bool = False
    freed: bool = False
    clocks: list[int] = dataclasses.field(default_factory=list)
    bits: list[int] = dataclasses.field(default_factory=lambda: [0])
    counts: list[int] = dataclasses.field(default_factory=lambda: [0])

    def append(self, entry: Entry) -> None:
        entry.thread = self
        self.entries.append(entry)
        self.clocks.append(entry.clock)
        self.bits.append(self.bits[-1] | 1 << entry.number)
        self.counts.append(max(self.counts[-1], entry.count))

    def replace(self, entries: list[Entry]) -> None:
        self.entries, self.clocks, self.bits, self.counts = [], [], [0], [0]
        for entry in entries:
            self.append(entry)

    def so_far(self) -> list:
        """What comes after all that the thread has done comes after this."""
        return [*self.after, *self.entries[-1:], *([Sampling(self.unfed)] if self.unfed else [])]

    def mates(self, other: "Thread", together: bool = False) -> bool:
        """Whether the two are live with each other; `together`: so that they see tokens of the same clock."""
        return any(
            other.live.get(scope, member) is not member and (scope.rule.live == 2 or not together)
            for scope, member in self.live.items()
        )

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.line.path)) or 'root'}#{self.serial}"


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Fact:
    """What a decision hands on to those who wait for what it ended.

    Attributes:
        clock: at which it was taken.
        count: of those who brought it about.
        by: what it comes after.
        scope: whose decision it was; None for that of a barrier.
    """

    clock: int
    count: int
    by: list
    scope: "Scope | None" = None


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Line:
    """A line of reasoning: a thread and those that continue it.

    Attributes:
        kind: how it began.
        scopes: all that it stands in, the outermost first; `scope`: the one that it is a member of, if any.
        threads: the last of them is the one that goes on; `opened`: how many there ever were.
        clock: the largest that it wrote or has to be later than. `count`: as an entry's.
        context: the threads that it saw at its birth.
        acted, sampled: actions that it took, tokens that it sampled.
        fork: that it will start when its last token is flushed.
        born: the children of that, where they do not wait for the flush.
        meets: what it waits for at a barrier; `mates`: those who meet there, itself among them.
        wait: what it waits for.
        samples_end: clock of the row that sampled its end.
        arrival: clock at which it ended, or at which what it did awaits a decision.
        striking: what awaits a decision is a strike.
        arrived: its end has been counted in its scope.
        ended: it is over, its last token fed. `joined`: its parent has waited for it.
        why: KILLED or CUT if a decision ended it, which is then the `fact`.
        held: its parent may make it a context.
    """

    parent: "Line | None"
    path: Path
    kind: Child = Child()
    scopes: tuple["Scope", ...] = ()
    scope: "Scope | None" = None
    threads: list[Thread] = dataclasses.field(default_factory=list)
    children: list["Line"] = dataclasses.field(default_factory=list)
    opened: int = 0
    clock: int = 0
    count: int = 0
    context: set[Thread] = dataclasses.field(default_factory=set)
    acted: int = 0
    sampled: int = 0
    fork: Fork | None = None
    born: list["Line"] = dataclasses.field(default_factory=list)
    meets: Meet | None = None
    mates: list["Line"] = dataclasses.field(default_factory=list)
    wait: "Wait | None" = None
    samples_end: int = 0
    arrival: int | None = None
    striking: bool = False
    arrived: bool = False
    ended: bool = False
    joined: bool = False
    why: str = ""
    fact: Fact | None = None
    held: bool = False

    @property
    def last(self) -> Thread:
        return self.threads[-1]

    @property
    def level(self) -> int:
        return len(self.path)

    def under(self, other: "Line") -> bool:
        return self.path[: other.level] == other.path

    def outstanding(self) -> list["Line"]:
        """The children that it has not waited for, whether they have ended or not."""
        return [child for child in self.children if not child.joined]


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Scope:
    """The members of one fork that have something to do with each other.

    Attributes:
        parent: the line that forked them.
        sampled: clocks of the rows that sampled a token in it or below.
        worth: weights of the ends that were counted.
        settled: it has nothing to decide any more, because of a `fact`, or because all its members have ended.
        chosen: the members that a wait for the decision is for.
    """

    parent: Line
    rule: Rule
    members: list[Line] = dataclasses.field(default_factory=list)
    sampled: list[int] = dataclasses.field(default_factory=list)
    worth: int = 0
    settled: bool = False
    fact: Fact | None = None
    chosen: list[Line] = dataclasses.field(default_factory=list)

    def settle(self, chosen: list[Line], fact: Fact | None = None) -> None:
        self.settled, self.chosen, self.fact = True, chosen, fact


@dataclasses.dataclass(frozen=True)
class Wait:
    """What a line waits for: some of the lines, or all; or those that the scope chooses. Without `join`: before its end."""

    lines: tuple[Line, ...]
    join: Join | None = None
    scope: Scope | None = None

    @property
    def need(self) -> int:
        return self.join.need if self.join and not self.scope else 0


class World:
    """One problem.

    Attributes:
        without: names of `simulator_rules.RULES` that are left out.
        rng: decides what the rules leave open.
        features: what happened how often.
    """

    def __init__(self, program: Any, without: frozenset[str], rng: random.Random):
        self.program, self.without, self.rng = program, without, rng
        self.threads: list[Thread] = []
        self.log: list[Entry] = []
        self.scopes: list[Scope] = []
        self.faults: list[str] = []
        self.features: collections.Counter[str] = collections.Counter()
        self.ranks: dict[Line, float] = {}
        self.step = 0
        self.root = Line(None, ())
        self.feed(self.open_thread(self.root, set(), {}), 2)

    def has(self, rule: str) -> bool:
        return rule not in self.without

    def rank(self, line: Line) -> float:
        """A random number for each line."""
        return self.ranks.setdefault(line, self.rng.random())

    def note(self, feature: str) -> None:
        self.features[feature] += 1

    def open_thread(self, line: Line, sees: set[Thread], live: dict[Scope, Line]) -> Thread:
        thread = Thread(line, line.opened, sees, live)
        line.opened += 1
        line.threads.append(thread)
        self.threads.append(thread)
        return thread

    def lines(self) -> list[Line]:
        return list({thread.line: None for thread in self.threads})

    def entry(self, thread: Thread, source: str, **facts: Any) -> Entry:
        self.log.append(Entry(thread, source, len(self.log), **facts))
        return self.log[-1]

    def feed(self, thread: Thread, count: int) -> None:
        """Let so many tokens wait to be fed; one at least if nothing else does."""
        count = count if thread.queue else max(count, 1)
        thread.queue += [self.entry(thread, FED) for _ in range(count)]

    # ---- births

    def bear(self, line: Line, kind: Child, scope: Scope | None) -> Line:
        """A child of `line`, which may start at once."""
        parent = line.last
        context = self.context(line, kind)
        sees, live = self.inherited(parent, context)
        scopes = (*line.scopes, scope) if scope else line.scopes
        child = Line(line, (*line.path, len(line.children)), kind, scopes, scope, context=set(sees))
        line.children.append(child)
        thread = self.open_thread(child, sees, live)
        other = context.line if context and context is not parent else line
        child.clock = max(line.clock * self.has("birth clock"), other.clock * self.has("context clock"))
        child.count = max(line.count, other.count * self.has("context count"))
        thread.after = [*parent.so_far(), *([other] if other is not line else [])]
        if kind.handed and context and context.unfed:
            thread.queue = [self.entry(thread, HANDED, original=context.unfed)]
            self.note(f"token handed to a child, {kind.context}")
            child.count += not self.has("handed once")
        self.feed(thread, kind.header)
        return child

    def context(self, line: Line, kind: Child) -> Thread | None:
        """The thread whose context a child of `line` has; None for an isolated one."""
        held = self.held(line)
        if kind.context == HELD_LINE and held:
            return held[kind.which % len(held)].last
        return None if kind.context == ISOLATED else line.last

    def held(self, line: Line) -> list[Line]:
        """The lines that may be the context of a child of `line`."""
        owners = [line]
        while not self.has("own context") and owners[-1].parent:
            owners.append(owners[-1].parent)
        return [child for owner in owners for child in owner.children if child.held and child.joined]

    def inherited(self, parent: Thread, context: Thread | None) -> tuple[set[Thread], dict[Scope, Line]]:
        """What a child of `parent` with that context sees, and where it is live."""
        if context is None:
            return set(), {}
        live = {scope: member for scope, member in context.live.items() if scope in parent.live}
        sees = context.sees | {context}
        if self.has("context alone"):
            others = [(scope, member) for scope, member in context.live.items() if scope not in parent.live]
            sees = {seen for seen in sees if all(seen.live.get(scope, member) is member for scope, member in others)}
        return sees, live if self.has("live children") else {}

    def greet(self, thread: Thread) -> None:
        """Whoever is live with a new thread sees it from now on, and is seen by it.

        That includes those that have ended, for whom it says nothing: events of one clock must commute.
        """
        if thread.live:
            for other in self.threads:
                if thread.mates(other):
                    thread.sees.add(other)
                    other.sees.add(thread)

    # ---- what is seen

    def watched(self, thread: Thread) -> bool:
        """Whether an outstanding child sees the thread: its line does not write there any more."""
        for child in thread.line.outstanding():
            over = child.ended and not self.has("outstanding") or child.why == KILLED and not self.has("killed stay")
            if not over and thread in (child.context if self.has("seen at birth") else child.last.sees):
                return True
        return False

    def look(self, entry: Entry) -> tuple[int, int]:
        """The bits of the entries that a row sees, and the largest count among those of smaller clocks."""
        thread = entry.thread
        place = bisect_left(thread.clocks, entry.clock)
        bits, count = thread.bits[place + 1], thread.counts[place]
        for other in thread.sees:
            before = bisect_left(other.clocks, entry.clock)
            reach = bisect_right(other.clocks, entry.clock) if thread.mates(other, together=True) else before
            if reach:
                bits |= other.bits[reach]
                count = max(count, other.counts[before])
                if other.freed:
                    self.faults.append(f"freed: {thread} sees {other}, whose slots are gone")
        return bits, count

    def free(self) -> None:
        """Take the slots of released threads that no unreleased one sees."""
        seen = set().union(*(thread.sees for thread in self.threads if not thread.released))
        for thread in self.threads:
            if thread.released and thread.status == FINISHED and thread not in seen:
                thread.freed = True
