"""Searches over steps in plain Python: the interpreter of their protocols for `oracle`, and a model and problems that are worth it.

    last = []
    program = functools.partial(searching.searching, last=last)
    expected = oracle.run(forward, problem, protocol, seed, program=program)

The protocol is read by its fields; one that has a judge values its candidates as that says.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

import forking
import oracle
import reference_model
from apr_jax.decode import Problem, Source, Stop
from apr_jax.model import transformer
from apr_jax.protocols import judges
from apr_jax.protocols.phrases import Phrases
from apr_jax.protocols.votes import Vote
from phrase_matcher import Plain, Table
from test_engine import CONFIG

WORDS = forking.Words()
STEP_ENDS = (8, 10, 13)
CODEC = Table([bytes([97 + i]) for i in range(16)])  # what the tokens say: a letter each


@functools.cache
def model(dtype: str, end: float = -1.0, steps: float = 1.0) -> transformer.Model:
    """One that says a step token every third time, and seldom an end; in f32 with heads that the CPU kernels serve.

    Args:
        end, steps: how likely they are, as logits.
    """
    table = np.zeros((16, 16))
    table[:, WORDS.end], table[:, list(STEP_ENDS)] = end, steps
    size = CONFIG.head_dim if dtype == "float64" else 16
    config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype, head_dim=size)
    biased = forking.biased_model(config, 0, table, 1.0)
    return transformer.Model(biased.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), biased.params))


@functools.cache
def forward(dtype: str, **likely: float) -> reference_model.Forward:
    made = model(dtype, **likely)
    return reference_model.transformer(made.params, made.config)


@functools.cache
def problems(count: int = 40) -> tuple[Problem, ...]:
    rng = np.random.default_rng(11)
    cases = [forking.random_case(rng, number, greedy=0.1) for number in range(count)]
    drawn = [Problem(**{field.name: getattr(case, field.name) for field in dataclasses.fields(case)}) for case in cases]
    extreme = dict(temperature=1.25, max_tokens=9)
    last = (
        Problem(count, np.array([3, 1]), temperature=1.25, max_tokens=1),  # all end at once
        Problem(count + 1, np.array([9, 2]), **extreme, child_max_tokens=1),  # nearly no step ends in time
        Problem(count + 2, np.array([4]), **extreme),  # the root is fed nothing
        Problem(count + 3, np.array([5, 5]), temperature=0.0, max_tokens=9),  # all candidates are copies
    )
    return (*drawn, *last)


# ---- the interpreter


@dataclasses.dataclass(eq=False)
class Beam:
    """A candidate: its thread, and of the chain that it ends the tokens and their log-probabilities in units."""

    thread: oracle.Thread
    tree: int
    before: "Beam | None" = None
    said: list[int] = dataclasses.field(default_factory=list)
    units: list[int] = dataclasses.field(default_factory=list)
    finished: bool = False
    value: int = 0
    rolled: "Beam | None" = None

    def whole(self, name: str) -> list[int]:
        return [*(self.before.whole(name) if self.before else ()), *getattr(self, name)]

    def merit(self, protocol) -> np.float32:
        if hasattr(protocol, "reward"):
            return np.float32(protocol.reward(self.whole("said")))
        if hasattr(protocol, "judge"):
            return np.float32(self.value)
        units = self.units if protocol.score == "last" else self.whole("units")
        return np.float32(sum(units)) / np.float32(1 if protocol.score == "sum" else len(units))


def step(world: oracle.World, beam: Beam, header: Sequence[int], final: bool, protocol) -> oracle.Program:
    """One step of a beam."""
    thread, problem, earlier = beam.thread, world.problem, len(beam.whole("said"))
    limit = problem.max_tokens - earlier
    if problem.child_max_tokens and not final:
        limit = min(limit, problem.child_max_tokens)
    yield []
    if beam.before:
        entry = oracle.Entry(beam.before.said[-1], source=Source.HANDED)
        thread.entries.append(entry)
        thread.feed(entry)
    else:
        yield from thread.feed_tokens(header)
    while True:
        yield []
        entry = world.sample(thread)
        beam.said.append(entry.token)
        beam.units.append(int(np.round(entry.logprob * 1024)))
        if entry.token == protocol.end or (entry.token in protocol.step_ends and not final):
            thread.stop = Stop.END
        elif len(beam.said) == limit:
            thread.stop = Stop.LENGTH
        if thread.stop is not None:
            over = thread.stop == Stop.LENGTH or earlier + len(beam.said) >= problem.max_tokens
            beam.finished = over or entry.token == protocol.end
            return
        thread.feed(entry)


def question(world: oracle.World, beam: Beam, thread: oracle.Thread, protocol) -> oracle.Program:
    """One thread of a judge that is fed a question; what it finds is added to the value of the beam."""
    judge = protocol.judge
    yield []
    if judge.quotes and not beam.finished:
        thread.entries.append(oracle.Entry(beam.said[-1], source=Source.HANDED))
        thread.feed(thread.entries[-1])
    yield from thread.feed_tokens(judge.ask)
    if isinstance(judge, judges.Asked):
        logprobs = reference_model.log_softmax(np.asarray(world.forward(thread.own[-1]), np.float64))
        told = np.logaddexp.reduce(logprobs[list(judge.says)]) if judge.says else logprobs.max()
        beam.value += int(np.round(told * 1024))
        thread.stop = Stop.END
        return
    matcher = Plain(CODEC, judge.labels.phrases)
    names = [phrase.name for phrase in judge.labels.phrases]
    while True:
        entry = world.sample(thread)
        label = matcher.step(entry.token)
        if label:
            beam.value += int(np.round(np.float32(judge.numbers[names.index(label)]) * 1024))
        if label or entry.token == protocol.end:
            thread.stop = Stop.END
        elif thread.generated == judge.tokens:
            thread.stop = Stop.LENGTH
        if thread.stop is not None:
            return
        yield []
        thread.feed(entry)


def votes(
    world: oracle.World, root: oracle.Thread, prompt: Sequence[int], beams: Sequence[Beam], protocol
) -> oracle.Program:
    """Voters read the texts of all beams that stand, in the order of their paths; each beam is worth its votes."""
    judge, choices = protocol.judge, sorted(beams, key=lambda beam: beam.thread.path)
    headers, (ask,) = _members(judge.phrases, "header"), _members(judge.phrases, "ask")
    texts = [[token for token in beam.whole("said") if token != protocol.end] for beam in choices]
    read = [token for header, text in zip(headers, texts, strict=False) for token in (*header, *text)]
    threads, found = [root.open() for _ in range(judge.threads)], []

    def voter(thread: oracle.Thread) -> oracle.Program:
        yield []
        yield from thread.feed_tokens([prompt[-1], *read, *ask])
        matcher = Plain(CODEC, judge.numbers.phrases)
        while True:
            entry = world.sample(thread)
            if name := matcher.step(entry.token):
                found.append([phrase.name for phrase in judge.numbers.phrases].index(name))
            if name or entry.token == protocol.end:
                thread.stop = Stop.END
            elif thread.generated == judge.tokens:
                thread.stop = Stop.LENGTH
            if thread.stop is not None:
                return
            yield []
            thread.feed(entry)

    for thread in threads:
        go_on(thread, root, root)
        world.start(thread, voter(thread))
    yield from root.await_children(threads)
    for number, beam in enumerate(choices):
        beam.value = 1024 * found.count(number)


def _members(phrases: Phrases, name: str) -> list[tuple[int, ...]]:
    place = phrases.names.index(name)
    return [
        phrases.tokens[start : start + length]
        for start, length in zip(phrases.starts[place], phrases.lengths[place], strict=True)
    ]


def worth(beam: Beam, protocol) -> int:
    """What a beam is worth without a thread that asks."""
    if getattr(protocol.judge, "says", ()):
        ended = beam.said[-1] == protocol.end
        return 1024 * (ended and bool(set(beam.whole("said")) & set(protocol.judge.says)))
    return sum(beam.whole("units")) // len(beam.whole("units"))


def judged(world: oracle.World, root: oracle.Thread, beams: Sequence[Beam], protocol) -> oracle.Program:
    """Give beams that have just ended their steps a value; those that were rolled out keep the beam that went on."""
    judge, rolls = protocol.judge, isinstance(protocol.judge, judges.Rollout)
    if rolls or isinstance(judge, judges.Likelihood):
        for beam in beams:
            beam.value = worth(beam, protocol)
    asked = [beam for beam in beams if not (rolls and beam.finished)] * judge.threads
    threads = [root.open() for _ in asked]
    for beam, thread in zip(asked, threads, strict=True):
        go_on(thread, root, beam.thread)
        if rolls:
            beam.rolled = Beam(thread, beam.tree, beam)
            world.start(thread, step(world, beam.rolled, (), True, protocol))
        else:
            world.start(thread, question(world, beam, thread, protocol))
    if threads:
        yield from root.await_children(threads)
    for beam in beams:
        if beam.rolled:
            beam.value = beam.rolled.value = worth(beam.rolled, protocol)


def go_on(thread: oracle.Thread, root: oracle.Thread, source: oracle.Thread) -> None:
    """Let a child of the root go on from the root or from a beam's last thread."""
    thread.seen, thread.next_position = [*source.seen, thread], source.next_position
    thread.floor, thread.count = max(root.clock, root.floor), root.count
    thread.follows = source if source is not root else None


