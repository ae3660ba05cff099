"""Paths without outlines: a word forks a fixed number of threads that know nothing but what stands before it (Parallel-R1, Zheng et
al. 2025, arXiv 2509.07980, and the agent loop that was released with it).

1. The model samples until `<Parallel>`; each path goes on from all that stands before, and a forced `<Path>`.
2. A path ends at `</Path>`. The end of the text is rewritten to that word, and a path that its budget broke off is closed by it.
3. The paths come back as the choice `join` says, see `apr_jax.protocols.outlined`: re-encoded (Seen), or stitched (Unseen).
4. `</Parallel>`, a new line and `<Summary>` are forced. Until `</Summary>`, which replaces an end of the text there, nothing forks.
5. After `blocks` blocks the response ends.

Paths differ by what is drawn for them alone. A path does not fork: `<Parallel>` is text in it, as other words are where they mean
nothing. Rollouts are re-encoded in the released loop, whatever mask and positions training has, so that the threads of Unseen were
trained on what they had never seen. Here what a rollout sees is the choice, and training reads it from the log: the two are equal.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.protocol import Drawn, ForAll, Handler
from apr_jax.protocols import format_errors
from apr_jax.protocols.outlined import Outlined, Outlines
from apr_jax.record import Stop


@pytree
class Path(Outlines):
    """What a thread remembers, and `concludes`: its paths have come back, and it sums them up."""

    concludes: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class Paths(Outlined):
    """Attributes: as of `Outlined`; `numbers` are those of the paths, `most` of them are forked.

    The recogniser has the phrases `fork`, `close` and `resume`, the end of a summary. `phrases` has the last two as well, of one
    token each.
    """

    WORDS: ClassVar[tuple[str, ...]] = ("fork", "close", "resume")
    ITEMS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        super().__post_init__()
        for name in ("close", "resume"):
            if self.phrases.one(name)[1] != 1:
                raise ValueError(f"paths.phrases: {name} has {self.phrases.one(name)[1]} tokens; it must be one token")
        if self.max_depth != 1:
            raise ValueError(f"paths.max_depth is {self.max_depth}; paths do not fork, so only 1 is allowed")

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (*super().handlers, ForAll(lambda book, mask: ends.close(book, mask, jnp.int32(Stop.LENGTH))))

    def own_state(self) -> Path:
        plain = super().own_state()
        fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        return Path(**fields, concludes=jnp.bool(False))

    def observe(self, shared: Any, own: Path, drawn: Drawn) -> tuple[Path, Int[Array, ""], Int[Array, ""]]:
        inside, ends_text = own.depth > 0, drawn.token == self.end
        closing, resuming = (self.templates[self.phrases.one(name)[0]] for name in ("close", "resume"))
        token = jnp.where(ends_text & inside, closing, jnp.where(ends_text & own.concludes, resuming, drawn.token))
        found, met = self.recogniser.step(own.found, token)
        fork, close, resume = (met == self.recogniser.event(name) for name in self.WORDS)
        forks, over = fork & ~inside & ~own.concludes, resume & own.concludes & (own.blocks >= self.blocks)
        happened = format_errors.one_each(
            broken_off=ends_text & inside,
            unclosed=ends_text & own.concludes,
            too_deep=fork & inside,
            misplaced=(close & ~inside) | (resume & ~own.concludes) | (fork & own.concludes),
        )
        own = dataclasses.replace(
            own,
            found=found,
            begun=forks,
            count=jnp.where(forks, self.most, 0),
            numbers=jnp.arange(self.most),
            concludes=own.concludes & ~resume,
            errors=own.errors + happened,
        )
        events = (token == self.end, forks, close & inside, over)
        return own, token, sum(jnp.where(event, number, 0) for number, event in enumerate(events, start=1))

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        return super().joined(book, thread).update_own(books.numbers(book) == thread, concludes=True)
