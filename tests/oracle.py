"""A slow interpreter of threads in plain Python: what the compiled loop must do, said a second time and independently.

A thread is a coroutine in direct style. Every token that is fed keeps the list of tokens it sees: all that the threads
its own thread sees have been fed by then; of a live sibling as many as it has been fed itself. No clock decides what is
seen, no pool and no slots: `run` asserts in the end that clocks and the matrix `sees` say the same. Only the uniform draws
come from `jax.random`, as the loop's contract says.

    forward = reference_model.transformer(params, config)
    expected = run(forward, problem, protocol, seed)
    compare(transcript, expected)

Axes: E log entries.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from apr_jax.record import Log, Source, Stop, ThreadRecord, Transcript
from reference_model import DRAWS, Fed, Forward, draw, uniforms

# ---- threads

_child_key = jax.jit(jax.random.fold_in)


@dataclasses.dataclass(eq=False)
class Entry(Fed):
    source: Source = Source.FED
    logprob: float = np.nan
    behaviour: float = np.nan
    predictor: "Entry | None" = None
    depth: int = 0
    index: int = -1
    clock: int = -1


class Thread:
    """One line of reasoning. What it sees are threads, not copies of their tokens."""

    segment = 0  # threads of its line before it
    branch = 0
    joined: int | None = (
        None  # where it stood in its parent's clocks when that joined it; None: its interpreter does not say
    )

    def __init__(self, path: tuple[int, ...], parent: "Thread | None", key: jax.Array):
        self.path, self.parent, self.key = path, parent, key
        self.entries: list[Entry] = []
        self.own: list[Entry] = []  # those that were fed
        self.children: list[Thread] = []
        self.seen: list[Thread] = [self]
        self.live: list[Thread] = []  # siblings that it sees while they write
        self.generated = self.count = self.floor = self.next_position = 0
        self.stop: Stop | None = None
        self.follows: Thread | None = None  # whose reasoning it took over, if that is not its parent
        self.message: list[int] = []  # what it returns to its parent
        self.uniforms: np.ndarray | None = None

    @property
    def clock(self) -> int:
        """The largest clock it has written."""
        return self.own[-1].clock if self.own else 0

    def latest(self) -> int:
        """The largest clock that it and its descendants have written."""
        return max([self.clock, *(child.latest() for child in self.children)])

    def ahead(self) -> bool:
        """Whether a live sibling has to be fed before this thread is."""
        return any(other.stop is None and len(other.own) < len(self.own) for other in self.live)

    def feed(self, entry: Entry) -> None:
        assert not self.ahead()
        entry.index, entry.position, entry.clock = len(self.own), self.next_position, 1 + max(self.clock, self.floor)
        entry.branch = self.branch
        self.own.append(entry)
        views = [other.own[: entry.index] if other in self.live else other.own for other in self.seen]
        entry.sees = [seen for view in views for seen in view]
        self.next_position += 1
        self.count = max([self.count, *(seen.depth for seen in entry.sees)])

    def feed_tokens(self, tokens: Sequence[int]) -> Iterator[list]:
        for token in tokens:
            self.entries.append(Entry(int(token)))
            self.feed(self.entries[-1])
            self.entries[-1].depth = self.count
            yield []

    def stitch(self, child: "Thread") -> None:
        """See from now on the line of a finished child (what it sees but for its live siblings), and go on after it."""
        line = [other for other in child.seen if other not in child.live]
        self.seen += [other for other in line if other not in self.seen]
        self.next_position = max(self.next_position, child.next_position)

    def open(self) -> "Thread":
        number = len(self.children)
        self.children.append(type(self)((*self.path, number), self, _child_key(self.key, 1 + number)))
        return self.children[-1]

    def await_children(self, children: Sequence["Thread"]) -> Iterator[list]:
        yield list(children)
        self.floor = max([self.floor, *(child.latest() for child in children)])
        self.count = max([self.count, *(child.count for child in children)])


Choose = Callable[[Thread, np.ndarray, float, Any], tuple[int, float, float]]
Program = Iterator[list[Thread]]  # yields the threads that must be finished before it goes on
Interpreter = Callable[["World", Thread, Sequence[int], Any], Program]  # of the root, from the prompt and the protocol


class World:
    """The threads of one problem and the order they are run in."""

    def __init__(self, forward: Forward, problem: Any, choose: Choose):
        self.forward, self.problem, self.choose = forward, problem, choose
        self.running: list[tuple[Thread, Program, list[Thread]]] = []
        self.answering = 0  # the depth of the threads that answer

    def begin(self, key: jax.Array, prompt: list[int], protocol: Any, program: Interpreter | None) -> Thread:
        self.answering = int(getattr(protocol, "samples", 0) > 0)
        root = Thread((), None, key)
        self.start(root, (program or PROGRAMS[type(protocol).__name__])(self, root, prompt, protocol))
        return root

    def start(self, thread: Thread, program: Program) -> None:
        self.running.append((thread, program, []))

    def sample(self, thread: Thread) -> Entry:
        if thread.uniforms is None:
            assert self.problem.max_tokens <= DRAWS, f"a thread of the oracle may draw {DRAWS} tokens"
            thread.uniforms = np.asarray(uniforms(thread.key))
        logits = self.forward(thread.own[-1])
        token, logprob, behaviour = self.choose(thread, logits, thread.uniforms[thread.generated], self.problem)
        thread.generated, thread.count = thread.generated + 1, thread.count + 1
        about = dict(logprob=logprob, behaviour=behaviour, predictor=thread.own[-1], depth=thread.count)
        thread.entries.append(Entry(token, source=Source.SAMPLED, **about))
        return thread.entries[-1]

    def spent(self, thread: Thread) -> bool:
        child = len(thread.path) > self.answering
        budget = (child and self.problem.child_max_tokens) or self.problem.max_tokens
        return thread.generated >= budget

    def loop(self, rng: np.random.Generator | None) -> None:
        """Step threads one at a time until all are finished: the first ready one, or any ready one.

        A step feeds at most one token. Live siblings take their steps by least clock.
        """
        while self.running:
            ready = [
                place
                for place, (thread, _, waits) in enumerate(self.running)
                if not thread.ahead() and all(other.stop is not None for other in waits)
            ]
            place = ready[0] if rng is None else int(rng.choice(ready))
            thread, program, _ = self.running.pop(place)
            waits = next(program, None)
            assert waits is not None or thread.stop is not None
            if waits is not None:
                self.running.insert(place, (thread, program, waits))


# ---- protocols: the program of one thread each


def _until_end(world: World, thread: Thread, fed: Sequence[int], protocol: Any) -> Program:
    yield from thread.feed_tokens(fed)
    while thread.stop is None:
        entry = world.sample(thread)
        if entry.token == protocol.end:
            thread.stop = Stop.END
        elif world.spent(thread):
            thread.stop = Stop.LENGTH
        else:
            yield []
            thread.feed(entry)


def _samples(
    world: World, thread: Thread, fed: Sequence[int], protocol: Any, count: int | None = None, each: Any = _until_end
) -> Program:
    """A root that reads, and `count` children that answer, each of which runs the program `each`."""
    yield from thread.feed_tokens(fed[:-1])
    children = [thread.open() for _ in range(protocol.count if count is None else count)]
    for child in children:
        child.seen, child.next_position, child.floor = [thread, child], len(fed) - 1, thread.clock
        world.start(child, each(world, child, fed[-1:], protocol))
    yield from thread.await_children(children)
    thread.stop = Stop.END


def _modes(protocol: Any) -> tuple[str, str]:
    """What children see of their parent, and how they come back to it."""
    context, returns = getattr(protocol, "context", "isolated"), getattr(protocol, "returns", "message")
    assert context in ("isolated", "shared", "live") and returns in ("message", "stitch", "reencode")
    assert context != "live" or protocol.max_depth == 1, "live children do not fork"
    return context, returns


def _fork(thread: Thread, children: Sequence[Thread], context: str) -> None:
    """What a child inherits. The parent was flushed unless the children are isolated."""
    for child in children:
        child.floor, child.count = thread.clock, thread.count
        if context != "isolated":
            child.seen, child.next_position = [*thread.seen, child], thread.next_position
        if context == "live":
            child.live = [other for other in children if other is not child]
            child.seen += child.live


def _spawn_join(world: World, thread: Thread, fed: Sequence[int], protocol: Any, flushed: bool = False) -> Program:
    """A thread that may fork: `opened` are the children of the block it is writing, with their messages.

    `flushed`: its parent will see it, so its last token is fed as well.
    """
    depth = len(thread.path) - world.answering
    if depth < 0:
        yield from _samples(world, thread, fed, protocol, protocol.samples, _spawn_join)
        return
    yield from thread.feed_tokens(fed)
    context, way = _modes(protocol)
    opened: list[tuple[Thread, list[int]]] = []
    returns: int | None = None
    while True:
        entry = world.sample(thread)
        stop = None
        waiting = entry.token == protocol.wait and bool(opened)
        too_deep = entry.token == protocol.spawn and depth >= protocol.max_depth
        if entry.token == protocol.end:
            stop = Stop.MALFORMED if opened else Stop.END
        elif too_deep or (entry.token == protocol.wait and not opened):
            stop = Stop.MALFORMED
        elif entry.token == protocol.spawn:
            opened.append((thread.open(), []))
        elif not waiting:
            if opened:
                opened[-1][1].append(entry.token)
            if entry.token == protocol.join and depth and returns is None:
                returns = len(thread.entries)
        if stop is None and not waiting and world.spent(thread):
            stop = Stop.LENGTH
        if stop is not None:
            break
        yield []
        if not waiting:
            thread.feed(entry)
            continue
        if context != "isolated":
            thread.feed(entry)
        children = [child for child, _ in opened]
        stitched = {"message": [], "stitch": children, "reencode": children[:1]}[way]
        _fork(thread, children, context)
        for child, message in opened:
            header = [protocol.spawn, *message, protocol.go]
            world.start(child, _spawn_join(world, child, header, protocol, flushed=child in stitched))
        opened = []
        yield from thread.await_children(children)
        for child in stitched:
            thread.stitch(child)
        if world.spent(thread):
            stop = Stop.LENGTH
            break
        if context == "isolated":
            thread.feed(entry)
            yield []
        texts: list[list[int]] = []
        if way == "message":
            texts = [[protocol.result, *child.message] for child in children]
        if way == "reencode":
            texts = [[again.token for again in child.entries] for child in children[1:]]
        yield from thread.feed_tokens([*(token for text in texts for token in text), protocol.go])
    for child, _ in opened:
        child.stop = Stop.DROPPED
    if stop == Stop.END and returns is not None:
        thread.message = [entry.token for entry in thread.entries[returns:-1]]
    if flushed and entry.index < 0:
        yield []
        thread.feed(entry)
    thread.stop = stop


PROGRAMS = {"Sequential": _until_end, "Samples": _samples, "SpawnJoin": _spawn_join}


# ---- what the tests call


def run(
    forward: Forward,
    problem: Any,
    protocol: Any,
    seed: int,
    schedule_rng: np.random.Generator | None = None,
    choose: Choose = lambda thread, logits, uniform, problem: draw(logits, uniform, problem),
    world: type = World,
    program: Interpreter | None = None,
) -> Transcript:
    """Interpret one problem.

    Args:
      forward: the model.
      problem: has the fields of `apr_jax.decode.Problem`.
      protocol: has the name and the fields of a protocol of `apr_jax.protocols`.
      seed: as given to `decode`.
      schedule_rng: order in which ready threads are stepped; depth first without it. The result does not depend on it.
      choose: picks a token for a thread from its logits and uniform draw.
      world: `World`, or one that knows other protocols.
      program: of the root; without it that of `PROGRAMS`. The test of a new method brings its own.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), problem.id), problem.sample)
    begun = world(forward, problem, choose)
    root = begun.begin(key, [int(token) for token in problem.prompt], protocol, program)
    begun.loop(schedule_rng)
    return _record(root, problem, getattr(protocol, "together", 0) > 0)


