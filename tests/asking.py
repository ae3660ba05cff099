"""Threads that ask: a protocol that lets the host decide everything, a host that answers by what it is shown, and the same again in
plain Python for `oracle`."""

import dataclasses
import functools
import zlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

import forking
import oracle
import reference_model
from apr_jax.decode import Problem, Source, Stop, ends, host, replies
from apr_jax.decode import book as books
from apr_jax.decode.book import Book
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Asks, Needs
from apr_jax.decode.protocol import ForAll, Protocol, is_one_of
from apr_jax.model import transformer
from apr_jax.protocols import verbs
from test_engine import CONFIG

ASK, END = 2, 6
ENDS, LISTENS, FORKS, SPEAKS = range(4)
MOST, DEPTH = 3, 2
LOUD = 1000  # a problem of this number is told more than a store holds


@dataclasses.dataclass(frozen=True)
class Asking(Protocol):
    """A thread that samples `ASK` asks; every other time it asks again when its children have ended, else it goes on by itself.

    `shared`: children see their parent, whose unfed token they are handed.
    """

    shared: bool = False
    needs = Needs(asks=Asks(messages=MOST, values=1), recorded=True)

    @property
    def handlers(self):
        return (ForAll(verbs.end), ForAll(replies.ask))

    def own_state(self) -> Int[Array, ""]:
        return jnp.int32(0)

    def begin(self, book: Book) -> Book:
        return verbs.open_sampler(book)

    def observe(self, shared, own, drawn):
        event = is_one_of(drawn.token, (END, ASK))
        return own + (event == 2), drawn.token, event

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return books.choose(book.threads.own[thread] % 2 == 0, replies.ask(book, thread), book)

    def replied(self, book: Book, thread: Int[Array, ""]) -> Book:
        reply, mine = book.thread(thread).reply, book.mask(thread)
        book = book.update(mine, budget=book.threads.cursor.generated + reply.values[0])
        ended = ends.close(book, thread, jnp.int32(Stop.END))
        told = verbs.told(book, mine, thread, jnp.zeros_like(book.threads.status))
        going = books.choose(reply.action == FORKS, self._fork(book, thread, reply.messages), book)
        going = books.choose(reply.action == SPEAKS, told, going)
        return books.choose(reply.action == ENDS, ended, going)

    def _fork(self, book: Book, thread: Int[Array, ""], count: Int[Array, ""]) -> Book:
        book = books.open_children(book, thread, count)
        born = books.opened(book, thread)
        book = verbs.told(book, born, thread, books.place_among(book, born))
        return fork(book, thread, born, **(dict(context=thread, hand=True) if self.shared else {}))


# ---- what the host says


def decide(problem: int, path: tuple[int, ...], shown: Sequence[int], joined: Sequence[Sequence[int]]) -> host.Said:
    """By a checksum of all that a thread may know; who has asked five times, the last number that is shown, is to end."""
    if problem >= LOUD:
        return host.Said(SPEAKS, (60,), [[1] * 140])
    seed = zlib.crc32(repr((path, list(map(int, shown)), [list(map(int, each)) for each in joined])).encode())
    rng = np.random.default_rng(seed)
    action = int(rng.choice(4, p=(0.1, 0.25, 0.35, 0.3)))
    action = ENDS if shown[-1] >= 5 else action
    action = SPEAKS if action == FORKS and len(path) >= DEPTH else action
    count = {FORKS: int(rng.integers(1, MOST + 1)), SPEAKS: 1}.get(action, 0)
    messages = [rng.integers(0, 16, size=rng.integers(1, 6)).tolist() for _ in range(count)]
    return host.Said(action, (int(rng.integers(1, 8)),), messages)


def shown(tokens: Sequence[int], sources: Sequence[int], stop: Stop, last: int) -> list[int]:
    """All of a view, in a row."""
    return [*map(int, tokens), *map(int, sources), int(stop), int(last)]


