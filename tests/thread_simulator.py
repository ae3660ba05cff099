"""Runs programs of threads under a schedule, step by step, and says what is wrong with what comes out."""

import dataclasses
import random
from bisect import bisect_left
from typing import Any

from simulator_actions import drained
from simulator_scopes import decide, outermost
from simulator_world import READY, SAMPLED, Entry, Line, Sampling, Thread, World


class Stuck(Exception):
    """Nothing can run, or the program does not end."""


class TooLarge(Exception):
    """The program has more threads than one cares to look at."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What the rules leave open. The events of a step come in random order.

    Attributes:
        lanes: threads that may compute in one step.
        chunk: tokens that each of them may feed in it.
        order: who goes first: "oldest", "youngest", "least" (clock), "random", or "ranked": every line has a random rank for good,
            so that some of them starve.
    """

    lanes: int
    chunk: int
    order: str


REFERENCE = Schedule(99, 1, "least")
SCHEDULES = (
    Schedule(1, 1, "oldest"),
    Schedule(1, 8, "youngest"),
    Schedule(2, 3, "random"),
    Schedule(3, 64, "oldest"),
    Schedule(2, 1, "random"),
    Schedule(99, 64, "youngest"),
    Schedule(4, 2, "least"),
    Schedule(1, 1, "ranked"),
    Schedule(2, 8, "ranked"),
)
STEPS, THREADS = 4000, 60  # of a program, at most


def run(program: Any, schedule: Schedule, seed: int = 0, without: frozenset[str] = frozenset()) -> World:
    """Run a program to its end.

    Args:
        program: says for each path what the line there does, see `simulator_programs`.
        seed: of what the rules leave open.
        without: rules that are left out.

    Raises:
        Stuck: nothing can run, or so many steps were not enough.
        TooLarge: there are too many threads.
    """
    world = World(program, without, random.Random(seed))
    while not world.root.ended:
        world.step += 1
        if world.step > STEPS:
            raise Stuck(f"{STEPS} steps were not enough")
        _step(world, schedule)
        if len(world.threads) > THREADS:
            raise TooLarge
    return world


def _step(world: World, schedule: Schedule) -> None:
    rows = _choose(world, schedule)
    if not rows:
        left = [f"{t} {t.status} at {t.line.clock}" for t in world.threads if t is t.line.last and not t.line.ended]
        raise Stuck(f"nothing can run: {', '.join(left)}")
    fed = []
    for thread in rows:
        alone = thread.live or outermost(world, thread.line.scopes)
        count = 1 if alone and world.has("one at a time") else schedule.chunk
        for entry in thread.queue[:count]:
            thread.line.clock += 1
            entry.clock, entry.step = thread.line.clock, world.step
            entry.after, thread.after = tuple(thread.after), []
            thread.unfed = None if entry is thread.unfed else thread.unfed
            thread.append(entry)
            fed.append(entry)
        del thread.queue[:count]
    for entry in fed:
        _see(world, entry)
    world.rng.shuffle(rows)
    for thread in rows:
        if thread.status == READY and not thread.queue:
            drained(world, thread)
    decide(world)
    world.free()


def _see(world: World, entry: Entry) -> None:
    """Note what a row saw, and its count."""
    thread, line = entry.thread, entry.thread.line
    entry.saw, count = world.look(entry)
    line.count = max(line.count, count) + (entry.source == SAMPLED and not world.has("count when sampled"))
    entry.count = line.count
    place = bisect_left(thread.clocks, entry.clock)
    thread.counts[place + 1] = max(thread.counts[place], entry.count)


def _choose(world: World, schedule: Schedule) -> list[Thread]:
    """The threads that compute in a step."""
    ready = [thread for thread in world.threads if thread.status == READY and thread.queue]
    if world.has("least clock"):
        ready = _least(world, ready)
    if schedule.order == "random":
        world.rng.shuffle(ready)
    elif schedule.order == "ranked":
        ready.sort(key=lambda thread: world.rank(thread.line))
    elif schedule.order == "youngest":
        ready.reverse()
    elif schedule.order == "least":
        ready.sort(key=lambda thread: (thread.line.clock, thread.line.path))
    rows = ready[: schedule.lanes]
    for thread in rows if world.has("one step") else ():  # rows grow as they are read: mates of mates
        rows += [
            other for other in ready * bool(thread.live)
            if other not in rows and other.line.clock == thread.line.clock and thread.mates(other, together=True)
        ]  # fmt: skip
    return rows


