"""Protocols of the tests whose threads end each other or go on as new ones, and random problems for them."""

import collections
import dataclasses
import functools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

import forking
import oracle
import reference_model
from apr_jax.decode import Engine, Problem, Sizes, Transcript, ends, lines, messages, races
from apr_jax.decode import book as books
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import SpawnJoin, verbs
from apr_jax.record import Stop
from racing_oracle import World

_RESULT, _GO = 1, 2  # places in the template table


@dataclasses.dataclass(frozen=True)
class Racing(SpawnJoin):
    """What is added to forks and joins; a token id of -1 is never sampled.

    Attributes:
        first: the first child to end is the only one.
        shared: children may sample so many tokens together (and one to four more, as the number of the problem goes); 0 is any.
        kill: who samples it kills its youngest sibling that has not ended.
        turn: who samples it goes on as a new thread, and is fed it again.
        keeps: that sees the old one; otherwise it sees the rest only, three positions further on.
        renew: whoever joins goes on as a new thread, which does not see the old one.
        cut: who samples it goes on without the latter half of its thread, in problems of odd number without the former half;
            live threads, who may not, take it for a plain word.
    """

    first: bool = False
    shared: int = 0
    kill: int = -1
    turn: int = -1
    keeps: bool = True
    renew: bool = False
    cut: int = -1

    @property
    def races(self):
        return self.first or self.shared > 0 or self.kill >= 0

    @property
    def needs(self):
        return dataclasses.replace(super().needs, races=self.races, splits=self.cut >= 0)

    @property
    def handlers(self):
        return (*super().handlers, races.defer, self._turn, self._cut)

    def observe(self, shared, own, drawn):
        own, token, event = super().observe(shared, own, drawn)
        event = jnp.where(token == self.turn, 6, event)
        event = jnp.where(token == self.cut, 7, event)
        return own, token, jnp.where(token == self.kill, 5, event)

    def _wait(self, book, thread):
        return self._race(super()._wait(book, thread), thread)

    def drained(self, book, thread):
        return self._race(super().drained(book, thread), thread)

    def _race(self, book, thread):
        """Children who were just started are a group."""
        if not self.races:
            return book
        shared = self.shared and self.shared + book.problem % 4
        waits = book.threads.status[thread] == books.WAITING
        born = books.awaited(book, thread)
        return books.choose(waits, races.start(book, born, enough=int(self.first), budget=shared), book)

    def decided(self, book, thread):
        siblings, ordinal = races.rivals(book, thread), book.threads.line.ordinal
        youngest = jnp.max(jnp.where(siblings, ordinal, -1))
        return lines.kill(book, siblings & (ordinal == youngest))

    def _turn(self, book, thread):
        threads, new = book.threads, book.used
        row, position = book.sees[thread], threads.cursor.position[thread]
        if not self.keeps:
            row, position = row & ~books.one_bit(thread, row.shape[0]), position + 3
        turned = lines.go_on(book, thread, row, position)
        turned = messages.compose(
            turned,
            to=jnp.stack([new, new]),
            kind=jnp.array([books.SPAN, books.TEMPLATE]),
            thread=jnp.stack([thread, thread]),
            start=jnp.stack([threads.cursor.length[thread] - 1, jnp.int32(_GO)]),
            length=jnp.ones(2, jnp.int32),
            valid=jnp.ones(2, bool),
        )
        malformed = jnp.any(books.opened(book, thread))
        return books.choose(malformed, ends.close(book, thread, jnp.int32(Stop.MALFORMED)), turned)

    def _cut(self, book, thread):
        threads, tail, words = book.threads, book.used, book.sees.shape[1]
        start, odd = threads.cursor.length[thread] // 2, book.problem % 2 == 1
        row = book.sees[thread] ^ jnp.where(odd, books.one_bit(thread, words) | books.one_bit(tail, words), 0)
        position = threads.cursor.position[thread] + 2
        cut = lines.split(book, thread, start, row, position)
        number = books.numbers(book)
        new = number == lines.successor(cut, thread)
        cut = verbs.say(
            cut, number, (books.TEMPLATE,), thread, (number * 0 + _GO,), (1,), valid=new & (number != thread)
        )
        malformed = jnp.any(books.opened(book, thread))
        return books.choose(malformed, ends.close(book, thread, jnp.int32(Stop.MALFORMED)), cut)

    def joined(self, book, thread):
        if not self.renew:
            return super().joined(book, thread)
        number, born, new = books.numbers(book), books.awaited(book, thread), book.used
        threads = book.threads.where(number == thread, samples=True)
        start, length = self.returned(book)
        stitched = born & threads.bond.held
        row = lines.joined_row(book, thread, stitched) & ~books.one_bit(thread, book.sees.shape[1])
        position = jnp.max(jnp.where(stitched | (number == thread), threads.cursor.position, 0))
        book = lines.go_on(book.replace(threads=threads), thread, row, position)
        book = ends.release(book, born)
        pieces = dict(kind=(books.TEMPLATE, books.SPAN), start=(number * 0 + _RESULT, start), length=(1, length))
        valid = born & (self.returns == "message")
        return verbs.say(book, number * 0 + new, thread=number, valid=valid, footer=_GO, **pieces)


