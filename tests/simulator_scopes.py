"""Decisions by clock: what one member of a scope may do to another, and which of several lines have ended first."""

import dataclasses
from collections.abc import Sequence

from simulator_lines import check, finish, resume, write_on
from simulator_world import CUT, DECIDING, FINISHED, KILLED, READY, Fact, Line, Scope, Thread, World


def throttles(world: World, scope: Scope) -> bool:
    """Whether a member of the scope may end another, or see it while it runs."""
    rule = scope.rule
    if rule.live and not all(member.ended for member in scope.members) and (world.has("live on") or not scope.settled):
        return True
    return not scope.settled and bool(rule.budget or rule.strikes or rule.need and rule.kills)


def outermost(world: World, scopes: tuple[Scope, ...]) -> Scope | None:
    """The outermost of the scopes that throttle."""
    return next((scope for scope in scopes if throttles(world, scope)), None)


@dataclasses.dataclass(frozen=True)
class Decision:
    """Something that may be decided.

    Attributes:
        clock: at which.
        parent: the line whose children it is about.
        scope: theirs, if it is an end or a strike of `line`, or that their budget is used up (`line` is None).
        chosen: otherwise: the lines that have ended first, of those that `parent` waits for.
    """

    clock: int
    parent: Line
    scope: Scope | None = None
    line: Line | None = None
    chosen: tuple[Line, ...] = ()

    def order(self, world: World) -> tuple:
        level = self.parent.level if world.has("outer first") else -self.parent.level
        budget = self.scope is not None and self.line is None
        waits = self.scope is not None and world.has("waits first")
        return self.clock, waits, level, budget == world.has("budget last"), (self.line or self.parent).path


def decide(world: World) -> None:
    """Decide whatever is due, one thing at a time."""
    while True:
        while _open_barrier(world):
            pass
        found = [decision for line in world.lines() if (decision := _first_to_end(world, line))]
        found += [decision for scope in world.scopes if not scope.settled for decision in _awaited(world, scope)]
        if world.has("least decision"):
            found.sort(key=lambda decision: decision.order(world))
        held_up = [wait for wait in found if _is_held_up(world, wait)]
        due = next((one for one in found if _is_due(world, one) and not _is_around(world, one, held_up)), None)
        if due is None:
            return
        if due.scope is None:
            resume(world, due.parent, list(due.chosen), [Fact(due.clock, 0, [])])
        elif due.line is None:
            _exhaust(world, due.scope, due.clock)
        elif due.line.striking:
            _strike(world, due.line)
        else:
            _count(world, due.line)


def _first_to_end(world: World, line: Line) -> Decision | None:
    """Which of the lines that a line waits for end first and are enough, as far as they have ended; all if all are not enough."""
    if not line.wait or not line.wait.need:
        return None
    lines, worth = line.wait.lines, 0
    over = _over(lines)
    if world.has("named by clock"):
        over.sort(key=lambda waited: (waited.arrival, waited.path))
    for place, waited in enumerate(over):
        worth += waited.kind.weight
        if worth >= line.wait.need:
            return Decision(waited.arrival, line, chosen=tuple(over[: place + 1]))
    return Decision(0, line, chosen=lines) if all(waited.ended for waited in lines) else None


def _over(lines: Sequence[Line]) -> list[Line]:
    """Those that have ended, but for their last token; not those that were killed."""
    return [line for line in lines if line.arrival is not None and line.last.status != DECIDING and line.why != KILLED]


def _awaited(world: World, scope: Scope) -> list[Decision]:
    """What is to be decided in a scope."""
    parent, rule = scope.parent, scope.rule
    found = [Decision(line.arrival, parent, scope, line) for line in scope.members if line.last.status == DECIDING]
    if rule.budget and len(scope.sampled) >= rule.budget:
        clocks = sorted(scope.sampled) if world.has("whole clocks") else scope.sampled
        found.append(Decision(clocks[rule.budget - 1], parent, scope))
    return found


def _is_due(world: World, decision: Decision) -> bool:
    """Whether nobody concerned can do anything any more at the clock of a decision or below."""
    clock, scope = decision.clock, decision.scope
    if scope is None:
        return all(line.ended for line in decision.chosen) and not _may_end(world, decision)
    if not world.has("past") or decision.line is None and not world.has("whole clocks"):
        return True
    top = outermost(world, scope.parent.scopes) if world.has("outer past") else None
    below = (thread for thread in world.threads if stands_in(world, thread.line, top or scope))
    return not any(may_act(thread, clock) for thread in below)


def _is_held_up(world: World, decision: Decision) -> bool:
    """Whether a wait could be decided, but for what is to be decided first in scopes below it."""
    ended = decision.scope is None and all(line.ended for line in decision.chosen)
    return world.has("waits first") and ended and _decided_below(world, decision)


def _is_around(world: World, decision: Decision, held_up: list[Decision]) -> bool:
    """Whether a decision of a scope comes after one of the waits, because who waits stands in the scope."""
    scope = decision.scope
    return scope is not None and any(
        wait.clock <= decision.clock and stands_in(world, wait.parent, scope) for wait in held_up
    )


def _decided_below(world: World, decision: Decision) -> bool:
    """Whether anything is to be decided in scopes below a wait, at its clock or before."""
    scopes = (scope for scope in world.scopes if not scope.settled and scope.parent.under(decision.parent))
    due = any(other.clock <= decision.clock for scope in scopes for other in _awaited(world, scope))
    return world.has("decided below") and due