def best(beams: Sequence[Beam], count: int, protocol) -> list[Beam]:
    return sorted(beams, key=lambda beam: (-beam.merit(protocol), beam.thread.path))[:count]


def distinct(beams: Sequence[Beam], protocol) -> list[Beam]:
    """In the order of their paths; of copies the first, where they must be distinct."""
    beams, first = sorted(beams, key=lambda beam: beam.thread.path), {}
    for beam in beams:
        first.setdefault((beam.tree, *beam.whole("said")), beam)
    return list(first.values()) if protocol.distinct else beams


def chosen(beams: Sequence[Beam], protocol) -> list[Beam]:
    """Those of a round that are kept, in the order of their paths."""
    if protocol.finished == "leave":
        done = [beam for beam in beams if beam.finished][: protocol.beams * protocol.width]
        kept = done + best([beam for beam in beams if not beam.finished], protocol.beams, protocol)
    else:
        trees = [[beam for beam in beams if beam.tree == tree] for tree in range(protocol.subtrees)]
        kept = [beam for tree in trees for beam in best(tree, protocol.beams // protocol.subtrees, protocol)]
    return sorted(kept, key=lambda beam: beam.thread.path)


def searching(
    world: oracle.World, root: oracle.Thread, prompt: Sequence[int], protocol, last: list[Beam]
) -> oracle.Program:
    """The coordinator; `last` is filled with the beams kept in the end."""
    yield from root.feed_tokens(prompt[:-1])
    most = protocol.beams * protocol.width
    beams = [Beam(root.open(), number % protocol.subtrees) for number in range(most)]
    for place in range(protocol.steps):
        for beam in beams:
            go_on(beam.thread, root, beam.before.thread if beam.before else root)
            world.start(beam.thread, step(world, beam, prompt[-1:], place == protocol.steps - 1, protocol))
        yield from root.await_children([beam.thread for beam in beams])
        standing = distinct([*beams, *(beam for beam in last if beam.finished)], protocol)
        if isinstance(getattr(protocol, "judge", None), Vote):
            yield from votes(world, root, prompt, standing, protocol)
        elif hasattr(protocol, "judge"):
            yield from judged(world, root, [beam for beam in standing if beam in beams], protocol)
        kept = chosen(standing, protocol)
        last[:] = kept
        going = [beam for beam in kept if not beam.finished]
        count = most if protocol.finished == "leave" else len(going) * protocol.width
        if not going:
            break
        beams = [Beam(root.open(), before.tree, before) for before in (going * most)[:count]]
    root.stop = Stop.END