def _record(root: Thread, problem: Any, together: bool = False) -> Transcript:
    threads, stack = [], [root]
    while stack:
        threads.append(stack.pop())
        stack.extend(reversed(threads[-1].children))
    entries = [entry for thread in threads for entry in thread.entries]
    number = {id(entry): i for i, entry in enumerate(entries)} | {id(None): -1}
    rank = {id(thread): i for i, thread in enumerate(threads)} | {id(None): -1}
    sees = np.zeros((len(threads), len(threads)), bool)
    for thread in threads:
        for other in thread.seen:
            sees[rank[id(thread)], rank[id(other)]] = True

    def column(name: str, dtype: Any = np.int32) -> np.ndarray:
        return np.array([getattr(entry, name) for entry in entries], dtype)

    log = Log(
        token=column("token"),
        thread=np.repeat(np.arange(len(threads)), [len(thread.entries) for thread in threads]),
        index=column("index"),
        position=column("position"),
        clock=column("clock"),
        source=column("source"),
        logprob=column("logprob", np.float64),
        behaviour_logprob=column("behaviour", np.float64),
        predictor=np.array([number[id(entry.predictor)] for entry in entries], np.int32),
        depth=column("depth"),
    )
    above = [(rank[id(t.parent)], rank[id(t.follows)]) for t in threads]
    records = tuple(
        ThreadRecord(t.path, parent, t.stop, t.segment, follows, t.branch, t.joined)
        for t, (parent, follows) in zip(threads, above, strict=True)
    )
    for i, row in enumerate(visible(log, sees, together)):
        saw = sorted(number[id(seen)] for seen in entries[i].sees)
        assert saw == np.flatnonzero(row).tolist(), f"what entry {i} saw is not what the record says"
    peak = max(len(thread.own[-1].sees) for thread in threads if thread.own)
    last = threads[sum(not thread.path for thread in threads) - 1]  # of the root's line
    return Transcript(problem.id, problem.sample, last.stop, records, sees, log, peak, together)