class Oracle(host.Host):
    """Keeps how many asked at a time."""

    def __init__(self):
        self.batches = []

    def reply(self, questions):
        self.batches.append(len(questions))
        return [self._one(question) for question in questions]

    def _one(self, question: host.Question) -> host.Said:
        view = question.view
        told = [shown(each.token, each.source, each.stop, each.last) for each in question.joined]
        all_of_it = [*shown(view.token, view.source, view.stop, view.last), int(question.own[""])]
        return decide(question.problem, view.path, all_of_it, told)


# ---- the interpreter


def view(thread: oracle.Thread, stop: Stop = Stop.RUNNING) -> list[int]:
    others = sorted((other for other in thread.seen if other is not thread), key=lambda other: other.own[0].clock)
    entries = [entry for other in others for entry in other.own if entry.clock <= thread.latest()]
    entries += thread.entries
    return shown([e.token for e in entries], [e.source for e in entries], stop, len(thread.entries))


def program(shared: bool) -> oracle.Interpreter:
    def root(world, thread, prompt, protocol):
        thread.limit = world.problem.max_tokens
        yield from _run(world, thread, prompt, shared)

    return root


def _run(world, thread: oracle.Thread, fed: Sequence[int], shared: bool, handed: int | None = None) -> Iterator[list]:
    if handed is not None:
        thread.entries.append(oracle.Entry(handed, source=Source.HANDED))
        thread.feed(thread.entries[-1])
        thread.entries[-1].depth = thread.count
        yield []
    yield from thread.feed_tokens(fed)
    questions, joined = 0, []
    while thread.stop is None:
        entry = world.sample(thread)
        if entry.token == END:
            thread.stop = Stop.END
        elif entry.token != ASK and thread.generated >= thread.limit:
            thread.stop = Stop.LENGTH
        if thread.stop is not None:
            return
        yield []
        message = []
        if entry.token == ASK:
            questions += 1
            while True:
                told, joined = [view(child, child.stop) for child in joined], []
                said = decide(world.problem.id, thread.path, [*view(thread), questions], told)
                thread.limit = thread.generated + said.values[0]
                if said.action != FORKS:
                    break
                joined = yield from _children(world, thread, said.messages, shared, entry.token)
                if questions % 2:
                    break
            if said.action == ENDS:
                thread.stop = Stop.END
                return
            message = said.messages[0] if said.action == SPEAKS else []
        thread.feed(entry)
        yield []
        yield from thread.feed_tokens(message)


def _children(world, thread: oracle.Thread, messages: Sequence[Sequence[int]], shared: bool, unfed: int):
    children = [thread.open() for _ in messages]
    oracle._fork(thread, children, "shared" if shared else "isolated")
    for child, message in zip(children, messages, strict=True):
        child.floor = max(
            thread.clock, thread.floor
        )  # it may fork as soon as it has joined, without a token in between
        child.limit = world.problem.child_max_tokens or world.problem.max_tokens
        world.start(child, _run(world, child, message, shared, unfed if shared else None))
    yield from thread.await_children(children)
    return children


# ---- a model and problems


@functools.cache
def model(dtype: str) -> transformer.Model:
    """One that asks every fifth time or so."""
    table = np.zeros((16, 16))
    table[:, END], table[:, ASK] = -0.5, 1.5
    config = dataclasses.replace(
        CONFIG, dtype=dtype, param_dtype=dtype, head_dim=CONFIG.head_dim if dtype == "float64" else 16
    )
    biased = forking.biased_model(config, 3, table, 1.0)
    return transformer.Model(biased.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), biased.params))


@functools.cache
def forward(dtype: str) -> reference_model.Forward:
    return reference_model.transformer(model(dtype).params, model(dtype).config)


def interpreted(problem: Problem, shared: bool, dtype: str = "float64", **options):
    return oracle.run(forward(dtype), problem, None, 9, program=program(shared), **options)


@functools.cache
def cases(shared: bool, count: int):
    """Problems that fit the sizes of the tests, and what is right."""
    rng, found = np.random.default_rng(4), []
    while len(found) < count:
        case = forking.random_case(rng, len(found), greedy=0.1)
        problem = Problem(**{field.name: getattr(case, field.name) for field in dataclasses.fields(case)})
        right = interpreted(problem, shared)
        if len(right.threads) <= 16 and len(right.log) <= 400:
            found.append((problem, right))
    return tuple(found)
