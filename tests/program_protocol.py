"""The protocol that runs programs of threads (`thread_programs`): one compiled loop for all of them.

The program stands behind the prompt's tokens, as in `benchmarks.scripted`. A thread keeps the address of its
instruction in `span` and the event tokens that it still waits for in `span_end`. Every token from FIRST_EVENT on is an
event, so that most programs have steps with events and steps without.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

import thread_programs as programs
from apr_jax.decode import book as books
from apr_jax.decode import lines, races
from apr_jax.decode.book import Book
from apr_jax.protocols import protocol
from apr_jax.record import Stop
from thread_programs import Action, Context, Join

_AT = {name: place for place, name in enumerate(programs.OPERANDS)}
_CHILDREN = len(programs.OPERANDS)


@dataclasses.dataclass(frozen=True)
class Programs:
    """Without `live` no program may fork live children, without `races` none may race, go on or be split.

    With `together` live siblings, so many at most, see each other's tokens of the same clock.
    """

    live: bool = True
    races: bool = False
    together: int = 0

    threads = 1
    templates = programs.TEMPLATES

    @property
    def splits(self) -> bool:
        return self.races

    @property
    def handlers(self) -> tuple[protocol.Handler, ...]:
        return (self._tick,)

    def begin(self, book: Book, temperature, top_k, top_p) -> Book:
        root = jnp.int32(0)
        book = books.open_root(book, temperature, top_k, top_p, samples=False)
        book = self._enter(book, books.numbers(book) == root, root)
        return protocol.feed_prompt(book, root, root, book.prompt_length - programs.NUMBERS)

    def event(self, token: Int[Array, "B"]) -> Int[Array, "B"]:
        return (token >= programs.FIRST_EVENT).astype(jnp.int32)

    def _tick(self, book: Book, thread: Int[Array, ""]) -> Book:
        left = book.threads.span_end[thread] - 1
        book = book.replace(threads=book.threads.where(books.numbers(book) == thread, span_end=left))
        return books.choose(left == 0, self.drained(book, thread), book)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The thread acts: it has said all that it was to say, or was fed all that it was to be fed."""
        now = self._instruction(book, book.threads.span[thread])

        def closes(stop):
            return lambda: books.close(book, thread, jnp.int32(stop))

        actions = {
            Action.GO_ON: lambda: self._next(book, thread),
            Action.OPEN: lambda: self._next(self._open(book, thread, now), thread),
            Action.FORK: lambda: self._fork(book, thread, now),
            Action.END: closes(Stop.END),
            Action.FAIL: closes(Stop.MALFORMED),
        }
        if self.races:
            actions |= {
                Action.KILL: lambda: races.defer(book, thread),
                Action.TURN: lambda: self._turn(book, thread, now),
                Action.CUT: lambda: self._cut(book, thread, now),
            }
        return jax.lax.switch(now[_AT["action"]], [actions[action] for action in sorted(actions)])

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        threads, number = book.threads, books.numbers(book)
        siblings = books.children(book, threads.parent[thread]) & lines.unfinished(book) & (number != thread)
        siblings &= threads.level[thread] > 0
        youngest = jnp.max(jnp.where(siblings, threads.ordinal, -1))
        return self._next(lines.kill(book, siblings & (threads.ordinal == youngest)), thread)

    def _turn(self, book: Book, thread: Int[Array, ""], now: Int[Array, "width"]) -> Book:
        threads, new = book.threads, book.used
        forgot = jnp.where(now[_AT["keeps"]] > 0, 0, books.one_bit(thread, book.sees.shape[1]))
        turned = lines.proceed(book, thread, book.sees[thread] ^ forgot, threads.position[thread])
        quote = jnp.minimum(now[_AT["quote"]], threads.length[thread])
        return self._feed(turned, thread, new, threads.length[thread] - quote, quote)

    def _cut(self, book: Book, thread: Int[Array, ""], now: Int[Array, "width"]) -> Book:
        threads, words = book.threads, book.sees.shape[1]
        halves = books.one_bit(thread, words) | books.one_bit(book.used, words)
        row = book.sees[thread] ^ jnp.where(now[_AT["keeps"]] > 0, 0, halves)
        cut = lines.split(book, thread, threads.length[thread] // 2, row, threads.position[thread])
        done = self._feed(cut, thread, lines.heir(cut, thread), jnp.int32(0), jnp.int32(0))
        return books.choose(lines.splittable(book, thread), done, self._next(book, thread))

    def _feed(self, book: Book, old: Int[Array, ""], new: Int[Array, ""], start, length) -> Book:
        """Feed a thread that goes on a quotation of the old one and a footer, and put it before the next instruction."""
        number, address = books.numbers(book), book.threads.span[old] + 1
        fed = protocol.say(
            book, number * 0 + new, (books.SPAN,), old, (start,), (length,), valid=number == new, footer=programs.FOOTER
        )
        return self._enter(fed, number == new, address)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        now, number, born = (
            self._instruction(book, book.threads.span[thread]),
            books.numbers(book),
            books.children(book, thread),
        )
        stitched = born & book.threads.stitched
        book = lines.stitch(book, thread, stitched)
        length, is_message = book.threads.length, now[_AT["join"]] == Join.MESSAGE
        said = jnp.where(is_message, jnp.minimum(length, now[_AT["message"]]), length)
        book = protocol.say(
            book,
            to=number * 0 + thread,
            kind=(books.TEMPLATE, books.SPAN),
            thread=number,
            start=(number * 0 + programs.RESULT, length - said),
            length=(is_message.astype(jnp.int32), said),
            valid=born & (is_message | ((now[_AT["join"]] == Join.REENCODE) & ~stitched)),
            footer=programs.FOOTER,
        )
        return self._next(book, thread)

    def _instruction(self, book: Book, address: Int[Array, ""]) -> Int[Array, "width"]:
        start = book.prompt_length - programs.NUMBERS + address * programs.WIDTH
        return jax.lax.dynamic_slice_in_dim(book.prompt, start, programs.WIDTH)

    def _enter(self, book: Book, who: Bool[Array, "M"], address: Int[Array, ""]) -> Book:
        """Put threads before an instruction."""
        say = self._instruction(book, address)[_AT["say"]]
        return book.replace(threads=book.threads.where(who, span=address, span_end=say, samples=say > 0))

    def _next(self, book: Book, thread: Int[Array, ""]) -> Book:
        return self._enter(book, books.numbers(book) == thread, book.threads.span[thread] + 1)

    def _open(self, book: Book, thread: Int[Array, ""], now: Int[Array, "width"]) -> Book:
        def one(place, book):
            address = now[_CHILDREN + place]
            new = books.open_child(book, thread)
            is_new = (books.numbers(book) == book.used) & (new.threads.status == books.OPENED)
            return books.choose(address > 0, self._enter(new, is_new, address), book)

        return jax.lax.fori_loop(0, programs.MOST_CHILDREN, one, book)

    def _fork(self, book: Book, thread: Int[Array, ""], now: Int[Array, "width"]) -> Book:
        number, join, context = books.numbers(book), now[_AT["join"]], now[_AT["context"]]
        waits = book.replace(threads=book.threads.where(number == thread, samples=False))
        opened = self._open(book, thread, now)
        born, threads = books.opened(opened, thread), opened.threads
        first = threads.ordinal == threads.fork[thread]
        seen = (join == Join.STITCH) | ((join == Join.REENCODE) & first)
        opened = opened.replace(threads=threads.where(born, stitched=seen))
        quote = jnp.minimum(now[_AT["quote"]], threads.length[thread])
        said = protocol.say(
            opened,
            to=number,
            kind=(books.SPAN, books.TEMPLATE),
            thread=thread,
            start=(threads.length[thread] - quote, threads.ordinal % programs.HEADERS),
            length=(quote, now[_AT["header"]]),
            valid=born,
        )
        forked = books.commit(said, thread, shares=False)
        forked = books.choose(context == Context.SHARED, books.commit(said, thread, shares=True), forked)
        if self.live:
            forked = books.choose(context == Context.LIVE, books.commit(said, thread, shares=True, live=True), forked)
        if self.races:
            raced = races.start(forked, thread, now[_AT["first"]] > 0, now[_AT["shared"]])
            forked = books.choose(now[_AT["race"]] > 0, raced, forked)
        empty = ~jnp.any(born) & (opened.stop == Stop.RUNNING)  # and not for want of room in the table
        forked = books.choose(empty, books.close(opened, thread, jnp.int32(Stop.MALFORMED)), forked)
        return books.choose((now[_AT["flush"]] > 0) & book.threads.unfed[thread], waits, forked)