def visible(log: Log, sees: np.ndarray, together: bool = False) -> np.ndarray:
    """Bool [E, E]: which entries a fed one saw, as its record says: by index in its own thread, else by clock."""
    same = log.thread[:, None] == log.thread
    before = np.where(same, log.index[:, None] >= log.index, log.clock[:, None] + together > log.clock)
    fed = log.clock >= 0
    return sees[log.thread[:, None], log.thread] & before & fed[:, None] & fed


def compare(transcript: Transcript, expected: Transcript, tolerance: float = 1e-9) -> None:
    """Assert that two records of a problem say the same.

    Log-probs may differ by `tolerance`, nothing else may. `depth` of fed tokens is not compared.
    """
    name = f"problem {expected.problem}.{expected.sample}"
    assert (transcript.problem, transcript.sample) == (expected.problem, expected.sample), name
    texts = [f"{t.path}: {x.tokens(i)} {t.stop.name}" for x in (transcript, expected) for i, t in enumerate(x.threads)]
    story = f"{name}: the transcript, then what is right\n" + "\n".join(texts)
    # Interpreters that know nothing of joins by name leave the marks out.
    told = any(thread.joined is not None for thread in expected.threads)
    found = [t if told else dataclasses.replace(t, joined=None) for t in transcript.threads]
    assert found == list(expected.threads), story
    assert transcript.stop == expected.stop, story
    np.testing.assert_array_equal(transcript.sees, expected.sees, err_msg=f"{name}: sees")
    got, log = transcript.log, expected.log
    for field in ("token", "thread", "source", "index", "position", "clock", "predictor"):
        np.testing.assert_array_equal(getattr(got, field), getattr(log, field), err_msg=f"{field} of {story}")
    np.testing.assert_array_equal(got.depth[log.sampled], log.depth[log.sampled], err_msg=f"depth of {story}")
    for field in ("logprob", "behaviour_logprob"):
        values, bound = (getattr(got, field), getattr(log, field)), dict(rtol=0, atol=tolerance)
        np.testing.assert_allclose(*values, **bound, err_msg=f"{field} of {story}")
    assert transcript.peak_context == expected.peak_context, f"{name}: peak context"
    assert transcript.together == expected.together, name
