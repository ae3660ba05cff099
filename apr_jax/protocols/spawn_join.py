"""Adaptive fork and join by control tokens, with two independent choices: the child's context, and the form of the join.

A thread that samples `<spawn>` writes the message of a child up to the next `<spawn>` or `<wait>`; `<wait>` starts the children:

    parent samples   <spawn> m1 <spawn> m2 <wait>
    child is fed     <spawn> m1 <go>                 and samples ... <join> r1 <end>

`context`: a child sees its own tokens only (`isolated`: APR, Pan et al. 2025, arXiv 2504.15466, section 3), also all that its
parent saw (`shared`: ThreadWeaver, Multiverse), or its running siblings too (`live`: Group Think). `returns`: after the join,

    message    the parent is fed  <result> r1 <result> r2 <go>                      (APR)
    stitch     the parent sees the children, and is fed  <go>                       (Multiverse, ParaThinker)
    reencode   the parent sees the first child, and is fed the others' text  <spawn> m2 <go> ... <end> <go>      (ThreadWeaver)

The published APR uses text lines and a parser, drops the spawn block from the parent's context at the join and never nests; here
the block stays, and `max_depth` limits the nesting of threads.

Calls and returns (recursive models, Yang, Srebro and Li 2026) are the case of one isolated child at a time (`most` is 1): a frame
writes a sub-problem and is suspended; the frame of the callee holds the `question`, if wanted, and the sub-problem; only its result
returns. Their depth is bounded by the thread table alone, a full one ends the problem with THREADS_FULL: the slots of a frame that
has returned serve again, its record stays. With an `allowance` threads read what they may still use, and may not use more.

With `samples` a problem holds several answers to one prompt: the root reads the prompt, which is stored once, and forks them.
"""

import dataclasses
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.problem import one_of
from apr_jax.decode.protocol import Drawn, Handler, Protocol, is_one_of
from apr_jax.protocols import verbs
from apr_jax.protocols.allowance import Allowance
from apr_jax.record import Stop

Context = Literal["isolated", "shared", "live"]
Returns = Literal["message", "stitch", "reencode"]

_SPAWN, _RESULT, _GO = range(3)  # indices in the template table


@pytree
class Spans:
    """Two ranges of log entries that the protocol keeps for each thread; -1 for none.

    Attributes:
        asked, asked_end: the thread's message, in its parent's log.
        joined, joined_end: the thread's result, in its own log: from after its `<join>` up to its `<end>`.
    """

    asked: Int[Array, ""]
    asked_end: Int[Array, ""]
    joined: Int[Array, ""]
    joined_end: Int[Array, ""]


@pytree
class Allowed(Spans):
    """What a thread keeps where budgets are handed down, see `apr_jax.protocols.allowance`.

    Attributes:
        threads: that it may still start, with all below it.
        granted: tokens that it was given.
    """

    threads: Int[Array, ""]
    granted: Int[Array, ""]


