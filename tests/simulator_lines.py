"""How lines end, go on as new threads, are split, waited for and joined."""

from simulator_programs import DROPPED, HEAD, HELD, MESSAGE, REENCODE, STITCH, TAIL, Join, Meet, Split
from simulator_world import DECIDING, FINISHED, HANDED, KILLED, READY, WAITING, Entry, Fact, Line, Thread, Wait, World

# ---- ends


def end(world: World, line: Line) -> None:
    """The line has sampled its end: it waits for its outstanding children first."""
    line.samples_end, line.last.then = line.clock, "end"
    if line.outstanding() and world.has("ends last"):
        world.note("end waits for children")
        wait_for(world, line, Wait(tuple(line.outstanding())))
    else:
        arrive(world, line)


def meet(world: World, line: Line, action: Meet) -> None:
    """The line waits for its outstanding children, then for its siblings at a barrier."""
    line.meets, line.last.then = action, "meet"
    wait_for(world, line, Wait(tuple(line.outstanding()) * world.has("meets last")))


def arrive(world: World, line: Line) -> None:
    """The line ends, unless its scope has to decide about that first."""
    line.arrival, line.striking, line.last.queue = line.clock, False, []
    if not world.has("arrives later"):
        line.arrival = line.samples_end
    if line.scope and line.scope.rule.need and not line.scope.settled:
        line.last.status = DECIDING
    else:
        finish(world, line)


def finish(world: World, line: Line) -> None:
    """Feed the last token and a closing phrase, if that was fixed at the line's birth, and close it."""
    thread = line.last
    if line.kind.flushed and thread.unfed:
        thread.queue = [thread.unfed]
    else:
        thread.after = thread.so_far()
    if thread.queue or line.kind.closing:
        thread.status, thread.then = READY, "end"
        world.feed(thread, line.kind.closing)
    else:
        close(world, line)


def close(world: World, line: Line) -> None:
    """The line is over."""
    line.last.status, line.last.queue, line.ended = FINISHED, [], True
    for child in line.children:
        release(child)
    kept = line.kind.kept
    line.held = kept == HELD
    if kept == DROPPED or not world.has("kept") or line.held and not world.has("held"):
        for thread in line.threads:
            thread.released = True
    if line.scope and not line.scope.settled and all(member.ended for member in line.scope.members):
        line.scope.settle(line.scope.members)
    if line.parent:
        check(world, line.parent)


def release(line: Line) -> None:
    """Nobody will read the line any more, nor what is below it, but who sees it."""
    line.held = False
    for thread in line.threads:
        thread.released = True
    for child in line.children:
        release(child)


# ---- going on as another thread


def go_on(world: World, thread: Thread, sees: set[Thread], handed: Entry | None) -> Thread:
    """The line goes on as a new thread, live with whom the old one was. `handed`: the token that it begins with, if any."""
    line = thread.line
    new = world.open_thread(line, sees, dict(thread.live))
    new.after, new.then = thread.so_far(), thread.then
    thread.status, thread.queue, thread.released, thread.unfed = FINISHED, [], True, None
    if not world.has("passes over"):
        for child in line.outstanding():
            child.joined = True
    if handed:
        new.queue = [world.entry(new, HANDED, original=handed)]
    world.greet(new)
    return new


def write_on(world: World, thread: Thread, footer: int) -> None:
    """The line writes on, as a new thread if an outstanding child sees this one."""
    unfed = thread.unfed
    if world.watched(thread) and world.has("goes on"):
        world.note("goes on, seen by a child")
        thread = go_on(world, thread, thread.sees | {thread}, unfed)
    elif unfed:
        thread.queue = [unfed]
    thread.status = READY
    world.feed(thread, footer)


def splittable(world: World, thread: Thread) -> bool:
    return len(thread.entries) > 1 and not (thread.live and world.has("split alone"))


