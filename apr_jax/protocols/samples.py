"""Independent samples of one prompt, for self-consistency and best-of-N, with the prompt stored once.

`apr_jax.evaluate.select` selects one of the samples afterwards (majority, mean log-probability, verifier).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Int

from apr_jax.decode import ends
from apr_jax.decode.book import Book
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Protocol, is_one_of
from apr_jax.protocols import verbs
from apr_jax.record import Stop


@dataclasses.dataclass(frozen=True)
class Samples(Protocol):
    """`count` threads that share the prompt and do not see each other.

    The root is fed the prompt without its last token; each child is fed the last token and samples from it.
    """

    count: int
    end: int

    handlers = (ForAll(verbs.end),)

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"samples.count = {self.count}: at least 1 sample is needed")

    def begin(self, book: Book) -> Book:
        return verbs.open_reader(book, self.drained)

    @property
    def needs(self) -> Needs:
        return Needs(threads=1 + self.count)

    def observe(self, shared: Any, own: Any, drawn: Drawn) -> tuple[Any, Int[Array, ""], Int[Array, ""]]:
        return own, drawn.token, is_one_of(drawn.token, (self.end,))

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        return verbs.launch(book, thread, self.count)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return ends.close(book, thread, jnp.int32(Stop.END))
