"""What programs of threads (`thread_programs`) must give: an interpreter of the tree, and what may stop one for want of room.

The interpreter is written on the threads of `oracle`, in direct style, and knows neither the numbers that a program is
encoded in nor the engine's book. Where a size is too small for a problem, `check` says whether the engine had to stop it,
or might, and that what it left is the beginning of what is right.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import oracle
import thread_programs as programs
from apr_jax.decode import Sizes, Stop, Transcript
from oracle import Entry, Program, Thread, World
from reference_model import Forward, draw
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


class _World(World):
    """A world that also counts what a join needs."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.pieces, self.held = 1, {(): False}


def run(forward: Forward, problem: Any, body: Body, seed: int, rng: np.random.Generator | None = None) -> Expected:
    """Interpret one problem, whose prompt ends with the numbers of `body`; see `oracle.run`."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), problem.id), problem.sample)
    choose = lambda thread, logits, uniform, problem: draw(logits, uniform, problem)  # noqa: E731
    world, root = _World(forward, problem, choose), Thread((), None, key)
    prompt = [int(token) for token in problem.prompt[: -programs.NUMBERS]]
    world.start(root, _play(world, root, prompt, body))
    world.loop(rng)
    return Expected(oracle._record(root, problem), world.pieces, world.held)


def _play(world: _World, thread: Thread, fed: Sequence[int], body: Body) -> Program:
    """One thread, from its header to its end."""
    yield from thread.feed_tokens(fed)
    opened: list[_Child] = []
    unfed: Entry | None = None
    stop: Stop | None = None
    for place, now in enumerate(body):
        left = now.say
        while left:
            if unfed is not None:
                yield []
                thread.feed(unfed)
            unfed = world.sample(thread)
            left -= unfed.token >= programs.FIRST_EVENT
            if left and world.spent(thread):
                stop = Stop.LENGTH
                break
        if stop is None and now.action in (Action.END, Action.FAIL):
            stop = Stop.END if now.action == Action.END else Stop.MALFORMED
        if stop is not None:
            break
        if now.action in (Action.GO_ON, Action.OPEN):
            opened += _open(thread, now)
            if world.spent(thread):
                stop = Stop.LENGTH
                break
            continue
        if now.flush and unfed is not None:
            yield []
            thread.feed(unfed)
            unfed = None
        opened += _open(thread, now)
        if not opened:
            stop = Stop.MALFORMED
            break
        children, opened = opened, []
        stitched = _start(world, thread, children, now)
        yield from thread.await_children([child.thread for child in children])
        for child in stitched:
            thread.stitch(child)
        message = _message(world, [child.thread for child in children], now)
        if body[place + 1].say and world.spent(thread):
            stop = Stop.LENGTH
            break
        if unfed is not None:
            thread.feed(unfed)
            yield []
            unfed = None
        yield from thread.feed_tokens(message)
    for child in opened:
        child.thread.stop = Stop.DROPPED
    if world.held[thread.path] and unfed is not None:
        yield []
        thread.feed(unfed)
    thread.stop = stop


def _open(thread: Thread, now: Instruction) -> list[_Child]:
    return [_Child(thread.open(), body) for body in now.children]


def _start(world: _World, thread: Thread, children: Sequence[_Child], now: Instruction) -> list[Thread]:
    """Start children; returns those that the parent will see."""
    threads = [child.thread for child in children]
    stitched = {Join.STITCH: threads, Join.REENCODE: threads[:1]}.get(now.join, [])
    oracle._fork(thread, threads, now.context.name.lower())
    quoted = [entry.token for entry in thread.entries[max(len(thread.entries) - now.quote, 0) :]]
    for child in children:
        begin = child.thread.path[-1] % programs.HEADERS
        header = [*quoted, *programs.TEMPLATES[begin : begin + now.header]]
        world.held[child.thread.path] = child.thread in stitched
        world.pieces += 2
        world.start(child.thread, _play(world, child.thread, header, child.body))
    return stitched


def _message(world: _World, children: Sequence[Thread], now: Instruction) -> list[int]:
    """What the parent is fed at the join."""
    text = [[entry.token for entry in child.entries] for child in children]
    told: list[list[int]] = []
    if now.join == Join.MESSAGE:
        told = [[programs.TEMPLATES[programs.RESULT], *words[max(len(words) - now.message, 0) :]] for words in text]
    if now.join == Join.REENCODE:
        told = text[1:]
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
    """Assert that every thread of a problem that was stopped is a beginning of what it should have become."""
    place = {thread.path: i for i, thread in enumerate(right.threads)}
    got, log, number = transcript.log, right.log, []
    for i, thread in enumerate(transcript.threads):
        where = f"problem {transcript.problem}, thread {thread.path}"
        assert thread.stop in (Stop.KILLED, Stop.DROPPED, right.threads[place[thread.path]].stop), (
            f"{where}: {thread.stop.name}, right is {right.threads[place[thread.path]].stop.name}"
        )
        begun = np.flatnonzero(got.thread == i)
        number += np.flatnonzero(log.thread == place[thread.path])[: len(begun)].tolist()
    same = np.array(number, int)
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
    saw, should = oracle.visible(got, transcript.sees)[fed], oracle.visible(log, right.sees)[same[fed]]
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
