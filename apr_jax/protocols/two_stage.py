"""Two fixed stages: several paths of thought side by side, then a summary that sees them all (ParaThinker, Wen et al. 2025, arXiv
2509.04475, and its released engine).

1. The prompt is read once. Path i goes on from it with a forced first token `<think i>`, and sees the prompt and itself.
2. A path ends when it samples any word that ends thinking, which is rewritten to its own `</think i>`; words that would begin
   another path, or the summary, are rewritten to `<think 1>`.
3. When `enough` paths have ended, the others are cut where they stand; what they wrote stays.
4. The summary sees prompt and paths as they are, nothing is fed again; it begins with a forced phrase and ends at `</summary>`.
5. All paths begin at the position after the prompt; the summary at the one after the longest path. Path i writes in branch i,
   prompt and summary in branch 0, for models with the published embedding (`apr_jax.model.branches`).

With `block`, prompt and ended paths are filled up with a padding token to whole blocks, as the released engine does, whose pages
cannot be shared otherwise; a path has ended only then. The padding is seen, and costs a path as many steps.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines, races
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol, is_one_of
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop


@pytree
class Path:
    """What a thread keeps.

    Attributes:
        number: of its path, from 0; -1 for the root.
        stop: why its text has ended (its end sampled, or its budget used up), a `Stop`; RUNNING before that.
    """

    number: Int[Array, ""]
    stop: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class TwoStage(Protocol):
    """Token ids of the control words, and the choices of a method.

    Attributes:
        begins: the forced tokens of each path, `<think i>` first.
        ends: `</think i>` of each path.
        stops: further tokens that end a path, `</think>` say.
        strays: further tokens that are rewritten to `<think 1>` in a path, `<think j>` of paths that there are not say.
        summary: the forced tokens of the summary, `<summary>` first.
        close: the token that ends the summary.
        enough: paths that end the first stage; the others are cut then.
        pad, block: the padding token, and the length of a block; a block of 1 is not padded.
    """

    begins: tuple[tuple[int, ...], ...]
    ends: tuple[int, ...]
    summary: tuple[int, ...]
    close: int
    stops: tuple[int, ...] = ()
    strays: tuple[int, ...] = ()
    enough: int = 1
    pad: int = 0
    block: int = 1

    def __post_init__(self):
        if len(self.begins) != len(self.ends) or not self.begins:
            raise ValueError(
                f"two_stage.ends has {len(self.ends)} words for {len(self.begins)} paths; each path needs one"
            )
        if not all(self.begins) or not self.summary:
            raise ValueError("two_stage: every path and the summary need at least one forced token")
        if not 1 <= self.enough <= len(self.begins):
            raise ValueError(
                f"two_stage.enough is {self.enough}; it must be from 1 to the number of paths, {len(self.begins)}"
            )
        if self.block < 1:
            raise ValueError(f"two_stage.block is {self.block}; it must be at least 1, which pads nothing")

    @property
    def races(self) -> bool:
        """Whether paths may be cut."""
        return self.enough < len(self.begins)

    @property
    def needs(self) -> Needs:
        return Needs(threads=1 + len(self.begins), races=self.races, branches=len(self.begins))

    @property
    def phrases(self) -> Phrases:
        """What paths and the summary are forced to begin with, and a block of padding."""
        return Phrases.of_ids(begin=self.begins, summary=(self.summary,), padding=((self.pad,) * self.block,))

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (self._end_path, ForAll(verbs.end))

    def own_state(self) -> Path:
        return Path(jnp.int32(-1), jnp.int32(Stop.RUNNING))

    def begin(self, book: Book) -> Book:
        """Feed the prompt, filled up so that it and the first token of a path are whole blocks."""
        book = books.open_root(book, samples=False)
        short, number = -(book.prompt_length + 1) % self.block, books.numbers(book)
        padding, root = self.phrases.one("padding")[0], number == 0
        return verbs.say(
            book,
            to=number,
            kind=(books.PROMPT, books.TEMPLATE),
            thread=number,
            start=(number * 0, number * 0 + padding),
            length=(book.prompt_length, short),
            valid=(root, root & (short > 0)),
        )

    def observe(self, shared: Any, own: Path, drawn: Drawn) -> tuple[Path, Int[Array, ""], Int[Array, ""]]:
        thinks, count = own.number >= 0, len(self.ends)
        stops = is_one_of(drawn.token, (*self.ends, *self.stops, self.close)) > 0
        begins = (*(begin[0] for begin in self.begins), *self.strays, self.summary[0])
        strays = is_one_of(drawn.token, begins) > 0
        token = jnp.where(stops, jnp.array(self.ends, jnp.int32)[jnp.clip(own.number, 0, count - 1)], drawn.token)
        token = jnp.where(strays, self.begins[0][0], token)
        event = jnp.where(thinks, jnp.where(stops, 1, 0), jnp.where(drawn.token == self.close, 2, 0))
        return own, jnp.where(thinks, token, drawn.token), event

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The root has read the prompt, or a path its padding."""
        reads = book.threads.line.nesting[thread] == 0
        return books.choose(reads, self._think(book, thread), self._arrive(book, book.mask(thread)))

    def spent(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        """A path that has used up its budget has ended like any other; the summary ends all."""
        thinks = mask & (book.threads.own.number >= 0)
        book = ends.close(book, mask & ~thinks, jnp.int32(Stop.LENGTH))
        return self._arrive(book.update_own(thinks, stop=int(Stop.LENGTH)), thinks)

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The end of a path is decided: if it is the last of those that are enough, the others are cut where they stand.

        One that has sampled its end at the same clock has ended, too.
        """
        own = book.threads.own
        members = book.threads.pace.race == book.threads.pace.race[thread]
        running = races.rivals(book, thread) & ~races.flushing(book)
        over = jnp.sum(members & ~running) >= self.enough
        stop = jnp.where(own.stop == Stop.RUNNING, int(Stop.CUT), own.stop)
        return ends.close(book, (running & over) | (books.numbers(book) == thread), stop)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """All paths have ended: the summary sees them and begins."""
        book = ends.release(lines.stitch(book, thread, books.awaited(book, thread)), books.awaited(book, thread))
        number, (start, length) = books.numbers(book), self.phrases.one("summary")
        book = verbs.say(book, number, (books.TEMPLATE,), number, (start,), (length,), number == thread)
        return book.update(thread, samples=True)

    def _think(self, book: Book, root: Int[Array, ""]) -> Book:
        """Let the paths begin."""
        book = books.open_children(book, root, len(self.begins))
        born, number = books.opened(book, root), books.numbers(book)
        path = books.place_among(book, born)
        start, length = self.phrases.each("begin", path)
        book = verbs.say(
            book.update_own(born, number=path), number, (books.TEMPLATE,), number, (start,), (length,), born
        )
        book = fork(book, root, born, context=root, flushes=True, held=True, branch=1 + path)
        return races.start(book, born) if self.races else book

    def _end_path(self, book: Book, thread: Int[Array, ""]) -> Book:
        """A path has sampled its end; padding comes first."""
        mask = book.mask(thread)
        book = book.update_own(mask, stop=int(Stop.END))
        short = -book.threads.cursor.length[thread] % self.block
        return books.choose(
            short > 0, verbs.say_last(book, thread, self.phrases.one("padding")[0], short), self._arrive(book, mask)
        )

    def _arrive(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        """Paths have come to their ends; in a race these are to be decided."""
        return races.defer(book, mask) if self.races else ends.close(book, mask, book.threads.own.stop)
