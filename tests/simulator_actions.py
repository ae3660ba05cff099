"""What programs say that a line does with a token that it has sampled."""

from simulator_lines import close, end, go_on, meet, release, split, splittable, wait_for, write_on
from simulator_programs import HELD_LINE, OWN, Action, End, Fork, Join, Meet, Release, Split, Strike, Turn
from simulator_world import DECIDING, SAMPLED, Line, Scope, Thread, Wait, World


def drained(world: World, thread: Thread) -> None:
    """A thread has fed all that it had."""
    line, then, thread.then = thread.line, thread.then, "sample"
    if then == "end":
        close(world, line)
    elif then == "start":
        fork, line.fork = line.fork, None
        start(world, thread, fork, line.born or bear(world, line, fork))
        line.born = []
    elif then == "act" and isinstance(_next(world, line), End | Fork | Join | Turn):
        _act(world, thread)
    else:
        _sample(world, thread)


def _sample(world: World, thread: Thread) -> None:
    line, row = thread.line, thread.entries[-1]
    if world.watched(thread):
        world.faults.append(f"watched: {thread} samples while an outstanding child sees it")
    line.sampled += 1
    line.count += world.has("count when sampled")
    thread.unfed = world.entry(thread, SAMPLED, predictor=row)
    thread.unfed.count = line.count
    for scope in line.scopes:
        if not scope.settled:
            scope.sampled.append(row.clock)
    _act(world, thread)


def _next(world: World, line: Line) -> Action:
    actions = world.program.actions(line.path)
    return actions[line.acted] if line.acted < len(actions) else End()


def _act(world: World, thread: Thread) -> None:
    """Take the next action; one that is not possible is an ordinary token."""
    line, unfed = thread.line, thread.unfed
    action = _next(world, line)
    line.acted += 1
    match action:
        case End():
            end(world, line)
        case Join() if wait := _wait(line, action):
            wait_for(world, line, wait)
        case Fork(flush=True) if unfed:
            line.fork, thread.then, thread.queue = action, "start", [unfed]
            if not world.has("flush first"):
                line.born = bear(world, line, action)
        case Fork():
            start(world, thread, action, bear(world, line, action))
        case Turn():
            world.note("turn")
            sees = (set(), set(thread.sees), thread.sees | {thread})[action.keeps]
            world.feed(go_on(world, thread, sees, unfed if action.feed else None), action.footer)
        case Split() if splittable(world, thread):
            split(world, thread, action)
        case Strike() if line.scope and line.scope.rule.strikes and not line.scope.settled:
            thread.queue, thread.status, line.arrival, line.striking = [unfed], DECIDING, line.clock, True
        case Meet() if line.mates:
            meet(world, line, action)
        case Release() if held := world.held(line):
            world.note("release")
            release(held[action.which % len(held)])
            write_on(world, thread, 0)
        case _:
            write_on(world, thread, 0)


def bear(world: World, line: Line, action: Fork) -> list[Line]:
    """The children of a fork, who may start."""
    scope = Scope(line, action.rule) if action.rule and any(child.member for child in action.children) else None
    born = [world.bear(line, child, scope if child.member else None) for child in action.children]
    if scope:
        world.scopes.append(scope)
        scope.members = [child for child in born if child.scope]
        for child in scope.members * bool(action.rule.live):
            child.last.live[scope] = child
        world.note(f"scope, {('not live', 'live', 'live together')[scope.rule.live]}")
    for child in born:
        world.note(f"child, {child.kind.context if child.kind.context != HELD_LINE or world.held(line) else OWN}")
        world.greet(child.last)
        child.mates = [other for other in born if other.scope is child.scope or not world.has("meets its scope")]
    return born


def start(world: World, thread: Thread, action: Fork, born: list[Line]) -> None:
    """The children of a fork have started; their parent goes on beside them, or waits."""
    line = thread.line
    wait = _wait(line, action.join, born)
    world.note("fork beside" if action.beside or wait is None else "fork and wait")
    if action.beside or wait is None:
        write_on(world, thread, action.footer)
    else:
        wait_for(world, line, wait)


def _wait(line: Line, join: Join, among: list[Line] | None = None) -> Wait | None:
    """What a wait means now; None if there is nothing to wait for."""
    found = line.outstanding() if among is None else among
    scopes = [child.scope for child in found if child.scope and child.scope.rule.need]
    if join.decided and scopes:
        return Wait(tuple(child for child in found if child.scope is scopes[0]), join, scopes[0])
    named = tuple(child for place, child in enumerate(found) if not join.names or join.names >> place & 1)
    return Wait(named, join) if named else None
