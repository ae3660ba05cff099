"""A slow interpreter of threads in plain Python: what the compiled loop must do, said a second time and independently.

A thread is a coroutine in direct style and its context an explicit list of (token, position) in the order it sees
them. Every token costs one full causal forward in NumPy over that list: no cache, no pool, no slots. Only the uniform
draws come from `jax.random`, as the loop's contract says.

    forward = reference_model.transformer(params, config)
    expected = run(forward, problem, protocol, seed)
    compare(transcript, expected)
    replay(transcript, forward, problem, protocol, seed)      # for f32, where near ties may fall either way

Axes: V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apr_jax.decode.transcript import Log, Source, Stop, ThreadRecord, Transcript
from reference_model import Forward

DRAWS = 64  # uniforms computed at once per thread


# ---- sampling


@jax.jit
def _uniforms(key: jax.Array) -> jax.Array:
    draws = jax.random.fold_in(key, 0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(draws, jnp.arange(DRAWS))
    return jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys)


@jax.jit
def _child_key(key: jax.Array, number: int) -> jax.Array:
    return jax.random.fold_in(key, number)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def kept(logits: np.ndarray, problem: Any, slack: float = 0.0) -> np.ndarray:
    """Probabilities [V] after temperature, top-k, then top-p, renormalised; 0 for what was cut off.

    `slack` is added to top-p: near ties at its edge fall either way in f32.
    """
    scaled = np.asarray(logits, np.float64) / problem.temperature
    order = np.argsort(-scaled, kind="stable")
    if problem.top_k:
        order = order[: problem.top_k]
    mass = np.exp(_log_softmax(scaled[order]))
    if problem.top_p < 1:
        before = np.cumsum(mass) - mass
        number = max(1, int((before < problem.top_p + slack).sum()))
        order, mass = order[:number], mass[:number]
    probability = np.zeros(len(scaled))
    probability[order] = mass / mass.sum()
    return probability


def draw(logits: np.ndarray, uniform: float, problem: Any) -> tuple[int, float, float]:
    """A token, its log-probability and that under the distribution it was drawn from."""
    plain = _log_softmax(np.asarray(logits, np.float64))
    if problem.temperature == 0:
        token = int(np.argmax(logits))
        return token, plain[token], 0.0
    probability = kept(logits, problem)
    upto = np.cumsum(probability)
    above = np.flatnonzero(upto > float(uniform) * upto[-1])
    token = int(above[0])
    return token, plain[token], np.log(probability[token])


# ---- threads


@dataclasses.dataclass
class Entry:
    token: int
    source: Source
    logprob: float = np.nan
    behaviour: float = np.nan
    predictor: "Entry | None" = None
    depth: int = 0
    index: int = -1
    position: int = -1
    clock: int = -1


class Thread:
    """One line of reasoning. `context` starts as a copy of what it sees of its parent."""

    def __init__(self, path: tuple[int, ...], parent: "Thread | None", key: jax.Array):
        self.path, self.parent, self.key = path, parent, key
        self.context: list[tuple[int, int]] = []
        self.entries: list[Entry] = []
        self.children: list[Thread] = []
        self.seen: list[Thread] = [self]
        self.last: Entry | None = None  # the entry fed last
        self.fed = self.generated = self.count = self.floor = self.next_position = 0
        self.stop: Stop | None = None
        self.message: list[int] = []  # what it returns to its parent
        self.uniforms: np.ndarray | None = None

    @property
    def clock(self) -> int:
        """The largest clock it has written."""
        return self.last.clock if self.last else 0

    def latest(self) -> int:
        """The largest clock that it and its descendants have written."""
        return max([self.clock, *(child.latest() for child in self.children)])

    def feed(self, entry: Entry) -> None:
        entry.index, entry.position, entry.clock = self.fed, self.next_position, 1 + max(self.clock, self.floor)
        self.context.append((entry.token, entry.position))
        self.fed, self.next_position, self.last = self.fed + 1, self.next_position + 1, entry

    def feed_tokens(self, tokens: Sequence[int]) -> Iterator[list]:
        for token in tokens:
            self.entries.append(Entry(int(token), Source.FED, depth=self.count))
            self.feed(self.entries[-1])
            yield []

    def open(self) -> "Thread":
        number = len(self.children)
        self.children.append(Thread((*self.path, number), self, _child_key(self.key, 1 + number)))
        return self.children[-1]

    def await_children(self, children: Sequence["Thread"]) -> Iterator[list]:
        yield list(children)
        self.floor = max([self.floor, *(child.latest() for child in children)])
        self.count = max([self.count, *(child.count for child in children)])


Choose = Callable[[Thread, np.ndarray, float, Any], tuple[int, float, float]]
Program = Iterator[list[Thread]]  # yields the threads that must be finished before it goes on


class World:
    """The threads of one problem and the order they are run in."""

    def __init__(self, forward: Forward, problem: Any, choose: Choose):
        self.forward, self.problem, self.choose = forward, problem, choose
        self.running: list[tuple[Thread, Program, list[Thread]]] = []

    def start(self, thread: Thread, program: Program) -> None:
        self.running.append((thread, program, []))

    def sample(self, thread: Thread) -> Entry:
        if thread.uniforms is None:
            assert self.problem.max_tokens <= DRAWS, f"a thread of the oracle may draw {DRAWS} tokens"
            thread.uniforms = np.asarray(_uniforms(thread.key))
        logits = self.forward(tuple(thread.context))
        token, logprob, behaviour = self.choose(thread, logits, thread.uniforms[thread.generated], self.problem)
        thread.generated, thread.count = thread.generated + 1, thread.count + 1
        thread.entries.append(Entry(token, Source.SAMPLED, logprob, behaviour, thread.last, thread.count))
        return thread.entries[-1]

    def spent(self, thread: Thread) -> bool:
        return thread.generated >= self.problem.max_tokens

    def loop(self, rng: np.random.Generator | None) -> None:
        """Step threads one at a time until all are finished: the first ready one, or any ready one."""
        while self.running:
            ready = [i for i, (_, _, waits) in enumerate(self.running) if all(t.stop is not None for t in waits)]
            place = ready[0] if rng is None else int(rng.choice(ready))
            thread, program, _ = self.running.pop(place)
            waits = next(program, None)
            if waits is not None:
                self.running.insert(place, (thread, program, waits))
            else:
                assert thread.stop is not None


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


def _samples(world: World, thread: Thread, fed: Sequence[int], protocol: Any) -> Program:
    yield from thread.feed_tokens(fed[:-1])
    children = [thread.open() for _ in range(protocol.count)]
    for child in children:
        child.context, child.next_position, child.floor = list(thread.context), len(fed) - 1, thread.clock
        child.seen = [thread, child]
        world.start(child, _until_end(world, child, fed[-1:], protocol))
    yield from thread.await_children(children)
    thread.stop = Stop.END


def _spawn_join(world: World, thread: Thread, fed: Sequence[int], protocol: Any) -> Program:
    """A thread that may fork: `opened` are the children of the block it is writing, with their messages."""
    yield from thread.feed_tokens(fed)
    opened: list[tuple[Thread, list[int]]] = []
    returns: int | None = None
    depth = len(thread.path)
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
        for child, message in opened:
            child.floor, child.count = thread.clock, thread.count
            world.start(child, _spawn_join(world, child, [protocol.spawn, *message, protocol.go], protocol))
        children, opened = [child for child, _ in opened], []
        yield from thread.await_children(children)
        if world.spent(thread):
            stop = Stop.LENGTH
            break
        thread.feed(entry)
        yield []
        results = [token for child in children for token in (protocol.result, *child.message)]
        yield from thread.feed_tokens([*results, protocol.go])
    for child, _ in opened:
        child.stop = Stop.DROPPED
    if stop == Stop.END and returns is not None:
        thread.message = [entry.token for entry in thread.entries[returns:-1]]
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
) -> Transcript:
    """Interpret one problem.

    Args:
      forward: the model.
      problem: has the fields of `apr_jax.decode.Problem`.
      protocol: has the name and the fields of a protocol of `apr_jax.protocols`.
      seed: as given to `decode`.
      schedule_rng: order in which ready threads are stepped; depth first without it. The result does not depend on it.
      choose: picks a token for a thread from its logits and uniform draw.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), problem.id), problem.sample)
    world, root = World(forward, problem, choose), Thread((), None, key)
    prompt = [int(token) for token in problem.prompt]
    world.start(root, PROGRAMS[type(protocol).__name__](world, root, prompt, protocol))
    world.loop(schedule_rng)
    return _record(root, problem)


