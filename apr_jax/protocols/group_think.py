"""Thinkers that see each other while they write (Group Think, Hsu et al. 2025, arXiv 2505.11107; no code is released).

1. The prompt is read once. Each thinker goes on from it with its opening, and knows from this which one it is.
2. In step k every thinker is fed and samples one token, from the prompt, all that it wrote itself, and what all others wrote in
   steps before k. Nobody joins: everybody sees everything.
3. A thinker ends at its end token or with its budget; the others still see what it wrote.
4. Each thinker owns a range of positions, after the prompt and one behind the other, so that a token keeps its position.
5. What is answered is what one thinker or several say; the paper names no rule.

Published are 2 and, by summaries of the paper, 3 and 4. Decided here: an opening has at least one token, because a thinker needs a
token of its own to sample from, and a range holds the longest opening and the budget of a thinker.

Without `ranges` all thinkers begin at the position after the prompt, and the model tells them apart by its second rotation
(LaneRoPE, see `apr_jax.model.branches`): thinker i writes in branch i, the first one in that of the prompt.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol, is_one_of
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop


@dataclasses.dataclass(frozen=True)
class GroupThink(Protocol):
    """Token ids of the words, and the choices of a method.

    Attributes:
        openings: the forced tokens of each thinker.
        end: the token that ends a thinker.
        ranges: each thinker has a range of positions of its own.
    """

    openings: tuple[tuple[int, ...], ...]
    end: int
    ranges: bool = True

    def __post_init__(self):
        if len(self.openings) < 2 or not all(self.openings):
            raise ValueError(
                f"group_think.openings is {self.openings}; at least two thinkers are needed, each with at least one token"
            )

    @property
    def needs(self) -> Needs:
        count = len(self.openings)
        return Needs(threads=1 + count, live=True, branches=count - 1)

    @property
    def phrases(self) -> Phrases:
        return Phrases.of_ids(opening=self.openings)

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(verbs.end),)

    def begin(self, book: Book) -> Book:
        root = jnp.int32(0)
        return verbs.feed_prompt(books.open_root(book, samples=False), root, root, book.prompt_length)

    def observe(self, shared: Any, own: Any, drawn: Drawn) -> tuple[Any, Int[Array, ""], Int[Array, ""]]:
        return own, drawn.token, is_one_of(drawn.token, (self.end,))

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The root has read the prompt: the thinkers begin."""
        book = books.open_children(book, thread, len(self.openings))
        born, number = books.opened(book, thread), books.numbers(book)
        thinker = books.place_among(book, born)
        start, length = self.phrases.each("opening", thinker)
        book = verbs.say(book, number, (books.TEMPLATE,), number, (start,), (length,), born)
        span = max(map(len, self.openings)) + book.threads.sampling.budget
        position = book.threads.cursor.position[thread] + (thinker * span if self.ranges else 0 * thinker)
        return fork(book, thread, born, context=thread, position=position, live=True, flushes=True, branch=thinker)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return ends.close(book, thread, jnp.int32(Stop.END))
