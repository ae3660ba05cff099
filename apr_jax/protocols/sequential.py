"""One thread that thinks until it ends: the baseline, and the way to run any ordinary language model."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode.book import Book
from apr_jax.protocols import protocol


@dataclasses.dataclass(frozen=True)
class Sequential:
    """The root samples until it draws `end` or has used its budget."""

    end: int

    threads = 1
    live = False
    races = False
    splits = False
    together = 0
    templates = (0,)
    handlers = (protocol.end,)

    def begin(self, book: Book, temperature: Float[Array, ""], top_k: Int[Array, ""], top_p: Float[Array, ""]) -> Book:
        book = books.open_root(book, temperature, top_k, top_p, samples=True)
        return protocol.feed_prompt(book, jnp.int32(0), jnp.int32(0), book.prompt_length)

    def event(self, token: Int[Array, "B"]) -> Int[Array, "B"]:
        return (token == self.end).astype(jnp.int32)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        return book

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return book
