"""A fork and a join whose lengths are scripted, whatever the model says: for measuring speed and for tests.

A problem thinks alone, forks into threads of given lengths that share what was written, joins, and goes on:

    prompt -> `alone` tokens -> fork: thread i is fed the header `i` and samples `lengths[i]` tokens -> join -> `after` tokens

Joined by re-encoding (ThreadWeaver, Lian et al. 2025, arXiv 2512.07843, appendix on the decoding client), whoever goes on
sees the first thread and is fed header and tokens of the others; joined by stitching (Multiverse, Yang et al. 2025, arXiv
2506.09991, section 4), it sees what all threads saw and wrote, at the position after the longest, and is fed only the last
token of each, which no step has fed yet.

The script stands behind the prompt's tokens (see `Scripted.prompt`), so that one compiled program serves all lengths. The
root never samples before the join: what is thought alone is its first child, forked like any other.

The engine gives a thread no budget of its own and calls no handler when one is used up; the first is had by starting to
count late, the second by joining.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode.book import Book
from apr_jax.protocols import protocol

_ALONE, _AFTER, _COUNT, _LENGTHS = range(4)  # places in the script


@dataclasses.dataclass(frozen=True)
class Scripted:
    """Forks into `most` threads at most; `stitch` joins by stitching, otherwise by re-encoding."""

    most: int = 8
    stitch: bool = False

    live = False
    races = False
    splits = False
    together = 0
    handlers = ()

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"scripted.most = {self.most}: at least 1 thread is needed")

    @property
    def templates(self) -> tuple[int, ...]:
        return tuple(range(self.most))

    @property
    def script(self) -> int:
        """Numbers that stand behind the tokens of a prompt."""
        return _LENGTHS + self.most

    @property
    def threads(self) -> int:
        """Threads of a problem over its life, the root included."""
        return 2 + self.most

    def prompt(self, tokens: Sequence[int], alone: int, lengths: Sequence[int], after: int) -> np.ndarray:
        """The prompt of a problem with its script; all numbers must be below the model's vocabulary.

        Args:
            tokens: at least two token ids.
            alone: tokens sampled before the fork.
            lengths: tokens that each thread samples.
            after: tokens sampled after the join.

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
        return np.array([*tokens, alone, after, len(lengths), *lengths, *unused], np.int32)

    def begin(self, book: Book, temperature: Float[Array, ""], top_k: Int[Array, ""], top_p: Float[Array, ""]) -> Book:
        root = jnp.int32(0)
        book = books.open_root(book, temperature, top_k, top_p, samples=False)
        return protocol.feed_prompt(book, root, root, book.prompt_length - self.script - 1)

    def event(self, token: Int[Array, "B"]) -> Int[Array, "B"]:
        return jnp.zeros_like(token)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The prompt is fed: begin to think alone. What was thought alone is flushed: fork."""
        last = book.prompt_length - self.script - 1
        alone = self._open(book, thread, jnp.int32(1), self._scripted(book, _ALONE)[None], books.PROMPT, last)
        lengths = jax.lax.dynamic_slice_in_dim(book.prompt, last + 1 + _LENGTHS, self.most)
        forked = self._open(book, thread, self._scripted(book, _COUNT), lengths, books.TEMPLATE, jnp.int32(0))
        return books.choose(book.threads.opened[thread] == 0, alone, forked)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Go on from the children's tokens: to the fork after the first child, to the end after the threads."""
        threads, number = book.threads, books.numbers(book)
        children = books.children(book, thread)
        seen = children & self._kept(book, thread)
        # A thread ends with a token that was sampled and not fed; of one that is not seen, everything is fed.
        start = jnp.where(seen, threads.length - 1, 0)
        book = protocol.say(
            book, number * 0 + thread, (books.SPAN,), number, (start,), (threads.length - start,), children
        )
        me, forked = number == thread, threads.opened[thread] > 1
        fed = jnp.where(seen, threads.fed, 0)
        grown = book.threads.where(me, position=threads.position + jnp.max(fed))
        after = book.budgets[0] - self._scripted(book, _AFTER)
        return book.replace(threads=grown.where(me & forked, samples=True, generated=after))

    def _kept(self, book: Book, parent: Int[Array, ""]) -> Bool[Array, "M"]:
        """Which children the parent goes on seeing: all, or the first."""
        first = book.threads.ordinal == book.threads.fork[parent]
        return first | self.stitch

    def _scripted(self, book: Book, place: int) -> Int[Array, ""]:
        return book.prompt[book.prompt_length - self.script + place]

    def _open(self, book: Book, parent, count, lengths: Int[Array, "n"], kind: int, start: Int[Array, ""]) -> Book:
        """Fork into `count` threads that sample `lengths` tokens; thread i is fed the token at `start + i` of `kind`."""
        first = book.used
        book = jax.lax.fori_loop(0, count, lambda _, b: books.open_child(b, parent), book)
        born, number = books.children(book, parent), books.numbers(book)
        place = number - first
        length = lengths[jnp.clip(place, 0, lengths.shape[0] - 1)]
        # There is no budget per thread: a thread with a shorter length starts with `generated` at budget - length.
        book = book.replace(threads=book.threads.where(born, generated=book.budgets[1] - length))
        book = protocol.say(book, number, (kind,), number, (start + place,), (1,), born)
        book = books.commit(book, parent, shares=True)
        # A finished thread that nobody sees loses its slots: who is to go on from it sees it from the start, and waits. Set after
        # the threads have taken over what their parent sees, or they would see each other.
        row = book.sees[parent] | books.bits(book, born & self._kept(book, parent))
        return book.replace(sees=jnp.where((number == parent)[:, None], row, book.sees))
