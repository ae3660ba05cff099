"""Protocols whose lengths are scripted, whatever the model says: for measuring speed and for tests.

`ScriptedSteps` is a search over steps of one length. `Scripted` is a fork and a join: a problem thinks alone, forks into
threads of given lengths that share what was written, joins, and goes on:

    prompt -> `alone` tokens -> fork: thread i is fed the header `i` and samples `lengths[i]` tokens -> join -> `after` tokens

Joined by re-encoding (ThreadWeaver, Lian et al. 2025, arXiv 2512.07843, appendix on the decoding client), whoever goes on
sees the first thread and is fed header and tokens of the others; joined by stitching (Multiverse, Yang et al. 2025, arXiv
2506.09991, section 4), it sees what all threads saw and wrote, at the position after the longest, and is fed only the last
token of each, which no step has fed yet.

The script is the problem's arguments, so that one compiled program serves all lengths. The root never samples before the join:
what is thought alone is its first child, forked like any other.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from apr_jax.decode import Problem
from apr_jax.decode import book as books
from apr_jax.decode.book import Book
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, Protocol
from apr_jax.protocols import BeamSearch, verbs
from apr_jax.protocols.steps import Beam

_ALONE, _AFTER, _COUNT, _LENGTHS = range(4)  # places in the script


@dataclasses.dataclass(frozen=True)
class Scripted(Protocol):
    """Forks into `most` threads at most; `stitch` joins by stitching, otherwise by re-encoding."""

    most: int = 8
    stitch: bool = False

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"scripted.most = {self.most}: at least 1 thread is needed")

    @property
    def templates(self) -> tuple[int, ...]:
        return tuple(range(self.most))

    @property
    def needs(self) -> Needs:
        return Needs(threads=2 + self.most, arguments=_LENGTHS + self.most)

    def problem(
        self, id: int, tokens: Sequence[int], alone: int, lengths: Sequence[int], after: int, **options: Any
    ) -> Problem:
        """A problem with its script.

        Args:
            id: of the problem.
            tokens: at least two token ids.
            alone: tokens sampled before the fork.
            lengths: tokens that each thread samples.
            after: tokens sampled after the join.
            options: further fields of the problem, but its budget, which follows from the script.

        Raises:
            ValueError: fewer than two tokens, no thread or too many of them, or a length below 1.
        """
        if len(tokens) < 2:
            raise ValueError(f"scripted: a prompt of {len(tokens)} tokens; at least 2 are needed")
        if not 1 <= len(lengths) <= self.most:
            raise ValueError(f"scripted: {len(lengths)} threads; 1 .. {self.most} are allowed, raise scripted.most")
        if min(alone, after, *lengths) < 1:
            raise ValueError(f"scripted: lengths {alone}, {tuple(lengths)}, {after}; each must be at least 1")
        unused = [0] * (self.most - len(lengths))
        script = (alone, after, len(lengths), *lengths, *unused)
        return Problem(id, np.array(tokens, np.int32), arguments=script, **options)

    def begin(self, book: Book) -> Book:
        root = jnp.int32(0)
        book = books.open_root(book, samples=False)
        return verbs.feed_prompt(book, root, root, book.prompt_length - 1)

    def observe(self, shared: Any, own: Any, drawn: Drawn) -> tuple[Any, Int[Array, ""], Int[Array, ""]]:
        return own, drawn.token, jnp.int32(0)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The prompt is fed: begin to think alone. What was thought alone is flushed: fork."""
        script, last = book.arguments, book.prompt_length - 1
        alone = self._open(book, thread, jnp.int32(1), script[_ALONE][None], books.PROMPT, last)
        forked = self._open(book, thread, script[_COUNT], script[_LENGTHS:], books.TEMPLATE, jnp.int32(0))
        return books.choose(book.threads.line.opened[thread] == 0, alone, forked)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Go on from the children's tokens: to the fork after the first child, to the end after the threads."""
        threads, number = book.threads, books.numbers(book)
        children = books.awaited(book, thread)
        seen = children & self._kept(book, thread)
        # A thread ends with a token that was sampled and not fed; of one that is not seen, everything is fed.
        start = jnp.where(seen, threads.cursor.length - 1, 0)
        book = verbs.say(
            book, number * 0 + thread, (books.SPAN,), number, (start,), (threads.cursor.length - start,), children
        )
        me, forked = number == thread, threads.line.opened[thread] > 1
        fed = jnp.where(seen, threads.cursor.fed, 0)
        grown = book.threads.where(me, position=threads.cursor.position + jnp.max(fed))
        return book.replace(threads=grown.where(me & forked, samples=True, budget=book.arguments[_AFTER]))

    def _kept(self, book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
        """Which children the parent goes on seeing: all, or the first."""
        siblings = books.opened(book, parent) | books.awaited(book, parent)
        return books.eldest(book, siblings) | self.stitch

    def _open(self, book: Book, parent, count, lengths: Int[Array, "n"], kind: int, start: Int[Array, ""]) -> Book:
        """Fork into `count` threads that sample `lengths` tokens; thread i is fed the token at `start + i` of `kind`."""
        first = book.used
        book = books.open_children(book, parent, count)
        born, number = books.opened(book, parent), books.numbers(book)
        place = number - first
        length = lengths[jnp.clip(place, 0, lengths.shape[0] - 1)]
        book = book.replace(threads=book.threads.where(born, budget=length))
        book = verbs.say(book, number, (kind,), number, (start + place,), (1,), born)
        kept = born & self._kept(book, parent)
        book = fork(book, parent, born, context=parent)
        # A finished thread that nobody sees loses its slots: who is to go on from it sees it from the start, and waits. Set after
        # the threads have taken over what their parent sees, or they would see each other.
        row = book.sees[parent] | books.bits(kept, book.sees.shape[1])
        return book.replace(sees=jnp.where((number == parent)[:, None], row, book.sees))


@dataclasses.dataclass(frozen=True)
class ScriptedSteps(BeamSearch):
    """Beam search or DVTS whose steps all have `length` tokens; its problems need a budget (`max_tokens`) of steps x length.

    The protocol ends a step itself: by its budget (`child_max_tokens`) a beam would break off, and not be expanded.
    """

    step_ends: tuple[int, ...] = ()
    length: int = 32

    def observe(self, shared: Any, own: Beam, drawn: Drawn) -> tuple[Beam, Int[Array, ""], Int[Array, ""]]:
        own, token, ended = super().observe(shared, own, drawn)
        return own, token, ended | (own.step_count >= self.length)