def cut_off(world: World, thread: Thread, share: int) -> Thread:
    """Make the last tokens of a thread, one in so many, a finished thread of their own. Who saw the whole sees both parts."""
    line, entries = thread.line, thread.entries
    place = max(1, len(entries) - len(entries) // share)
    place = min(place, len(entries) - 1)
    tail = world.open_thread(line, thread.sees | {thread}, dict(thread.live))
    line.threads[-2:] = [tail, thread]
    thread.replace(entries[:place])
    tail.replace(entries[place:])
    tail.status, tail.released = FINISHED, True
    thread.after.append(entries[-1])
    if not world.has("split clock"):
        line.clock = thread.clocks[-1]
    for other in world.threads:
        if other is not thread and other is not tail and thread in other.sees:
            other.sees.add(tail)
    return tail


def split(world: World, thread: Thread, action: Split) -> None:
    """Cut the thread in two; its line goes on as the head, the tail, or a third thread."""
    unfed, line = thread.unfed, thread.line
    tail = cut_off(world, thread, action.share)
    world.note(f"split, {action.where}")
    if action.where == HEAD:
        thread.after, thread.unfed = thread.so_far(), None
        world.feed(thread, 1)
    elif action.where == TAIL:
        line.threads[-2:] = [thread, tail]
        tail.after, tail.then = thread.after, thread.then
        tail.status, tail.released, tail.unfed, tail.queue = READY, False, unfed, [unfed]
        thread.status, thread.released, thread.unfed, unfed.thread = FINISHED, True, None, tail
    else:
        parts = {part for bit, part in ((1, thread), (2, tail)) if action.keeps & bit}
        go_on(world, thread, thread.sees | parts, unfed)


# ---- waits and joins


def wait_for(world: World, line: Line, wait: Wait) -> None:
    line.last.status, line.last.queue, line.wait = WAITING, [], wait
    check(world, line)


def check(world: World, line: Line) -> None:
    """Let a line go on that has waited for long enough. A wait for some of its lines is for `simulator_scopes.decide`."""
    wait = line.wait
    if wait is None or wait.need or wait.scope and not wait.scope.settled:
        return
    lines = list(wait.lines)
    if wait.scope:
        # Those that a barrier kills are not taken: whether that was before the decision depends on the schedule.
        mine = lambda member: member.why == KILLED and member.fact and member.fact.scope is wait.scope
        lines = [member for member in lines if member in wait.scope.chosen or mine(member)]
    if all(waited.ended for waited in lines):
        resume(world, line, lines, [wait.scope.fact] if wait.scope and wait.scope.fact else [])


def resume(world: World, line: Line, lines: list[Line], facts: list[Fact]) -> None:
    """The wait is over: of those that were waited for, for these lines, and because of these facts."""
    wait, line.wait = line.wait, None
    take(world, line, lines, facts)
    if wait.join:
        kind = "for what a scope chose" if wait.scope else "for some" if wait.need else "for all named"
        world.note(f"wait {kind}{', others outstanding' if line.outstanding() else ''}")
        join(world, line, lines, wait.join)
    elif line.last.then == "end":
        line.clock += world.has("arrives beyond")
        arrive(world, line)
    else:
        line.last.then = "met"


def take(world: World, line: Line, lines: list[Line], facts: list[Fact]) -> None:
    """Take over clocks and counts."""
    for waited in lines:
        waited.joined = True
    if not world.has("waited only"):
        lines = [*lines, *(child for child in line.outstanding() if child.ended)]
    alive = [waited for waited in lines if waited.why != KILLED]
    facts = [*facts, *(waited.fact for waited in lines if waited.fact)]
    if not world.has("own end"):
        facts += [waited.scope.fact for waited in lines if waited.scope and waited.scope.fact]
    clocks = [waited.clock for waited in alive] * world.has("waited clock")
    clocks += [fact.clock for fact in facts] * world.has("decided clock")
    counts = [waited.count for waited in alive] * world.has("waited count")
    counts += [fact.count for fact in facts] * world.has("decided count")
    line.clock, line.count = max([line.clock, *clocks]), max([line.count, *counts])
    line.last.after += [*alive, *(cause for fact in facts for cause in fact.by)]


def join(world: World, line: Line, lines: list[Line], how: Join) -> None:
    """The line goes on from the lines that it waited for."""
    thread, unfed = line.last, line.last.unfed
    added, count = told(world, lines, how)
    added -= thread.sees | {thread}
    watched, late = world.watched(thread) and world.has("goes on"), is_late(world, thread, added)
    if watched or late:
        world.note(f"goes on at a join, {'seen by a child' if watched else 'late'}")
        thread = go_on(world, thread, thread.sees | {thread} | added, unfed if how.feed else None)
    else:
        thread.sees |= added
        if unfed and how.feed:
            thread.queue = [unfed]
        elif unfed:
            thread.after, thread.unfed = thread.so_far(), None
        if how.forget and splittable(world, thread):
            world.note("split at a join")
            cut_off(world, thread, 2)
    thread.status, thread.then = READY, "act" if how.quiet else "sample"
    world.feed(thread, count)
    for waited in lines:
        if not waited.held:
            release(waited)


def told(world: World, lines: list[Line], how: Join) -> tuple[set[Thread], int]:
    """What a join adds to what the line sees, and how many tokens it is fed."""
    alive = [waited for waited in lines if waited.why != KILLED]
    kept = [waited for waited in alive if not waited.last.released] if how.how in (STITCH, REENCODE) else []
    kept = kept[:1] if how.how == REENCODE else kept
    others = [waited for waited in alive if waited not in kept]
    count = how.footer
    if how.how == REENCODE:
        count += sum(len(part.entries) for waited in others for part in waited.threads)
    elif how.how in (STITCH, MESSAGE):
        count += how.message * len(others)
    return set().union(*(stitched(world, waited, how.whole) for waited in kept)), count


def stitched(world: World, line: Line, whole: bool) -> set[Thread]:
    """What stitching a line adds: the line and what was joined into it, or all that it sees; never its live siblings."""
    found = line.last.sees | {line.last}
    if not world.has("lines alone"):
        return found
    if not whole:
        return {thread for thread in found if thread.line.under(line)}
    live = [(scope, member) for scope, member in line.last.live.items() if scope.parent is line.parent]
    return {thread for thread in found if all(thread.live.get(scope, member) is member for scope, member in live)}


def is_late(world: World, thread: Thread, added: set[Thread]) -> bool:
    """Whether the thread has written since what it would see began."""
    begun = [other.entries[0] for other in added if other.entries]
    if not begun or not thread.entries or not world.has("late"):
        return False
    if world.has("late by clock"):
        return thread.clocks[-1] > min(entry.clock for entry in begun)
    return max(entry.step for entry in thread.entries) > min(entry.step for entry in begun)
