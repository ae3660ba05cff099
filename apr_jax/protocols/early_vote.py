"""Self-consistency that ends when the majority is certain: no answer can overtake the leading one any more.

Source of the samples and of the vote: Wang et al. 2022, arXiv 2203.11171; huggingface/search-and-learn, `best_of_n.py` (all samples
run to their ends there). The rule:

    1. as in `apr_jax.protocols.samples`, `count` samples are forked from the prompt, and race;
    2. a sample votes when it ends with its end token: for the tokens that stand after its last answer word;
    3. a sample that its budget broke off, or that named no answer, votes for nothing;
    4. when the leading answer has more votes than the second one and all that still run together, the others are killed;
    5. ends count by clock, those of one clock by path: the vote is the same on any lanes.

The vote over the ended samples is then the vote over all of them. The device compares tokens, by a hash of 32 bits. Where the
verifier takes different texts for equal, or refuses a text, the device counts votes that the host would add up, or not count, and
the certain answer may be another one than the host's. On Countdown in the compact format texts are equal if they are the same.
What is easily done wrong: killed samples are no samples of the distribution, since long ones are killed, so that nothing unbiased
(pass@k) can be read off them.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from apr_jax.decode import book as books
from apr_jax.decode import races
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn
from apr_jax.decode.threads import FINISHED
from apr_jax.protocols import verbs
from apr_jax.protocols.samples import Samples
from apr_jax.record import Stop


@pytree
class Ballot:
    """What a sample would vote for: whether it has begun to name an answer, and the hash of the tokens of the last one."""

    begun: Bool[Array, ""]
    hash: UInt32[Array, ""]


def written(ballot: Ballot, token: Int[Array, ""], answer: int, ends: Bool[Array, ""]) -> Ballot:
    """The ballot of a sample that has sampled one more token; `answer`: the word after which answers stand."""
    opens = token == answer
    hashed = jnp.where(ballot.begun & ~ends, verbs.hash_on(ballot.hash, token), ballot.hash)
    return dataclasses.replace(ballot, begun=ballot.begun | opens, hash=jnp.where(opens, jnp.uint32(0), hashed))


@dataclasses.dataclass(frozen=True)
class EarlyVote(Samples):
    """Attributes: as of `Samples`, and

    answer: the token after which an answer stands, up to the end.
    """

    answer: int

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, races=True)

    def own_state(self) -> Ballot:
        return Ballot(jnp.bool(False), jnp.uint32(0))

    def observe(self, shared: Any, own: Ballot, drawn: Drawn) -> tuple[Ballot, Int[Array, ""], Int[Array, ""]]:
        own, token, event = super().observe(shared, own, drawn)
        return written(own, token, self.answer, event > 0), token, event

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        forked = super().drained(book, thread)
        return races.start(forked, books.awaited(forked, thread), enough=self.count)

    def suffices(self, book: Book, thread: Int[Array, ""]) -> Bool[Array, ""]:
        threads = book.threads
        members = threads.pace.race == threads.pace.race[thread]
        ended = members & ((threads.status == FINISHED) | (books.numbers(book) == thread))
        votes = ended & threads.own.begun & (threads.stop == Stop.END)
        _, most, second = verbs.leading(votes, threads.own.hash)
        return most > second + jnp.sum(members & ~ended)