def bias() -> np.ndarray:
    """That of `forking.Words`, but more children are opened at a time, they think longer, and break the format less."""
    words, table = forking.Words(), forking.Words().bias()
    late = [*words.late, words.go, words.join]
    table[np.ix_(late, words.late)] = 1.5
    table[late, words.spawn] = 0.5
    table[[*words.late, words.go], words.join] = 0.5
    table[np.ix_([*words.plain, words.wait, words.result], [words.spawn])] = 2.5
    table[np.ix_([*words.message, words.spawn], [words.wait, words.spawn])] = 2.0
    table[:, words.wait] -= 0.5
    return table


# ---- what the tests call


SEED = 3
CONFIG = ModelConfig(
    vocabulary=16, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, qk_norm=True, tied=False,
    dtype="float64", param_dtype="float64",
)  # fmt: skip
WORDS = {name: getattr(forking.Words, name) for name in ("spawn", "wait", "result", "join", "end", "go")}


@functools.cache
def model() -> transformer.Model:
    return forking.biased_model(CONFIG, 0, bias(), 1.2)


@functools.cache
def forward() -> reference_model.Forward:
    return reference_model.transformer(model().params, CONFIG)


@functools.cache
def engine(protocol: Racing, sizes: Sizes) -> Engine:
    return Engine(model(), protocol, sizes)


@functools.cache
def cases(protocol: Racing, count: int, orders: int = 0) -> tuple[list[Problem], list[Transcript], collections.Counter]:
    """Random problems that fit 40 threads (and no more to a fork than may go together), what the oracle makes of them, and what
    happened in them.

    Args:
        orders: of so many problems the threads are stepped in another order as well, which must not matter.
    """
    rng = np.random.default_rng(7)
    problems, expected, events = [], [], collections.Counter()
    while len(problems) < count:
        case = forking.random_case(rng, len(problems))
        problem = Problem(**{field.name: getattr(case, field.name) for field in dataclasses.fields(case)})
        worlds: list[World] = []
        play = lambda *parts, worlds=worlds: worlds.append(World(*parts)) or worlds[-1]
        transcript = oracle.run(forward(), problem, protocol, SEED, world=play)
        if len(transcript.threads) > 40 or len(transcript.log) > 600 or "crowded" in worlds[0].decisions:
            continue
        if len(problems) < orders:
            order = np.random.default_rng(problem.id)
            oracle.compare(oracle.run(forward(), problem, protocol, SEED, order, world=World), transcript, 0)
        problems.append(problem)
        expected.append(transcript)
        events.update(worlds[0].decisions)
        events.update(thread.stop.name for thread in transcript.threads)
    return problems, expected, events


def count(protocol: Racing, problem: Problem) -> int:
    """Generated tokens on the longest chain that the end of the root waited for, as the oracle counts while it runs."""
    worlds: list[World] = []
    play = lambda *parts: worlds.append(World(*parts)) or worlds[-1]
    oracle.run(forward(), problem, protocol, SEED, world=play)
    return worlds[0].lines[0].thread.count


def decoded(protocol: Racing, sizes: Sizes, problems: Sequence[Problem], **options) -> list[Transcript]:
    done = {t.problem: t for t in engine(protocol, sizes).decode(problems, seed=SEED, **options)}
    return [done[problem.id] for problem in problems]
