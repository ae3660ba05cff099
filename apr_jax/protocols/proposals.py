"""Tree of thoughts whose thoughts are proposed: the lines of one text, instead of samples (`propose` of Yao et al. 2023).

Source: princeton-nlp/tree-of-thought-llm, `bfs.py` (`get_proposals`). Where a search samples `width` thoughts from each beam:

    1. one proposer goes on from the beam; it is fed `propose`, and says lines: up to `width` of them, its end, or its budget;
    2. a line ends with a step token, which belongs to it, or with the end of the text; empty lines, and what a budget cuts off,
       are none;
    3. each line becomes a thread that goes on from the beam, and is fed the line; these are the candidates that the judge looks at;
    4. a beam has finished after `steps` lines. If nothing is proposed, only finished beams stand.

The first proposer goes on from the prompt, and is the only one of its round. There, all lines count, empty ones too, and a task has
a prompt of its own for the last step.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode import ends, forks
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn
from apr_jax.protocols import verbs
from apr_jax.protocols.judges import Thought
from apr_jax.protocols.tree_of_thoughts import TreeOfThoughts
from apr_jax.record import Stop


@pytree
class Proposed(Thought):
    """What a thread knows of the lines that it proposes, besides what it knows of its beam.

    Attributes:
        proposes: it is a proposer.
        lines: how many it has proposed.
        begin: where the next one begins in what it said.
        starts, lengths: Int [width]; where the lines are in what it said.
        hashes: UInt32 [width]; of the beam and each of its lines.
        before: the hash of the beam.
    """

    proposes: Bool[Array, ""]
    lines: Int[Array, ""]
    begin: Int[Array, ""]
    starts: Int[Array, "width"]
    lengths: Int[Array, "width"]
    hashes: UInt32[Array, "width"]
    before: UInt32[Array, ""]


@dataclasses.dataclass(frozen=True)
class Proposals(TreeOfThoughts):
    """Attributes: as of `TreeOfThoughts`, and

    propose: ids that proposers are fed.
    """

    propose: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not self.propose:
            raise ValueError(f"{self.name}.propose is empty; a proposer is fed at least 1 token")
        if not self.judge.threads or self.judge.rolls:
            raise ValueError(f"{self.name}.judge is {type(self.judge).__name__}; proposed thoughts need one that asks")
        if self.subtrees > 1 or self.finished == "leave":
            raise ValueError(
                f"{self.name}: subtrees is {self.subtrees}, finished {self.finished!r}; all proposals compete"
            )

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, threads=super().needs.threads + 1)

    @property
    def templates(self) -> tuple[int, ...]:
        return (*self.judge.ask, *self.propose)

    def own_state(self) -> Proposed:
        zero, lines = jnp.int32(0), jnp.zeros(self.width, jnp.int32)
        hashes, no = jnp.zeros(self.width, jnp.uint32), jnp.bool(False)
        return Proposed(**vars(super().own_state()), proposes=no, lines=zero, begin=zero, starts=lines, lengths=lines,
                        hashes=hashes, before=jnp.uint32(0))  # fmt: skip

    def observe(self, shared: Any, own: Proposed, drawn: Drawn) -> tuple[Proposed, Int[Array, ""], Int[Array, ""]]:
        before = own.hash
        own, token, event = super().observe(shared, own, drawn)
        ended, stepped = token == self.end, jnp.any(token == jnp.array(self.step_ends, jnp.int32))
        length = own.step_count - own.begin - ended
        over = own.proposes & (ended | stepped)
        place = jnp.where(over & (length > stepped), own.lines, self.width)
        own = dataclasses.replace(
            own,
            lines=own.lines + (place < self.width),
            begin=jnp.where(over, own.step_count, own.begin),
            starts=own.starts.at[place].set(own.begin, mode="drop"),
            lengths=own.lengths.at[place].set(length, mode="drop"),
            hashes=own.hashes.at[place].set(jnp.where(ended, before, own.hash), mode="drop"),
            hash=jnp.where(over, own.before, own.hash),
        )
        done = ended | (own.lines == self.width)
        return own, token, jnp.where(own.proposes, done.astype(jnp.int32), event)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The root has read the prompt, or a candidate its line, or a probe its question."""
        number = books.numbers(book)
        begun = self.go_on(book, thread, number == thread, jnp.int32(1))
        root = book.threads.line.parent[thread] == books.NOBODY
        return books.choose(root, begun, ends.close(book, thread, jnp.int32(Stop.END)))

    def go_on(
        self, book: Book, thread: Int[Array, ""], going: Bool[Array, "M"], count: Int[Array, ""], last: bool = False
    ) -> Book:
        """Fork one proposer from each of the beams that end with the threads `going`; how many lines follow is theirs to say."""
        book = books.open_children(book, thread, jnp.sum(going, dtype=jnp.int32))
        born, own = books.opened(book, thread), book.threads.own
        context = self.contexts(book, born, going)
        inherited = {name: getattr(own, name)[context] for name in self.inherited}
        book = book.update_own(born, **inherited, before=own.hash[context], steps=own.steps[context] + 1)
        ask = (books.TEMPLATE, len(self.judge.ask), len(self.propose))
        book = self._say(book, born, context == thread, *ask, books.numbers(book))
        limit = book.request.child_max_tokens
        budget = jnp.where(limit == 0, book.request.max_tokens, limit)
        # The beams are released now; a proposer that is held keeps their slots until its lines go on from them.
        book = book.update_own(born, proposes=True, final=True)
        return forks.fork(book, thread, born, context=context, budget=budget, held=True)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Proposers have ended, or candidates are fed, or the judge's threads have ended."""
        told = books.awaited(book, thread) & book.threads.own.proposes
        lines = jnp.sum(jnp.where(told, book.threads.own.lines, 0), dtype=jnp.int32)
        fed = books.choose(lines > 0, self._feed(book, thread, told, lines), self.decide(book, thread))
        return books.choose(jnp.any(told), fed, super().joined(book, thread))

    def _feed(self, book: Book, thread: Int[Array, ""], told: Bool[Array, "M"], count: Int[Array, ""]) -> Book:
        """Fork a candidate for each line, in the order of the proposers and of what they said."""
        own, length, order = book.threads.own, book.threads.cursor.length, verbs.in_order(book, told)
        many = jnp.where(told, own.lines, 0)[order]
        book = books.open_children(book, thread, count)
        born = books.opened(book, thread)
        place = books.place_among(book, born)
        at = jnp.minimum(jnp.sum(place[:, None] >= jnp.cumsum(many), axis=1), many.shape[0] - 1)
        line = jnp.clip(place - (jnp.cumsum(many) - many)[at], 0, self.width - 1)
        proposer = order[at]
        start, size = own.starts[proposer, line], own.lengths[proposer, line]
        beam = book.threads.line.follows[proposer]
        context = jnp.where(born, jnp.where(beam == books.NOBODY, thread, beam), books.NOBODY)
        total = own.count[proposer] - own.step_count[proposer] + size
        book = book.update_own(
            born,
            count=total,
            step_count=size,
            hash=own.hashes[proposer, line],
            steps=own.steps[proposer],
            finished=(own.steps[proposer] >= self.steps) | (total >= book.request.max_tokens),
        )
        begin = length[proposer] - own.step_count[proposer] + start
        book = self._say(book, born, context == thread, books.SPAN, begin, size, proposer)
        return forks.fork(book, thread, born, context=context, held=True, samples=False)

    def _say(
        self,
        book: Book,
        born: Bool[Array, "M"],
        first: Bool[Array, "M"],
        kind: int,
        start: Int[Array, "M"] | int,
        length: Int[Array, "M"] | int,
        thread: Int[Array, "M"],
    ) -> Book:
        """Feed children one piece, after the last token of the prompt if they are the `first` to go on from it."""
        end, number = book.prompt_length - 1, books.numbers(book)
        return verbs.say(
            book, number, (books.PROMPT, kind), thread, (number * 0 + end, start), (1, length), (born & first, born)
        )