def _least(world: World, ready: list[Thread]) -> list[Thread]:
    """Of the threads of a scope those of the least clock."""
    tops, least = {}, {}
    for thread in ready:
        scopes = thread.line.scopes if world.has("descendants") else thread.line.scopes[-1:] * bool(thread.line.scope)
        top = tops[thread] = outermost(world, scopes)
        least[top] = min(least.get(top, thread.line.clock), thread.line.clock)
    return [thread for thread in ready if tops[thread] is None or thread.line.clock == least[tops[thread]]]


# ---- what must be so


def faults(world: World) -> list[str]:
    """What is wrong with a finished run, in words that begin with the kind of the fault."""
    found = list(world.faults)
    for thread in world.threads:
        for entry in thread.entries:
            saw, then = world.look(entry)[0], entry.saw
            if saw != then:
                found.append(
                    f"seen: {thread} at {entry.clock}: then {_names(world, then & ~saw)}; now {_names(world, saw & ~then)}"
                )
            if entry.predictor and entry.predictor.clock < 0:
                found.append(f"predictor: that of {thread} at {entry.clock} was not fed")
    running = [str(thread) for thread in world.threads if thread is thread.line.last and not thread.line.ended]
    if running:
        found.append(f"running: {', '.join(running)} when the root has ended")
    return found + _miscounted(world)


def _names(world: World, bits: int) -> str:
    entries = [entry for entry in world.log if bits >> entry.number & 1]
    return ", ".join(f"{entry.thread} at {entry.clock}" for entry in entries[:4]) or "nothing more"


def _miscounted(world: World) -> list[str]:
    """Compare counts with the longest chains of sampled tokens, found from what rows saw and came after alone."""
    rows: dict[Entry, int] = {}  # the longest chain up to the row of an entry
    longest: dict[Thread, list[int]] = {thread: [0] for thread in world.threads}
    found = []

    def sampled(entry: Entry) -> int:
        return rows.get(entry.predictor, 0) + 1

    def below(thing: Entry | Sampling | Line) -> int:
        """The longest chain up to a thing that a row comes after."""
        if isinstance(thing, Line):
            own = [below(entry) for entry in world.log if entry.thread.line is thing]
            return max(own + [below(other) for other in thing.last.after])
        if isinstance(thing, Sampling):
            return sampled(thing.entry)
        return max(rows.get(thing, 0), sampled(thing) if thing.source == SAMPLED else 0)

    for entry in sorted(
        (entry for entry in world.log if entry.clock >= 0), key=lambda entry: (entry.clock, entry.number)
    ):
        thread = entry.thread
        chains = [longest[thread][-1], *(below(thing) for thing in entry.after)]
        chains += [longest[other][bisect_left(other.clocks, entry.clock)] for other in thread.sees]
        chains += [sampled(token) for token in (entry, entry.original) if token and token.source == SAMPLED]
        rows[entry] = max(chains)
        longest[thread].append(rows[entry])
        if rows[entry] != entry.count:
            found.append(f"count: {thread} at {entry.clock}: {entry.count}, the longest chain is {rows[entry]}")
    if world.root.count != (chain := below(world.root)):
        found.append(f"count: of the root {world.root.count}, the longest chain is {chain}")
    return found


def record(world: World) -> dict[str, Any]:
    """What a run leaves, in names that do not depend on the schedule."""
    name = lambda thread: (thread.line.path, thread.serial)  # noqa: E731
    found: dict[str, Any] = {"critical path": world.root.count}
    for thread in world.threads:
        entries = tuple((entry.clock, entry.source, entry.count) for entry in thread.entries)
        found[str(thread)] = entries, frozenset(map(name, thread.sees))
        line = thread.line
        found[f"line {line.path}"] = line.why, line.sampled, line.acted, line.count, line.clock
    return found
