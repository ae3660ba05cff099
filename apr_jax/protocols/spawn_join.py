"""Adaptive fork and join in control tokens: what a child sees, and how its work comes back, are two independent choices.

A thread that samples `<spawn>` writes the message of a child up to the next `<spawn>` or `<wait>`; `<wait>` starts the children:

    parent samples   <spawn> m1 <spawn> m2 <wait>
    child is fed     <spawn> m1 <go>                 and samples ... <join> r1 <end>

`context` says what a child sees beside itself: nothing (`isolated`: APR, Pan et al. 2025, arXiv 2504.15466, section 3), all that
its parent saw (`shared`: ThreadWeaver, Multiverse), or its running siblings too (`live`: Group Think). `returns` says what the
parent then goes on from:

    message    it is fed  <result> r1 <result> r2 <go>                      (APR)
    stitch     it sees the children, and is fed  <go>                       (Multiverse, ParaThinker)
    reencode   it sees the first child, and is fed the others' text  <spawn> m2 <go> ... <end> <go>      (ThreadWeaver)

The published APR does its part with text lines and a parser, drops the spawn block from the parent's context at the join and never
nests; here the block stays and `max_depth` says how deep threads may nest.
"""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import lines
from apr_jax.decode.book import Book
from apr_jax.protocols import protocol
from apr_jax.record import Stop

Context = Literal["isolated", "shared", "live"]
Returns = Literal["message", "stitch", "reencode"]

_SPAWN, _RESULT, _GO = range(3)  # places in the template table


@dataclasses.dataclass(frozen=True)
class SpawnJoin:
    """Token ids of the control words, and the choices of a method.

    Attributes:
        max_depth: how deep threads may nest (1: children do not spawn, as published).
        context: what a child sees beside itself.
        returns: what the parent goes on from.
        together: live siblings see each other's tokens of the same clock, too, as in Hogwild! (Rodionov et al. 2025, arXiv
            2504.06261); a fork of more ends the problem with LANES_FULL. 0: of smaller clocks only, as in Group Think.
    """

    spawn: int
    wait: int
    result: int
    join: int
    end: int
    go: int
    max_depth: int = 1
    context: Context = "isolated"
    returns: Returns = "message"
    together: int = 0

    threads = 2
    races = False
    splits = False

    def __post_init__(self):
        for name, allowed in (("context", get_args(Context)), ("returns", get_args(Returns))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"spawn_join.{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if self.live and self.max_depth != 1:
            raise ValueError(
                f"spawn_join.max_depth is {self.max_depth}; live children do not fork, so only 1 is allowed"
            )
        if self.together and not self.live:
            raise ValueError(
                f"spawn_join.together is {self.together}; only live threads run together, so context must be live"
            )
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

    @property
    def live(self) -> bool:
        return self.context == "live"

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The parent's `<wait>` is fed: the children who share its context may start."""
        return books.commit(book, thread, shares=True, live=self.live)

    def _close_message(self, book: Book, thread: Int[Array, ""]) -> Book:
        """End the message of the child opened last: it stops before the control word just sampled."""
        latest = books.opened(book, thread) & (book.threads.ordinal == book.threads.opened[thread] - 1)
        return book.replace(threads=book.threads.where(latest, span_end=book.threads.length[thread] - 1))

    def _end(self, book: Book, thread: Int[Array, ""]) -> Book:
        malformed = jnp.any(books.opened(book, thread))
        threads = book.threads
        me = books.numbers(book) == thread
        # What a child returns stands between its <join> and this token; span 0 means that it never joined.
        returned = jnp.where(threads.span[thread] > 0, threads.length[thread] - 1, 0)
        book = book.replace(threads=threads.where(me, span_end=returned))
        return books.close(book, thread, jnp.where(malformed, int(Stop.MALFORMED), int(Stop.END)))

    def _spawn(self, book: Book, thread: Int[Array, ""]) -> Book:
        deep = book.threads.level[thread] >= self.max_depth
        book = self._close_message(book, thread)
        new = books.open_child(book, thread)
        is_child = (books.numbers(book) == book.used) & (new.threads.status == books.OPENED)
        stitched = {
            "message": False,
            "stitch": True,
            "reencode": book.threads.opened[thread] == book.threads.fork[thread],
        }
        spans = dict(span=book.threads.length[thread], stitched=stitched[self.returns])
        new = new.replace(threads=new.threads.where(is_child, **spans))
        return books.choose(deep, books.close(book, thread, jnp.int32(Stop.MALFORMED)), new)

    def _wait(self, book: Book, thread: Int[Array, ""]) -> Book:
        book = self._close_message(book, thread)
        born = books.opened(book, thread)
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
        started = started.replace(threads=started.threads.where(born, span=0, span_end=0))
        if self.context == "isolated":
            started = books.commit(started, thread, shares=False)
        else:  # the children see the <wait>: it is fed before they start
            started = started.replace(threads=started.threads.where(number == thread, samples=False))
        return books.choose(jnp.any(born), started, books.close(book, thread, jnp.int32(Stop.MALFORMED)))

    def _join(self, book: Book, thread: Int[Array, ""]) -> Book:
        threads = book.threads
        first = (threads.level[thread] > 0) & (threads.span[thread] == 0)
        me = (books.numbers(book) == thread) & first
        return book.replace(threads=threads.where(me, span=threads.length[thread]))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        number, born = books.numbers(book), books.children(book, thread)
        book = book.replace(threads=book.threads.where(number == thread, samples=True))
        threads, to = book.threads, number * 0 + thread
        if self.returns == "message":
            length = jnp.where(threads.stop == Stop.END, threads.span_end - threads.span, 0)
            pieces = dict(
                kind=(books.TEMPLATE, books.SPAN), start=(number * 0 + _RESULT, threads.span), length=(1, length)
            )
            return protocol.say(book, to, thread=number, valid=born, footer=_GO, **pieces)
        again = born & ~threads.stitched
        book = lines.stitch(book, thread, born & threads.stitched)
        pieces = dict(kind=(books.SPAN,), start=(number * 0,), length=(threads.length,))
        return protocol.say(book, to, thread=number, valid=again, footer=_GO, **pieces)
