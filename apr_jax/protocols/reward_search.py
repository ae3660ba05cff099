"""Search over steps whose beams are ranked from outside: by a process reward model or a verifier in Python.

Source: huggingface/search-and-learn, `beam_search.py` and `dvts.py`, where a process reward model scores every step. The rule is
that of `apr_jax.protocols.beam_search`, but for the score: when all candidates of a round have ended their steps, the root asks the
host, which is shown each of them with all that it goes on from, prompt and step token included, and says one number for each. A
whole round, and those of all problems that wait, are one batch. Scores are compared in float32.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import replies
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.needs import Asks, Needs
from apr_jax.protocols.beams import Beams
from apr_jax.protocols.steps import Beam


@pytree
class Rewarded(Beam):
    """What a thread knows of the beam that it ends; the value that the host gave it, and whether it has yet to."""

    value: Float[Array, ""]
    awaits: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class RewardSearch(Beams):
    """Beams are ranked by what the host says; see `apr_jax.protocols.beams.Beams`."""

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, asks=Asks(values=self.candidates))

    def own_state(self) -> Rewarded:
        return Rewarded(**vars(super().own_state()), value=jnp.float32(0), awaits=jnp.bool(False))

    def merit(self, own: Rewarded) -> Float[Array, "M"]:
        return own.value

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        book = book.update_own(books.awaited(book, thread), awaits=True)
        return replies.ask(self.arrive(book, thread), thread)

    def replied(self, book: Book, thread: Int[Array, ""]) -> Book:
        valued = book.threads.own.awaits
        value = book.threads.reply.values[thread, books.place_among(book, valued)]
        return self.expand(self.keep(book.update_own(valued, value=value, awaits=False)), thread)