@pytree
class Counted(Spans):
    """What a thread keeps where the width of forks is limited.

    Attributes:
        open: children that it has opened since its last `<wait>`.
    """

    open: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class SpawnJoin(Protocol):
    """Token ids of the control words, and the choices of a method.

    Attributes:
        max_depth: largest nesting of threads (1: children do not spawn, as published).
        context: the context of a child: "isolated", "shared" or "live".
        returns: the form of the join: "message", "stitch" or "reencode".
        together: largest number of live siblings, which then also see each other's tokens of the same clock, as in Hogwild!
            (Rodionov et al. 2025, arXiv 2504.06261); a larger fork ends the problem with LANES_FULL. 0: live siblings see
            tokens of smaller clocks only, as in Group Think.
        most: children of one fork at most, a further one is malformed; 0: any number.
        width: children of one fork; a further `<spawn>` is rewritten to `<wait>`. 0: `<spawn>` is banned, so that the model writes
            what is likeliest beside it; -1: any number.
        question: isolated children are fed the prompt before their message.
        allowance: budgets that are handed down; None: there are none.
        samples: answers, children of a root that only reads the prompt; they have the budget of a root, and fork as a root does.
            0: the root answers.
    """

    spawn: int
    wait: int
    result: int
    join: int
    end: int
    go: int
    max_depth: int = 1
    context: Context = "isolated"
    returns: Returns = "message"
    together: int = 0
    most: int = 0
    width: int = -1
    question: bool = False
    allowance: Allowance | None = None
    samples: int = 0

    def __post_init__(self):
        for name, known in (("context", get_args(Context)), ("returns", get_args(Returns))):
            one_of(f"spawn_join.{name}", getattr(self, name), known)
        if self.width < -1:
            raise ValueError(f"spawn_join.width is {self.width}; at least 0 is needed, or -1, which is any number")
        if self.width >= 0 and self.allowance:
            raise ValueError(
                f"spawn_join.width is {self.width}; with an allowance it must be -1, limit allowance.threads"
            )
        if self.live and self.max_depth != 1:
            raise ValueError(
                f"spawn_join.max_depth is {self.max_depth}; live children do not fork, so only 1 is allowed"
            )
        if self.together and not self.live:
            raise ValueError(
                f"spawn_join.together is {self.together}; only live threads run together, so context must be live"
            )
        if self.question and self.context != "isolated":
            raise ValueError(
                f"spawn_join.question is True; children see the prompt when context is {self.context}, leave it out"
            )
        if self.samples < 0 or (self.samples and self.allowance):
            raise ValueError(
                f"spawn_join.samples is {self.samples}; at least 0 is needed, and 0 with an allowance, which a root hands down"
            )
        if self.most < 0:
            raise ValueError(f"spawn_join.most is {self.most}; at least 0 is needed, which is any number")
        words = [self.spawn, self.wait, self.result, self.join, self.end, self.go]
        if len(set(words)) != len(words):
            raise ValueError(f"spawn_join: control words must be different tokens, got ids {words}")

    @property
    def templates(self) -> tuple[int, ...]:
        return (self.spawn, self.result, self.go, *(self.allowance.phrases.tokens if self.allowance else ()))

    @property
    def needs(self) -> Needs:
        told = len(self.allowance.phrases.names) if self.allowance else 0
        return Needs(
            threads=2 + self.samples,
            live=self.live,
            together=self.together,
            pieces=6 + self.question + told,
            adjusts=self.width >= 0,
        )

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (self._end, self._spawn, self._wait, self._join)

    def own_state(self) -> Spans:
        none = [jnp.int32(-1)] * 4
        if self.width > 0:
            return Counted(*none, jnp.int32(0))
        return Allowed(*none, jnp.int32(self.allowance.threads), jnp.int32(0)) if self.allowance else Spans(*none)

    def begin(self, book: Book) -> Book:
        if self.samples:
            return verbs.open_reader(book, self.drained)
        if not self.allowance:
            return verbs.open_sampler(book)
        book, number = books.open_root(book, samples=True), books.numbers(book)
        told, root = self._told(book), number == 0
        start, length = zip((number * 0, book.prompt_length), *told, strict=True)
        return verbs.say(book, number, (books.PROMPT, *[books.TEMPLATE] * len(told)), number, start, length, root)

    def _told(self, book: Book) -> list[tuple[Int[Array, "M"], Int[Array, "M"]]]:
        """Start and length of what each thread is told of its allowance, in the template table."""
        return [(_GO + 1 + start, length) for start, length in (self.allowance.told(book) if self.allowance else ())]

    def observe(self, shared: Any, own: Spans, drawn: Drawn) -> tuple[Spans, Int[Array, ""], Int[Array, ""]]:
        token = drawn.token
        if self.width > 0:
            token = jnp.where((token == self.spawn) & (own.open >= self.width), self.wait, token)
            own = dataclasses.replace(own, open=jnp.where(token == self.wait, 0, own.open + (token == self.spawn)))
        return own, token, is_one_of(token, (self.end, self.spawn, self.wait, self.join))

    def adjust(self, shared: Any, own: Any, bulk: Any, logits: Float[Array, "V"]) -> Float[Array, "V"]:
        return logits if self.width else logits.at[self.spawn].set(-jnp.inf)

    @property
    def live(self) -> bool:
        return self.context == "live"

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The parent's `<wait>` is fed: children that see their parent's tokens may start. Or the root has read the prompt."""
        forked = fork(book, thread, books.opened(book, thread), context=thread, live=self.live)
        if not self.samples:
            return forked
        launched = verbs.launch(book, thread, self.samples, budget=book.request.max_tokens)
        return books.choose(book.threads.line.nesting[thread] == 0, launched, forked)

    def _depth(self, book: Book, thread: Int[Array, ""]) -> Int[Array, ""]:
        """The nesting of a thread below the one that answers."""
        return book.threads.line.nesting[thread] - int(self.samples > 0)

    def _close_message(self, book: Book, thread: Int[Array, ""]) -> Book:
        """End the message of the child opened last, before the control word that was just sampled."""
        latest = books.opened(book, thread) & (book.threads.line.ordinal == book.threads.line.opened[thread] - 1)
        return book.update_own(latest, asked_end=book.threads.cursor.length[thread] - 1)

    def _end(self, book: Book, thread: Int[Array, ""]) -> Book:
        malformed = jnp.any(books.opened(book, thread))
        book = book.update_own(books.numbers(book) == thread, joined_end=book.threads.cursor.length[thread] - 1)
        return ends.close(book, thread, jnp.where(malformed, int(Stop.MALFORMED), int(Stop.END)))

    def _spawn(self, book: Book, thread: Int[Array, ""]) -> Book:
        deep = self._depth(book, thread) >= self.max_depth
        if self.most:
            deep |= jnp.sum(books.opened(book, thread)) >= self.most
        book = self._close_message(book, thread)
        new = books.open_child(book, thread)
        is_child = (books.numbers(book) == book.used) & (new.threads.status == books.OPENED)
        stitched = {
            "message": False,
            "stitch": True,
            "reencode": ~jnp.any(books.opened(book, thread)),
        }[self.returns]
        new = new.update(is_child, flushes=stitched, held=stitched)
        new = new.update_own(is_child, asked=book.threads.cursor.length[thread])
        return books.choose(deep, ends.close(book, thread, jnp.int32(Stop.MALFORMED)), new)

    def _wait(self, book: Book, thread: Int[Array, ""]) -> Book:
        book = self._close_message(book, thread)
        born, stop = books.opened(book, thread), jnp.int32(0)
        if self.allowance:
            stop = self.allowance.refused(book, thread, jnp.sum(born, dtype=jnp.int32))
        stop = jnp.where(jnp.any(born), stop, int(Stop.MALFORMED))
        started = self._say(self.allowance.grant(book, thread, born) if self.allowance else book, thread, born)
        # Children that see the <wait> start when it is fed.
        isolated = self.context == "isolated"
        started = fork(started, thread, born) if isolated else started.update(thread, samples=False)
        return books.choose(stop == 0, started, ends.close(book, thread, stop))

    def _say(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"]) -> Book:
        """Give children their messages."""
        number, spans, told = books.numbers(book), book.threads.own, self._told(book)
        pieces = [
            *[(books.PROMPT, number * 0, book.prompt_length)] * self.question,
            (books.TEMPLATE, number * 0 + _SPAWN, 1),
            (books.SPAN, spans.asked, spans.asked_end - spans.asked),
            *((books.TEMPLATE, *phrase) for phrase in told),
            (books.TEMPLATE, number * 0 + _GO, 1),
        ]
        kind, start, length = zip(*pieces, strict=True)
        return verbs.say(book, to=number, kind=kind, thread=thread, start=start, length=length, valid=born)

    def _join(self, book: Book, thread: Int[Array, ""]) -> Book:
        """A child's result begins after the first `<join>` that the child samples; a thread that answers has no result."""
        threads = book.threads
        first = (self._depth(book, thread) > 0) & (threads.own.joined[thread] < 0)
        return book.update_own((books.numbers(book) == thread) & first, joined=threads.cursor.length[thread])

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        if not self.samples:
            return self._told_results(book, thread)
        ended = ends.close(book, thread, jnp.int32(Stop.END))
        return books.choose(self._depth(book, thread) < 0, ended, self._told_results(book, thread))

    def _told_results(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Children have ended: their results come to the thread that waited, in the form of `returns`."""
        number, born = books.numbers(book), books.awaited(book, thread)
        book = book.update(thread, samples=True)
        if self.allowance:
            book = self.allowance.restore(book, thread, born)
        threads, to = book.threads, number * 0 + thread
        if self.returns == "message":
            start, length = self.returned(book)
            pieces = dict(kind=(books.TEMPLATE, books.SPAN), start=(number * 0 + _RESULT, start), length=(1, length))
            return verbs.say(book, to, thread=number, valid=born, footer=_GO, **pieces)
        again = born & ~threads.bond.held
        book = lines.stitch(book, thread, born & threads.bond.held)
        book = ends.release(book, born)
        pieces = dict(kind=(books.SPAN,), start=(number * 0,), length=(threads.cursor.length,))
        return verbs.say(book, to, thread=number, valid=again, footer=_GO, **pieces)

    def returned(self, book: Book) -> tuple[Int[Array, "M"], Int[Array, "M"]]:
        """Start in its log and number of tokens of each thread's result; 0 tokens if the thread broke off or never joined."""
        threads = book.threads
        joined = (threads.own.joined >= 0) & (threads.stop == Stop.END)
        return threads.own.joined, jnp.where(joined, threads.own.joined_end - threads.own.joined, 0)
