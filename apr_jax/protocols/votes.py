"""A judge whose threads read all candidates and vote for the best: `vote` of tree of thoughts (Yao et al. 2023, arXiv 2305.10601).

Source: princeton-nlp/tree-of-thought-llm, `bfs.py` (`get_votes`) and the prompts of creative writing. The rule:

    1. when a round's candidates have ended, `threads` voters are forked from the prompt, which see no thread of a candidate;
    2. each is fed, as text, all candidates that stand, in the order of their paths, each after its header, and then the question;
    3. the first number that it says is its vote; one without a number, or with that of no candidate, gives none;
    4. a candidate is worth the votes that it got.

A candidate's text is that of its whole beam, without the token that ends an answer. A beam that has finished is voted on again in
each round in which it stands. There, a vote is the last number of a voter's text, not the first.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import messages
from apr_jax.decode.book import Book
from apr_jax.decode.problem import whole
from apr_jax.decode.recogniser import Recogniser
from apr_jax.protocols import verbs
from apr_jax.protocols.judges import Judge, Label, Thought
from apr_jax.protocols.phrases import Phrases


@dataclasses.dataclass(frozen=True)
class Vote(Judge):
    """The words of voters and candidates.

    Attributes:
        numbers: of `Recogniser`, what names the candidates, in order ("best choice is 1"). So many may stand.
        phrases: `header`, a family with one member for each number, and `ask`.
        threads: voters, in all.
        tokens: that each of them may sample.
    """

    numbers: Recogniser
    phrases: Phrases
    threads: int = 5
    tokens: int = 16
    reads = True

    def __post_init__(self):
        for name in ("threads", "tokens"):
            whole(f"vote.{name}", getattr(self, name), 1)
        missing = [name for name in ("header", "ask") if name not in self.phrases.names]
        if missing:
            raise ValueError(f"vote.phrases lack {', '.join(missing)}")
        headers = len(self.phrases.starts[self.phrases.names.index("header")])
        if headers != self.choices:
            raise ValueError(f"vote.phrases has {headers} of header; each of the {self.choices} numbers needs one")

    @property
    def choices(self) -> int:
        """Candidates that may stand."""
        return len(self.numbers.phrases)

    @property
    def ask(self) -> tuple[int, ...]:
        return self.phrases.tokens

    def pieces(self, steps: int) -> int:
        return 2 + self.choices * (
            1 + steps
        )  # the last token of the prompt, the header and steps of each choice, the question

    def note(self) -> Label:
        return Label(self.numbers.start(), jnp.int32(-1))

    def look(self, note: Label, token: Int[Array, ""]) -> Label:
        return note.on(self.numbers, token)

    def found(self, note: Label) -> Bool[Array, ""]:
        return note.label >= 0

    def value(self, own: Thought, signals: Float[Array, "*M n"]) -> Int[Array, "*M"]:
        return jnp.zeros_like(own.value)

    def tell(self, book: Book, born: Bool[Array, "M"], steps: int) -> Book:
        """Feed voters the end of the prompt, the candidates, and the question."""
        own, length = book.threads.own, book.threads.cursor.length
        choice, stands = self._choices(book)
        chain = [jnp.where(stands, choice, books.NOBODY)]
        for _ in range(steps - 1):
            chain.append(jnp.where(chain[-1] >= 0, book.threads.line.follows[chain[-1]], books.NOBODY))
        chain = jnp.stack(chain[::-1], axis=1)  # [C, S], the first step first
        said = own.step_count[chain]
        header = self.phrases.each("header", jnp.arange(self.choices))
        ask, one = self.phrases.one("ask"), jnp.ones(1, jnp.int32)

        def row(first, headers, spans, last):
            """[C (1 + S) + 2]: what each voter is fed."""
            return jnp.concatenate([one * first, jnp.column_stack([headers, spans]).reshape(-1), one * last])

        kind = row(books.PROMPT, header[0] * 0 + books.TEMPLATE, chain * 0 + books.SPAN, books.TEMPLATE)
        start = row(book.prompt_length - 1, header[0], length[chain] - said, ask[0])
        many = row(1, header[1], said - own.ended[chain], ask[1])
        valid = row(1, stands, chain >= 0, 1) > 0
        voters = verbs.in_order(book, born)[: self.threads]
        every = [jnp.tile(column, self.threads) for column in (kind, row(0, header[0] * 0, chain, 0), start, many)]
        valid = jnp.tile(valid & (many > 0), self.threads)
        return messages.compose(book, jnp.repeat(voters, self.pieces(steps)), *every, valid)

    def credit(self, book: Book, told: Bool[Array, "M"]) -> Book:
        choice, stands = self._choices(book)
        vote = jnp.where(told, book.threads.own.note.label, -1)
        votes = jnp.sum(vote[:, None] == jnp.arange(self.choices), axis=0, dtype=jnp.int32)
        counted = (vote >= 0) & stands[jnp.maximum(vote, 0)]
        value = book.threads.own.value.at[choice].set(jnp.where(stands, votes * verbs.UNITS, 0))
        book = book.update_own(book.threads.own.candidate, value=value)
        return book.update_own(told, value=jnp.where(counted, verbs.UNITS, 0))

    def _choices(self, book: Book) -> tuple[Int[Array, "C"], Bool[Array, "C"]]:
        """The candidates by number, and which numbers there are."""
        stands = book.threads.own.candidate
        return verbs.in_order(book, stands)[: self.choices], jnp.arange(self.choices) < jnp.sum(stands)
