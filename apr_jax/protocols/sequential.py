"""One thread that thinks until it ends: the baseline, and the way to run any ordinary language model."""

import dataclasses
from typing import Any

from jaxtyping import Array, Int

from apr_jax.decode.book import Book
from apr_jax.decode.protocol import Drawn, ForAll, Protocol, is_one_of
from apr_jax.protocols import verbs


@dataclasses.dataclass(frozen=True)
class Sequential(Protocol):
    """The root samples until it draws `end` or has used up its budget."""

    end: int

    handlers = (ForAll(verbs.end),)

    def begin(self, book: Book) -> Book:
        return verbs.open_sampler(book)

    def observe(self, shared: Any, own: Any, drawn: Drawn) -> tuple[Any, Int[Array, ""], Int[Array, ""]]:
        return own, drawn.token, is_one_of(drawn.token, (self.end,))