def _may_end(world: World, decision: Decision) -> bool:
    """Whether another line of a wait might still end, or be ended, at the clock of those that have."""
    clock, parent = decision.clock, decision.parent
    rest = [line for line in parent.wait.lines if line not in _over(parent.wait.lines) and line.why != KILLED]
    rest += [mate for line in rest for mate in line.mates if line.meets and world.has("waits for mates")]
    around = {scope: None for line in rest for scope in line.scopes if scope.parent.under(parent) and not scope.settled}
    rest += [member for scope in around if world.has("waits for members") for member in scope.members]
    below = (thread for thread in world.threads for line in rest if thread.line.under(line))
    acts = world.has("nobody below") and any(may_act(thread, clock) for thread in below)
    return acts or _decided_below(world, decision)


def stands_in(world: World, line: Line, scope: Scope) -> bool:
    return scope in line.scopes if world.has("descendants") else scope is line.scope


def may_act(thread: Thread, clock: int) -> bool:
    """Whether the thread may feed a row of that clock or below."""
    return thread.status == READY and bool(thread.queue) and thread.line.clock + 1 <= clock


def _open_barrier(world: World) -> bool:
    """Let the lines of a barrier go on at which all wait that have not ended, later than all of them."""
    for line in world.lines():
        there = [mate for mate in line.mates if not mate.ended]
        if not line.meets or line.ended or not all(mate.meets and mate.last.then == "met" for mate in there):
            continue
        world.note("barrier")
        alive = [mate for mate in line.mates if mate.why != KILLED]
        facts = [_fact(max(mate.clock for mate in alive), alive), *(mate.fact for mate in line.mates if mate.fact)]
        keeps = there[0].meets.keeps or len(there)
        for mate in there[keeps:]:
            world.note("killed at a barrier")
            kill(world, mate, facts[0])
            check(world, mate.parent)
        for mate in there[:keeps]:
            footer, mate.meets, mate.last.then = mate.meets.footer, None, "sample"
            mate.clock = max([mate.clock, *(fact.clock for fact in facts if world.has("met clock"))])
            mate.count = max([mate.count, *(fact.count for fact in facts)])
            mate.last.after += [cause for fact in facts for cause in fact.by]
            write_on(world, mate.last, footer)
        return True
    return False


def _count(world: World, line: Line) -> None:
    """An end counts; when they are enough, the rest is killed, or stays."""
    scope = line.scope
    line.arrived = True
    scope.worth += line.kind.weight
    if scope.worth < scope.rule.need:
        return finish(world, line)
    arrived = [member for member in scope.members if member.arrived]
    scope.settle(arrived, _fact(line.arrival, arrived, scope))
    world.note(f"ends decide, the rest {'killed' if scope.rule.kills else 'stays'}")
    if scope.rule.kills:
        for member in _touched(world, scope):
            if not member.ended and not member.arrived:
                kill(world, member, scope.fact)
    finish(world, line)
    _let_go(world, scope)


def _fact(clock: int, lines: list[Line], scope: Scope | None = None) -> Fact:
    return Fact(clock, max(line.count for line in lines), [one for line in lines for one in line.last.so_far()], scope)


def _touched(world: World, scope: Scope) -> list[Line]:
    return scope.members if world.has("members") else scope.parent.children


def _let_go(world: World, scope: Scope) -> None:
    """What awaited a decision of a scope that is settled goes on; so may its parent."""
    for member in scope.members:
        if member.last.status == DECIDING and member.striking:
            member.arrival, member.last.status = None, READY
        elif member.last.status == DECIDING:
            finish(world, member)
    if not world.has("decided at the join"):
        scope.parent.clock, scope.parent.count = (
            max(scope.parent.clock, scope.fact.clock),
            max(scope.parent.count, scope.fact.count),
        )
    check(world, scope.parent)


def _strike(world: World, line: Line) -> None:
    """Kill the youngest sibling that is not over; the striker goes on."""
    line.arrival, line.last.status = None, READY
    scope = line.scope
    others = [member for member in scope.members if member is not line and not member.ended]
    rivals = [member for member in others if member.arrival is None or member.last.status == DECIDING]
    if rivals:
        world.note("strike")
        kill(world, max(rivals, key=lambda member: member.path), _fact(line.clock, [line], scope))
        check(world, line.parent)


def _exhaust(world: World, scope: Scope, clock: int) -> None:
    """The budget is used up: members that run are cut where they stand, or killed if it was who ends first that they ran for."""
    scope.settle(list(scope.members), _fact(clock, scope.members, scope))
    world.note("budget used up")
    for member in _touched(world, scope):
        flushing = member.arrival is not None and member.last.status == READY
        if member.ended or flushing:
            continue
        if scope.rule.need and scope.rule.kills:
            kill(world, member, scope.fact)
        else:
            cut(world, member, scope.fact)
    _let_go(world, scope)


def kill(world: World, line: Line, fact: Fact) -> None:
    """Drop a line with all its descendants."""
    line.fact = fact
    _drop(world, line)


def _drop(world: World, line: Line) -> None:
    line.why = line.why if line.ended else KILLED
    line.ended, line.held, line.wait = True, False, None
    line.last.status, line.last.queue = FINISHED, []
    for thread in line.threads:
        thread.released = True
    if world.has("kill below"):
        for child in line.children:
            _drop(world, child)


def cut(world: World, line: Line, fact: Fact) -> None:
    """End a line where it stands. What is below it is killed, and nobody waits for it."""
    thread = line.last
    for child in line.children:
        child.joined = True
        if not child.ended and world.has("kill below"):
            _drop(world, child)
    line.why, line.fact, line.wait, line.fork, line.meets, thread.queue = CUT, fact, None, None, None, []
    line.clock = max(line.clock, fact.clock * world.has("decided clock"))
    line.arrival = line.clock
    finish(world, line)
