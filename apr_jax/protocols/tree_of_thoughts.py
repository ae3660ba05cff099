"""Tree of thoughts, breadth first: thoughts are sampled, and valued by the model itself.

Source: Yao et al. 2023, arXiv 2305.10601, section 3 and algorithm 1 (ToT-BFS); princeton-nlp/tree-of-thought-llm, `bfs.py`, with
`sample` to generate, `value` to evaluate and `greedy` to select. The rule:

    1. as in `apr_jax.protocols.beam_search`, candidates sample one thought, up to a step token or to the end of their answer;
    2. when all have ended, a probe is forked from each: it sees the candidate, is fed a question, and samples nothing;
    3. the value of the candidate is read off the probe's last row: the log-probability that a word of `says` comes next, or, if
       there are none, that of the likeliest token, which is how sure the model is of what it would say;
    4. when all probes have ended, the root keeps the `beams` candidates of the greatest value, and ties go by path;
    5. it forks the next thoughts from those, up to `steps` times. Thoughts that end the answer are valued once, and compete on.

Where this differs from the published program: a value is one number of one row, not the labels of three samples (impossible 0.001,
likely 1, sure 20); thoughts are sampled one by one, not proposed as the lines of one call; and copies are left out before they are
asked (`distinct`), which there get the value 0. What is easily done wrong: the step token that ended a thought has no key and
value, so the probe is handed it (`quotes`) or the question follows the thought without it, but the next thought always is; and the
tokens of questions are fed tokens, counted as such, while the critical path grows by generated tokens only, so that a probe adds
latency but no critical path.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.signals import BestMean, Logprobs
from apr_jax.protocols import verbs
from apr_jax.protocols.steps import UNITS, Beam, StepSearch
from apr_jax.record import Stop


@pytree
class Thought(Beam):
    """What a thread knows of the chain of thoughts that it ends.

    Attributes:
        value: of a candidate that was asked, and of the probe that asked it, in units.
        probe: it asks.
        asks: of the root: it waits for probes.
    """

    value: Int[Array, ""]
    probe: Bool[Array, ""]
    asks: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class TreeOfThoughts(StepSearch):
    """Thoughts are ranked by their values.

    Attributes:
        ask: the question, as ids; at least one.
        says: the ids of the words of which one speaks for a thought; none: the likeliest token, whichever it is.
        quotes: a probe is fed the step token that ended the thought, before the question; never the end of an answer.
    """

    ask: tuple[int, ...] = ()
    says: tuple[int, ...] = ()
    quotes: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.ask:
            raise ValueError(f"{self.name}.ask is empty; a probe is fed at least 1 token")

    @property
    def needs(self) -> Needs:
        # BestMean(1) is minus the log-probability of the likeliest token.
        signal = Logprobs(self.says) if self.says else BestMean(1)
        return dataclasses.replace(super().needs, threads=1 + 2 * self.candidates, signals=(signal,))

    @property
    def templates(self) -> tuple[int, ...]:
        return self.ask

    def own_state(self) -> Thought:
        return Thought(**vars(super().own_state()), value=jnp.int32(0), probe=jnp.bool(False), asks=jnp.bool(False))

    def merit(self, own: Thought) -> Float[Array, "M"]:
        return own.value.astype(jnp.float32)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The root has read the prompt, or a probe its question."""
        signal = book.threads.drawn.signals[thread, 0]
        value = jnp.round((signal if self.says else -signal) * UNITS)
        answered = book.update_own(books.numbers(book) == thread, value=value)
        answered = ends.close(answered, thread, jnp.int32(Stop.END))
        return books.choose(book.threads.own.probe[thread], answered, super().drained(book, thread))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        asked = self.expand(self.keep(self._valued(book, thread)), thread)
        return books.choose(book.threads.own.asks[thread], asked, self._ask(self.arrive(book, thread), thread))

    def _ask(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Fork a probe from each candidate that has just ended its thought."""
        own, number = book.threads.own, books.numbers(book)
        asked = books.awaited(book, thread) & own.candidate
        book = books.open_children(book, thread, jnp.sum(asked, dtype=jnp.int32))
        born = books.opened(book, thread)
        context = jnp.where(born, verbs.in_order(book, asked)[books.place_among(book, born)], books.NOBODY)
        book = verbs.say(book, number, (books.TEMPLATE,), number, (number * 0,), (len(self.ask),), born)
        book = book.update_own(born, probe=True).update_own(number == thread, asks=True)
        hand = self.quotes & ~own.finished[jnp.maximum(context, 0)]
        return fork(book, thread, born, context=context, hand=hand, samples=False)

    def _valued(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The candidates have the values that their probes found."""
        own, number = book.threads.own, books.numbers(book)
        probes = books.awaited(book, thread) & own.probe
        place = jnp.where(probes, book.threads.line.follows, number.shape[0])
        value = own.value.at[place].set(own.value, mode="drop")
        asked = jnp.zeros_like(probes).at[place].set(True, mode="drop")
        return book.update_own(asked, value=value).update_own(number == thread, asks=False)
