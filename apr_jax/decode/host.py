"""The host protocol: threads ask Python, which sees what they see, and tells them how to go on.

    thread   asks (`replies.ask`)         it holds no lane, its clock stands still
    slice    ends                         nothing else can run, or `Sizes.asking` threads ask
    Host     reply(questions)             a batch, so that a model in Python can score it at once
    device   Protocol.replied             messages lie in a store that only grows (`Sizes.host`)

A question holds what the thread itself could know, never a transcript, whose other threads are as far as the schedule has let them.
A host whose replies depend on nothing else, not on the batch for example, keeps decoding independent of the schedule.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from apr_jax.decode import assemble
from apr_jax.decode import state as states
from apr_jax.decode.needs import Asks
from apr_jax.decode.program import Program
from apr_jax.decode.replies import Reply
from apr_jax.decode.threads import pytree
from apr_jax.record import Stop


@dataclasses.dataclass(frozen=True)
class View:
    """What the last thread of a line sees, thread by thread in the order of their first clocks, itself last.

    Attributes:
        path: of the line.
        stop: why the line ended, RUNNING if it has not.
        token: Int [n], token ids; the last token may never have been fed.
        source: Int [n], where each comes from, a `Source`.
        last: tokens of the last thread itself.
    """

    path: tuple[int, ...]
    stop: Stop
    token: np.ndarray
    source: np.ndarray
    last: int


@dataclasses.dataclass(frozen=True)
class Question:
    """What a thread asks.

    Attributes:
        problem, sample: the caller's numbers.
        own: the protocol's state of the thread, by dotted name.
        view: what the thread sees.
        joined: the lines that its line has joined since it asked last, in the order in which they were opened.
    """

    problem: int
    sample: int
    own: Mapping[str, np.ndarray]
    view: View
    joined: tuple[View, ...]


@dataclasses.dataclass(frozen=True)
class Said:
    """What the host says; the protocol tells what it means.

    Attributes:
        action: a number.
        values: as many as the protocol's `needs.asks` has.
        messages: token ids, for the thread or for its children; not more than `needs.asks` has.
    """

    action: int = 0
    values: Sequence[float] = ()
    messages: Sequence[Sequence[int]] = ()


class Host(abc.ABC):
    """Python's part of a method."""

    @abc.abstractmethod
    def reply(self, questions: Sequence[Question]) -> Sequence[Said]:
        """What is said to each of the threads that ask; it may depend on nothing but a thread's own question."""


@pytree
class Told:
    """What the host says to the problems of all shards; see `replies.deliver`."""

    reply: Reply
    tokens: np.ndarray
    count: np.ndarray


@dataclasses.dataclass(frozen=True)
class Held:
    """What questions are made of: the fields of a state that they need, as arrays of this process, or of one of its problems.

    Attributes:
        book: see `state.kept`.
        queued, fed: of the log, see `state.LogArrays`.
        clock: the largest clock of what each thread has written or waited for.
        asking, joined: masks of threads, see `loop.asking` and `replies.untold`.
    """

    book: states.Kept
    queued: np.ndarray
    fed: np.ndarray
    clock: np.ndarray
    asking: np.ndarray
    joined: np.ndarray

    def at(self, shard: int, row: int) -> "Held":
        """One problem."""
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return Held(*jax.tree.map(lambda leaf: leaf[shard, row], fields))


def question(held: Held, thread: int, program: Program) -> Question:
    """The question of a thread, from the arrays of its problem."""
    book, threads = held.book, held.book.threads
    mine = threads.line.first == threads.line.first[thread]
    parent = np.maximum(threads.line.parent, 0)
    last = np.isin(threads.stop, (Stop.KILLED, Stop.CONTINUED), invert=True)
    children = np.flatnonzero(held.joined & last & mine[parent] & (threads.line.parent >= 0))
    children = children[np.argsort(threads.line.ordinal[children])]
    look = lambda one: _view(held, int(one), program)
    own = {name: value[thread] for name, value in assemble.named(book.own).items()}
    return Question(int(book.problem), int(book.sample), own, look(thread), tuple(map(look, children)))


def _view(held: Held, thread: int, program: Program) -> View:
    book, fed = held.book, held.fed
    words = book.sees[thread]
    others = [one for one in range(int(book.used)) if one != thread and (words[one // 32] >> np.uint32(one % 32)) & 1]
    parts = []
    for one in others:
        entries = assemble.entries_of(book, one, program.sizes)
        clock = fed[2, entries]
        entries = entries[(clock >= 0) & (clock <= held.clock[thread])]
        if len(entries):
            parts.append((fed[2, entries[0]], assemble.path(book, one), entries))
    own = assemble.entries_of(book, thread, program.sizes)
    entries = np.concatenate([*(part for *_, part in sorted(parts, key=lambda part: part[:2])), own])
    said = held.queued[:2, entries]
    return View(assemble.path(book, thread), Stop(int(book.threads.stop[thread])), said[0], said[1], len(own))


def tell(said: Mapping[tuple[int, int, int], Said], shards: int, program: Program) -> Told:
    """The arrays of what is said to the threads at (shard, problem, thread).

    Raises:
        ValueError: a reply holds more than the protocol's needs or the vocabulary allow.
    """
    sizes, asks, vocabulary = program.sizes, program.protocol.needs.asks, program.graph.config.vocabulary
    blank = lambda *shape, dtype=np.int32: np.zeros((shards, sizes.problems, *shape), dtype)
    threads = lambda *shape, dtype=np.int32: blank(sizes.threads, *shape, dtype=dtype)
    tokens, count = blank(sizes.host), blank()
    reply = Reply(
        given=threads(dtype=bool),
        action=threads(),
        values=threads(asks.values, dtype=np.float32),
        messages=threads(),
        start=threads(asks.messages),
        length=threads(asks.messages),
        told=threads(dtype=bool),
    )
    for (shard, row, thread), one in said.items():
        _check(one, asks, vocabulary)
        at = shard, row, thread
        reply.given[at], reply.action[at], reply.values[at] = True, one.action, one.values
        reply.messages[at] = len(one.messages)
        for place, message in enumerate(one.messages):
            begin, end = count[shard, row], count[shard, row] + len(message)
            reply.start[at][place], reply.length[at][place] = begin, len(message)
            fitting = tokens[shard, row, begin:end]  # what does not fit ends the problem
            fitting[:] = message[: len(fitting)]
            count[shard, row] = end
    return Told(reply, tokens, count)


def _check(said: Said, asks: Asks, vocabulary: int) -> None:
    if len(said.messages) > asks.messages:
        raise ValueError(
            f"the host said {len(said.messages)} messages; the protocol's needs.asks.messages is {asks.messages}, say fewer"
        )
    if len(said.values) != asks.values:
        raise ValueError(
            f"the host said {len(said.values)} values; the protocol's needs.asks.values is {asks.values}, say as many"
        )
    for message in said.messages:
        if not len(message) or min(message) < 0 or max(message) >= vocabulary:
            raise ValueError(
                f"the host said the message {list(message)[:20]}; at least one token id of 0 .. {vocabulary - 1} is needed"
            )


def questions(held: Held, program: Program) -> dict[tuple[int, int, int], Question]:
    """The questions of all asking threads, by the place (shard, problem, thread) among this process's."""
    found = {}
    for shard, row in np.argwhere(held.asking.any(axis=2)).tolist():
        one = held.at(shard, row)
        for thread in np.flatnonzero(one.asking).tolist():
            found[shard, row, thread] = question(one, thread, program)
    return found