def _record(root: Thread, problem: Any) -> Transcript:
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
    records = tuple(ThreadRecord(thread.path, rank[id(thread.parent)], thread.stop) for thread in threads)
    peak = max(len(thread.context) for thread in threads)
    return Transcript(problem.id, problem.sample, root.stop, records, sees, log, peak)


def compare(transcript: Transcript, expected: Transcript, tolerance: float = 1e-9) -> None:
    """Assert that two records of a problem say the same.

    Log-probs may differ by `tolerance`, nothing else may. `depth` of fed tokens is not compared.
    """
    name = f"problem {expected.problem}.{expected.sample}"
    assert (transcript.problem, transcript.sample) == (expected.problem, expected.sample), name
    texts = [f"{t.path}: {x.tokens(i)} {t.stop.name}" for x in (transcript, expected) for i, t in enumerate(x.threads)]
    story = f"{name}: the transcript, then what is right\n" + "\n".join(texts)
    assert transcript.threads == expected.threads, story
    assert transcript.stop == expected.stop, story
    np.testing.assert_array_equal(transcript.sees, expected.sees, err_msg=f"{name}: sees")
    got, log = transcript.log, expected.log
    for field in ("token", "thread", "source", "index", "position", "clock", "predictor"):
        np.testing.assert_array_equal(getattr(got, field), getattr(log, field), err_msg=f"{field} of {story}")
    np.testing.assert_array_equal(got.depth[log.sampled], log.depth[log.sampled], err_msg=f"depth of {story}")
    for field in ("logprob", "behaviour_logprob"):
        np.testing.assert_allclose(
            getattr(got, field), getattr(log, field), rtol=0, atol=tolerance, err_msg=f"{field} of {story}"
        )
    assert transcript.peak_context == expected.peak_context, f"{name}: peak context"


