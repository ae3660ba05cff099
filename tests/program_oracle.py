"""What programs of threads (`thread_programs`) must give: an interpreter of the tree, and what may stop one for want of room.

The interpreter is written on the lines of `racing_oracle`, in direct style, and knows neither the numbers that a program is
encoded in nor the engine's book. Where a size is too small for a problem, `check` says whether the engine had to stop it,
or might, and that what it left is the beginning of what is right.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import oracle
import thread_programs as programs
from apr_jax.decode import Sizes, Stop, Transcript
from oracle import Entry
from racing_oracle import END, EVENT, Group, Line, Thread, World, _last
from reference_model import Forward, draw
from replaying import lines
from thread_programs import Action, Body, Context, Instruction, Join


@dataclasses.dataclass(frozen=True)
class Expected:
    """What is right if nothing runs out.

    Attributes:
        transcript: the record.
        pieces: pieces of messages that were composed.
        held: per path, whether the thread's slots are held until its parent's join.
    """

    transcript: Transcript
    pieces: int
    held: dict[tuple[int, ...], bool]


@dataclasses.dataclass
class _Child:
    thread: Thread
    body: Body


class _Line(Line):
    """A line that runs a program."""

    def __init__(self, child: _Child, parent: Line | None = None, flushed: bool = False, live: bool = False):
        super().__init__(child.thread, parent, flushed)
        self.body, self.live = child.body, live


class _World(World):
    """A world that also counts what a join needs."""

    def __init__(self, together: bool, *arguments: Any):
        super().__init__(*arguments)
        self.together, self.lines, self.decisions = together, [], []
        self.pieces, self.held = 1, {(): False}

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
    world.add(_Line(_Child(root, body)), [int(token) for token in problem.prompt])
    world.loop(rng)
    return Expected(oracle._record(root, problem, together), world.pieces, world.held)


def _play(world: _World, line: _Line, fed: Sequence[int]) -> Iterator:
    """One line, from its header to its end."""
    yield from line.feed(fed)
    opened: list[_Child] = []
    unfed: Entry | None = None
    for place, now in enumerate(line.body):
        left = now.say
        while left:
            if unfed is not None:
                yield []
                line.thread.feed(unfed)
                yield from line.meet()
            unfed = world.sample(line)
            left -= unfed.token >= programs.FIRST_EVENT
            if left and world.spent(line.thread):
                line.stop = Stop.LENGTH
                break
        if line.stop is None and now.action in (Action.END, Action.FAIL):
            line.stop = Stop.END if now.action == Action.END else Stop.MALFORMED
        if line.stop is not None:
            break
        message: list[int] = []
        if now.action == Action.FORK:
            if now.flush and unfed is not None:
                yield []
                line.thread.feed(unfed)
                yield from line.meet()
                unfed = None
            opened += _open(line.thread, now)
            if not opened:
                line.stop = Stop.MALFORMED
                break
            children, opened = opened, []
            message = yield from _fork_and_join(world, line, children, now)
        elif now.action == Action.OPEN:
            opened += _open(line.thread, now)
        elif now.action == Action.KILL:
            yield EVENT
        elif now.action == Action.TURN or (now.action == Action.CUT and not line.live):
            message, unfed = _go_on(world, line, now), None
        if line.body[place + 1].say and world.spent(line.thread):
            line.stop = Stop.LENGTH
            break
        if message and unfed is not None:
            yield []
            line.thread.feed(unfed)
            yield from line.meet()
            unfed = None
        yield from line.feed(message)
    if line.group and line.group.first and not line.group.over:
        yield END
    yield from _last(line, unfed)
    world.drop(line)


def _open(thread: Thread, now: Instruction) -> list[_Child]:
    return [_Child(thread.open(), body) for body in now.children]


def _go_on(world: _World, line: _Line, now: Instruction) -> list[int]:
    """Go on as a new thread; returns what that is fed."""
    old, position = line.thread, line.thread.next_position
    quoted = [entry.token for entry in old.entries[max(len(old.entries) - now.quote, 0) :]]
    world.pieces += 2
    if now.action == Action.CUT:
        line.split(len(old.entries) // 2, not now.keeps, position, world)
        return [programs.TEMPLATES[programs.FOOTER]]
    line.go_on([other for other in old.seen if now.keeps or other is not old], position)
    return [*quoted, programs.TEMPLATES[programs.FOOTER]]


def _fork_and_join(world: _World, line: _Line, children: Sequence[_Child], now: Instruction) -> Iterator:
    """Start children and wait for them; returns what the parent is fed then."""
    thread, threads = line.thread, [child.thread for child in children]
    seen = {Join.STITCH: threads, Join.REENCODE: threads[:1]}.get(now.join, [])
    oracle._fork(thread, threads, now.context.name.lower())
    live = now.context == Context.LIVE
    born = [_Line(child, line, child.thread in seen, live) for child in children]
    line.children += born
    if now.race or live:
        group = Group(line, born, now.first, now.shared)
        for child in born:
            child.group, child.together = group, live and world.together
    quoted = [entry.token for entry in thread.entries[max(len(thread.entries) - now.quote, 0) :]]
    for child in born:
        begin = child.thread.path[-1] % programs.HEADERS
        header = [*quoted, *programs.TEMPLATES[begin : begin + now.header]]
        world.held[child.thread.path] = child.flushed
        world.pieces += 2
        world.add(child, header)
    yield born
    alive = [child for child in born if child.thread.stop != Stop.KILLED]
    thread.floor = max([thread.floor, *(child.latest() for child in born)])
    thread.count = max([thread.count, *(child.thread.count for child in alive)])
    for child in alive:
        if child.flushed:
            thread.stitch(child.thread)
    return _message(world, alive, now)


def _message(world: _World, children: Sequence[_Line], now: Instruction) -> list[int]:
    """What the parent is fed at the join."""
    text = [[entry.token for entry in child.thread.entries] for child in children]
    told: list[list[int]] = []
    if now.join == Join.MESSAGE:
        told = [[programs.TEMPLATES[programs.RESULT], *words[max(len(words) - now.message, 0) :]] for words in text]
    if now.join == Join.REENCODE:
        told = [words for words, child in zip(text, children, strict=True) if not child.flushed]
    world.pieces += 2 * len(told) + 1
    return [*(token for words in told for token in words), programs.TEMPLATES[programs.FOOTER]]


# ---- what may stop a problem


def check(transcript: Transcript, expected: Expected, sizes: Sizes) -> None:
    """Assert that a transcript is right: the whole of it, or as far as the sizes let it come."""
    right, reasons = expected.transcript, lacking(expected, sizes)
    if transcript.stop in (Stop.POOL_FULL, Stop.LOG_FULL, Stop.THREADS_FULL, Stop.MESSAGES_FULL):
        if transcript.stop == Stop.POOL_FULL:
            check_pool(transcript, expected, sizes)
        else:
            assert transcript.stop in reasons, f"problem {transcript.problem}: {transcript.stop.name}, but it fits"
        check_beginning(transcript, right)
    else:
        assert not reasons, (
            f"problem {transcript.problem} does not fit, {reasons}, and ended with {transcript.stop.name}"
        )
        oracle.compare(transcript, right)


def lacking(expected: Expected, sizes: Sizes) -> set[Stop]:
    """Of what a problem never gives back, that which the sizes do not have."""
    log = expected.transcript.log
    entries = np.bincount(log.thread, minlength=len(expected.transcript.threads))
    needs = {
        Stop.THREADS_FULL: len(expected.transcript.threads) > sizes.threads,
        Stop.LOG_FULL: _runs(entries, sizes.log_run).sum() > sizes.log_runs,
        Stop.MESSAGES_FULL: expected.pieces > sizes.pieces,
    }
    return {stop for stop, lacks in needs.items() if lacks}


def check_pool(transcript: Transcript, expected: Expected, sizes: Sizes) -> None:
    """Assert that the runs held when the pool was full, and those that the next step could ask for, are more than there are."""
    threads, right = transcript.threads, expected.transcript
    fed = _fed(transcript)
    finished = np.array([thread.stop not in (Stop.KILLED, Stop.RUNNING) for thread in threads])
    kept = np.array(
        [expected.held.get(t.path, False) and not transcript.sees[t.parent, i] for i, t in enumerate(threads)]
    )
    released = finished & ~kept
    held = ~released | transcript.sees[~released].any(axis=0)
    whole = dict(zip((thread.path for thread in right.threads), _fed(right), strict=True))
    left = np.array([whole[thread.path] for thread in threads]) - fed
    parents = {thread.parent for i, thread in enumerate(threads) if not finished[i]}
    running = np.array([not finished[i] and i not in parents for i in range(len(threads))])
    step = np.minimum(left, sizes.feed_chunk)
    wants = np.where(running, _runs(fed + step, sizes.run) - _runs(fed, sizes.run), 0)
    total = _runs(fed, sizes.run)[held].sum() + wants.sum()
    assert total > sizes.runs, f"problem {transcript.problem}: POOL_FULL at {total} of {sizes.runs} runs"


def check_beginning(transcript: Transcript, right: Transcript) -> None:
    """Assert that every line of a problem that was stopped is a beginning of what it should have become."""
    stops = {(thread.path, thread.segment): thread.stop for thread in right.threads}
    got, log, where = transcript.log, right.log, f"problem {transcript.problem}"
    for thread in transcript.threads:
        stop = stops[thread.path, thread.segment]
        assert thread.stop in (Stop.KILLED, Stop.DROPPED, stop), (
            f"{where}, thread {thread.path}: {thread.stop.name}, right is {stop.name}"
        )
    same, whole = np.full(len(got), -1), lines(right)
    for path, begun in lines(transcript).items():
        assert len(begun) <= len(whole[path]), f"{where}, line {path}: longer than it should become"
        same[begun] = whole[path][: len(begun)]
    fed = got.clock >= 0
    for name in ("token", "source"):
        np.testing.assert_array_equal(getattr(got, name), getattr(log, name)[same], err_msg=f"{name}, {where}")
    for name in ("index", "position", "clock"):
        np.testing.assert_array_equal(
            getattr(got, name)[fed], getattr(log, name)[same][fed], err_msg=f"{name}, {where}"
        )
    drawn = got.sampled
    np.testing.assert_array_equal(same[got.predictor[drawn]], log.predictor[same][drawn], err_msg=f"predictor, {where}")
    for name in ("logprob", "behaviour_logprob"):
        np.testing.assert_allclose(getattr(got, name), getattr(log, name)[same], rtol=0, atol=1e-9, err_msg=where)
    saw, should = (
        oracle.visible(got, transcript.sees, right.together)[fed],
        oracle.visible(log, right.sees, right.together)[same[fed]],
    )
    np.testing.assert_array_equal(saw, should[:, same], err_msg=f"what was seen, problem {transcript.problem}")
    assert (saw.sum(axis=1) == should.sum(axis=1)).all(), f"problem {transcript.problem}: a row saw less than it should"


def _fed(transcript: Transcript) -> np.ndarray:
    return np.bincount(transcript.log.thread[transcript.log.clock >= 0], minlength=len(transcript.threads))


def _runs(count: np.ndarray, run: int) -> np.ndarray:
    return -(-count // run)


def features(body: Body, expected: Expected) -> list[str]:
    """What a problem is an example of, for counting."""
    transcript = expected.transcript
    found = [f"stop {thread.stop.name}" for thread in transcript.threads]
    found += [f"depth {max(len(t.path) for t in transcript.threads if t.stop != Stop.DROPPED)}"]
    if len(transcript.threads) > 1:
        for each in programs.bodies(body):
            for now in each:
                if now.action == Action.FORK:
                    flush = "" if now.flush else ", not flushed"
                    found.append(f"{Context(now.context).name} {Join(now.join).name}{flush}".lower())
    return found
