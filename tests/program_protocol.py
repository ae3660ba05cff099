"""The protocol that runs programs of threads (`thread_programs`): one compiled loop for all of them.

The program is the problem's arguments. A thread keeps the address of its instruction and the number of event tokens that it
still waits for as its own state. Every token from FIRST_EVENT on is an
event, so that most programs have steps with events and steps without.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

import thread_programs as programs
from apr_jax.decode import book as books
from apr_jax.decode import ends, lines, races
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Handler, Protocol
from apr_jax.protocols import verbs
from apr_jax.record import Stop
from thread_programs import Action, Context, Join

_AT = {name: place for place, name in enumerate(programs.OPERANDS)}
_CHILDREN = len(programs.OPERANDS)


@pytree
class Counter:
    """Where a thread stands: the address of its instruction, and the event tokens that it waits for before it acts."""

    address: Int[Array, ""]
    left: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Programs(Protocol):
    """Without `live` no program may fork live children, without `races` none may race, go on or be split.

    With `together` live siblings, so many at most, see each other's tokens of the same clock.
    """

    live: bool = True
    races: bool = False
    together: int = 0

    templates = programs.TEMPLATES

    @property
    def needs(self) -> Needs:
        return Needs(
            live=self.live, races=self.races, splits=self.races, together=self.together, arguments=programs.NUMBERS
        )

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (self._tick,)

    def own_state(self) -> Counter:
        return Counter(jnp.int32(0), jnp.int32(0))

    def begin(self, book: Book) -> Book:
        root = jnp.int32(0)
        book = books.open_root(book, samples=False)
        book = self._enter(book, books.numbers(book) == root, root)
        return verbs.feed_prompt(book, root, root, book.prompt_length)

    def observe(self, shared, own, drawn):
        return own, drawn.token, (drawn.token >= programs.FIRST_EVENT).astype(jnp.int32)

    def _tick(self, book: Book, thread: Int[Array, ""]) -> Book:
        left = book.threads.own.left[thread] - 1
        book = book.update_own(books.numbers(book) == thread, left=left)
        return books.choose(left == 0, self.drained(book, thread), book)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The thread acts: it has said all that it was to say, or was fed all that it was to be fed."""
        now = self._instruction(book, book.threads.own.address[thread])

        def closes(stop):
            return lambda: ends.close(book, thread, jnp.int32(stop))

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
        siblings, ordinal = races.rivals(book, thread), book.threads.line.ordinal
        youngest = jnp.max(jnp.where(siblings, ordinal, -1))
        return self._next(lines.kill(book, siblings & (ordinal == youngest)), thread)

    def _turn(self, book: Book, thread: Int[Array, ""], now: Int[Array, "width"]) -> Book:
        threads, new = book.threads, book.used
        forgot = jnp.where(now[_AT["keeps"]] > 0, 0, books.one_bit(thread, book.sees.shape[1]))
        turned = lines.go_on(book, thread, book.sees[thread] ^ forgot, threads.cursor.position[thread])
        quote = jnp.minimum(now[_AT["quote"]], threads.cursor.length[thread])
        return self._feed(turned, thread, new, threads.cursor.length[thread] - quote, quote)

    def _cut(self, book: Book, thread: Int[Array, ""], now: Int[Array, "width"]) -> Book:
        threads, words = book.threads, book.sees.shape[1]
        halves = books.one_bit(thread, words) | books.one_bit(book.used, words)
        row = book.sees[thread] ^ jnp.where(now[_AT["keeps"]] > 0, 0, halves)
        cut = lines.split(book, thread, threads.cursor.length[thread] // 2, row, threads.cursor.position[thread])
        done = self._feed(cut, thread, lines.successor(cut, thread), jnp.int32(0), jnp.int32(0))
        return books.choose(lines.splittable(book, thread), done, self._next(book, thread))

    def _feed(self, book: Book, old: Int[Array, ""], new: Int[Array, ""], start, length) -> Book:
        """Feed a thread that goes on a quotation of the old one and a footer, and put it before the next instruction."""
        number, address = books.numbers(book), book.threads.own.address[old] + 1
        fed = verbs.say(
            book, number * 0 + new, (books.SPAN,), old, (start,), (length,), valid=number == new, footer=programs.FOOTER
        )
        return self._enter(fed, number == new, address)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        now, number, born = (
            self._instruction(book, book.threads.own.address[thread]),
            books.numbers(book),
            books.awaited(book, thread),
        )
        stitched = born & book.threads.bond.held
        book = ends.release(lines.stitch(book, thread, stitched), born)
        length, is_message = book.threads.cursor.length, now[_AT["join"]] == Join.MESSAGE
        said = jnp.where(is_message, jnp.minimum(length, now[_AT["message"]]), length)
        book = verbs.say(
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
        return jax.lax.dynamic_slice_in_dim(book.arguments, address * programs.WIDTH, programs.WIDTH)

    def _enter(self, book: Book, who: Bool[Array, "M"], address: Int[Array, ""]) -> Book:
        """Put threads before an instruction."""
        say = self._instruction(book, address)[_AT["say"]]
        book = book.update_own(who, address=address, left=say)
        return book.replace(threads=book.threads.where(who, samples=say > 0))

    def _next(self, book: Book, thread: Int[Array, ""]) -> Book:
        return self._enter(book, books.numbers(book) == thread, book.threads.own.address[thread] + 1)

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
        seen = (join == Join.STITCH) | ((join == Join.REENCODE) & books.eldest(opened, born))
        opened = opened.update(born, flushes=seen, held=seen)
        quote = jnp.minimum(now[_AT["quote"]], threads.cursor.length[thread])
        said = verbs.say(
            opened,
            to=number,
            kind=(books.SPAN, books.TEMPLATE),
            thread=thread,
            start=(threads.cursor.length[thread] - quote, threads.line.ordinal % programs.HEADERS),
            length=(quote, now[_AT["header"]]),
            valid=born,
        )
        source = number * 0 + jnp.where(context == Context.ISOLATED, books.NOBODY, thread)
        forked = fork(said, thread, born, context=source)
        if self.live:
            forked = books.choose(context == Context.LIVE, fork(said, thread, born, context=thread, live=True), forked)
        if self.races:
            raced = races.start(forked, born, enough=now[_AT["first"]], budget=now[_AT["shared"]])
            forked = books.choose(now[_AT["race"]] > 0, raced, forked)
        empty = ~jnp.any(born) & (opened.stop == Stop.RUNNING)  # and not for want of room in the table
        forked = books.choose(empty, ends.close(opened, thread, jnp.int32(Stop.MALFORMED)), forked)
        return books.choose((now[_AT["flush"]] > 0) & book.threads.drawn.unfed[thread], waits, forked)