def replay(
    transcript: Transcript, forward: Forward, problem: Any, protocol: Any, seed: int, tolerance: float = 1e-4
) -> None:
    """Assert that a transcript made in f32 follows from its own tokens.

    The interpreter is run with the tokens of the transcript in place of its own. A greedy token must have a logit
    within `tolerance` of the best, a sampled one its uniform draw within `tolerance` of its interval of the cumulative
    distribution; then everything else must be equal, log-probs within `tolerance`.
    """
    tokens = {thread.path: transcript.generated(i) for i, thread in enumerate(transcript.threads)}

    def choose(thread: Thread, logits: np.ndarray, uniform: float, problem: Any) -> tuple[int, float, float]:
        where = f"problem {problem.id}.{problem.sample}, thread {thread.path}, draw {thread.generated}"
        assert thread.generated < len(tokens.get(thread.path, ())), f"{where}: the transcript has no such token"
        token = int(tokens[thread.path][thread.generated])
        plain = _log_softmax(logits)[token]
        if problem.temperature == 0:
            below = logits.max() - logits[token]
            assert below <= tolerance, f"{where}: the logit of {token} is {below} below the best"
            return token, plain, 0.0
        for slack in (0.0, -tolerance, tolerance):
            probability = kept(logits, problem, slack)
            upto = np.cumsum(probability)
            low, high = upto[token] - probability[token], upto[token]
            if probability[token] and low - tolerance <= uniform <= high + tolerance:
                return token, plain, np.log(probability[token])
        raise AssertionError(f"{where}: {token} has the interval [{low}, {high}], the draw is {uniform}")

    compare(transcript, run(forward, problem, protocol, seed, choose=choose), tolerance)
