"""Adaptive spawn and join by message (APR, Pan et al. 2025, arXiv 2504.15466, section 3), in control tokens.

A thread that samples `<spawn>` writes the message of a child up to the next `<spawn>` or `<wait>`; `<wait>` starts the
children. A child sees nothing but its message. What it writes between `<join>` and `<end>` is what its parent is fed:

    parent samples   <spawn> m1 <spawn> m2 <wait>
    child is fed     <spawn> m1 <go>                 and samples ... <join> r1 <end>
    parent is fed    <result> r1 <result> r2 <go>    and samples on

The published system does the same with text lines and a parser, drops the spawn block from the parent's context at the join and
never nests; here the block stays and `max_depth` says how deep threads may nest.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode.book import Book
from apr_jax.decode.transcript import Stop
from apr_jax.protocols import protocol

_SPAWN, _RESULT, _GO = range(3)  # places in the template table


@dataclasses.dataclass(frozen=True)
class SpawnJoin:
    """Token ids of the control words, and how deep threads may nest (1: children do not spawn, as published)."""

    spawn: int
    wait: int
    result: int
    join: int
    end: int
    go: int
    max_depth: int = 1

    def __post_init__(self):
        words = [self.spawn, self.wait, self.result, self.join, self.end, self.go]
        if len(set(words)) != len(words):
            raise ValueError(f"spawn_join: control words must be different tokens, got ids {words}")

    @property
    def templates(self) -> tuple[int, ...]:
        return (self.spawn, self.result, self.go)

    @property
    def handlers(self) -> tuple[protocol.Handler, ...]:
        return (self._end, self._spawn, self._wait, self._join)

    def begin(self, book: Book, temperature: Float[Array, ""], top_k: Int[Array, ""], top_p: Float[Array, ""]) -> Book:
        book = books.open_root(book, temperature, top_k, top_p, samples=True)
        return protocol.feed_prompt(book, jnp.int32(0), jnp.int32(0), book.prompt_length)

    def event(self, token: Int[Array, "B"]) -> Int[Array, "B"]:
        words = jnp.array([self.end, self.spawn, self.wait, self.join], jnp.int32)
        match = token[:, None] == words[None, :]
        return jnp.sum(jnp.where(match, jnp.arange(1, 5), 0), axis=1)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        return book

    def _opened(self, book: Book, thread: Int[Array, ""]):
        """The children whose messages the thread has begun and not committed: Bool [M]."""
        return books.children(book, thread) & (book.threads.status == books.OPENED)

    def _close_message(self, book: Book, thread: Int[Array, ""]) -> Book:
        """End the message of the child opened last: it stops before the control word just sampled."""
        latest = self._opened(book, thread) & (book.threads.ordinal == book.threads.opened[thread] - 1)
        return book.replace(threads=book.threads.where(latest, span_end=book.threads.length[thread] - 1))

    def _end(self, book: Book, thread: Int[Array, ""]) -> Book:
        malformed = jnp.any(self._opened(book, thread))
        threads = book.threads
        me = books.numbers(book) == thread
        # What a child returns stands between its <join> and this token; span 0 means that it never joined.
        returned = jnp.where(threads.span[thread] > 0, threads.length[thread] - 1, 0)
        book = book.replace(threads=threads.where(me, span_end=returned))
        return books.finish(book, thread, jnp.where(malformed, int(Stop.MALFORMED), int(Stop.END)))

    def _spawn(self, book: Book, thread: Int[Array, ""]) -> Book:
        deep = book.threads.level[thread] >= self.max_depth
        book = self._close_message(book, thread)
        child = book.used
        opened = books.open_child(book, thread, shares=False)
        is_child = (books.numbers(book) == child) & (opened.threads.status == books.OPENED)
        opened = opened.replace(threads=opened.threads.where(is_child, span=book.threads.length[thread]))
        return protocol.choose(deep, books.finish(book, thread, jnp.int32(Stop.MALFORMED)), opened)

    def _wait(self, book: Book, thread: Int[Array, ""]) -> Book:
        book = self._close_message(book, thread)
        born = self._opened(book, thread)
        threads, number = book.threads, books.numbers(book)
        header, message, footer = number * 0 + _SPAWN, threads.span, number * 0 + _GO
        started = protocol.say(
            book,
            to=number,
            kind=(books.TEMPLATE, books.SPAN, books.TEMPLATE),
            thread=thread,
            start=(header, message, footer),
            length=(1, threads.span_end - threads.span, 1),
            valid=born,
        )
        clear = {"span": 0, "span_end": 0}
        started = books.commit(started.replace(threads=started.threads.where(born, **clear)), thread)
        empty = ~jnp.any(born)
        return protocol.choose(empty, books.finish(book, thread, jnp.int32(Stop.MALFORMED)), started)

    def _join(self, book: Book, thread: Int[Array, ""]) -> Book:
        threads = book.threads
        first = (threads.level[thread] > 0) & (threads.span[thread] == 0)
        me = (books.numbers(book) == thread) & first
        return book.replace(threads=threads.where(me, span=threads.length[thread]))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        threads, number = book.threads, books.numbers(book)
        length = jnp.where(threads.stop == Stop.END, threads.span_end - threads.span, 0)
        return protocol.say(
            book,
            to=number * 0 + thread,
            kind=(books.TEMPLATE, books.SPAN),
            thread=number,
            start=(number * 0 + _RESULT, threads.span),
            length=(1, length),
            valid=books.children(book, thread),
            footer=_GO,
        )
