"""Budgets of threads and tokens that a thread hands down to its children, gets back at their join, and reads in its prompt.

A thread that forks k children with n threads left keeps none of the n - k but what k does not divide; each child gets (n - k) // k.
Of the tokens of its budget it keeps a reserve, and each child gets an equal share of the rest. What a child has not used returns
to its parent at the join. So a problem never starts more threads, or samples more tokens, than its root was allowed, and no
allowance depends on the schedule. With one child at a time (calls and returns) all that is left is at the callee's disposal.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode.book import Book
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop


@dataclasses.dataclass(frozen=True)
class Allowance:
    """The rule for protocols whose threads keep `threads` and `granted` in their own state.

    Attributes:
        threads: that a problem may start beside its root; 0: any number.
        reserve: tokens of its budget that a thread keeps at a fork; 0: children have budgets of their own.
        unit: tokens are told in units of so many, rounded down.
        phrases: families `threads` and `tokens`, what is said for each number from 0 on. One that is missing is not told.
    """

    threads: int = 0
    reserve: int = 0
    unit: int = 1
    phrases: Phrases = Phrases.of_ids()

    def __post_init__(self):
        for name, least in (("threads", 0), ("reserve", 0), ("unit", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"allowance.{name} is {getattr(self, name)}; at least {least} is needed")

    def told(self, book: Book) -> list[tuple[Int[Array, "M"], Int[Array, "M"]]]:
        """Start and length of the phrases that each thread is told, in the table of `phrases`."""
        left = book.threads.sampling.budget - book.threads.cursor.generated
        numbers = {"threads": book.threads.own.threads, "tokens": left // self.unit}
        return [self.phrases.each(name, numbers[name]) for name in self.phrases.names]

    def refused(self, book: Book, thread: Int[Array, ""], count: Int[Array, ""]) -> Int[Array, ""]:
        """Why `thread` may not fork so many children, a `Stop`; 0 if it may."""
        stop = jnp.int32(0)
        if self.reserve:
            stop = jnp.where(self._tokens(book, thread, count) < 1, int(Stop.LENGTH), stop)
        if self.threads:
            stop = jnp.where(book.threads.own.threads[thread] < count, int(Stop.MALFORMED), stop)
        return stop

    def grant(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"]) -> Book:
        """Give children that `thread` has opened their shares."""
        count = jnp.maximum(jnp.sum(born, dtype=jnp.int32), 1)
        if self.threads:
            left = book.threads.own.threads[thread] - jnp.sum(born)
            book = book.update_own(born, threads=left // count)
            book = book.update_own(books.numbers(book) == thread, threads=left % count)
        if self.reserve:
            share = jnp.minimum(self._tokens(book, thread, count), book.threads.sampling.budget)
            book = book.update(born, budget=share).update_own(born, granted=share)
        return book

    def restore(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"]) -> Book:
        """Give `thread` back what children that it joins have not used."""
        own, mine = book.threads.own, books.numbers(book) == thread
        if self.threads:
            book = book.update_own(mine, threads=own.threads[thread] + jnp.sum(jnp.where(born, own.threads, 0)))
        if self.reserve:
            budget = book.threads.sampling.budget
            used = own.granted - budget + book.threads.cursor.generated
            book = book.update(thread, budget=budget - jnp.sum(jnp.where(born, used, 0)))
        return book

    def _tokens(self, book: Book, thread: Int[Array, ""], count: Int[Array, ""]) -> Int[Array, ""]:
        """The share of each of so many children."""
        left = book.threads.sampling.budget[thread] - book.threads.cursor.generated[thread]
        return (left - self.reserve) // jnp.maximum(count, 1)
