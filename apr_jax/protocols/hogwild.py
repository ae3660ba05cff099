"""Workers that write together on one memory (Hogwild! Inference, Rodionov et al. 2025, arXiv 2504.06261, and its released code).

1. A worker sees, in this order: prompt and history, a header, what the others have written of their present steps, a header of its
   own, its own present step. Tokens of the same clock see each other. The headers were read without any context.
2. A step ends with a sentence and an empty line. It moves to the end of the history as it is; its last token is the first one of
   the worker's next step, before a prefix that names worker and step, and now and then a question that warns of redundant work.
3. When a step that ended holds an answer, all end where they stand, and what they wrote is the response. If the budgets are used up
   before, all the text is read again, in one order, with a phrase that asks for the answer, and some tokens are decoded greedily.
4. Some tokens are banned while workers write.

What moves changes its position in every view: keys are rotated within their threads, queries are turned (`apr_jax.decode.views`). A
thread is a step, the history the steps that have ended, by clock, then by worker. The end of a step is a decision, because question
and end of all depend on all workers. Unlike the released code, which reads a prefix in one forward pass, a worker is fed one token
a step throughout, as the others are; the question counts tokens that were fed; an answer is what stands between its brackets, if
anything does. A token that a worker never fed (its budget was used up) is text only.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines, messages, races
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol, is_one_of
from apr_jax.decode.recogniser import Found, Recogniser
from apr_jax.decode.threads import READY
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop

ROOT, OTHERS, OWN, WORKER = range(4)


@pytree
class Role:
    """What a thread keeps.

    Attributes:
        role: ROOT, the header OTHERS or OWN, or a step of a WORKER.
        worker, step: their numbers, from 0 on.
        ended: clock at which the step ended and became history; 0 before.
        answers: the step holds an answer.
        found: how far the recogniser has come.
    """

    role: Int[Array, ""]
    worker: Int[Array, ""]
    step: Int[Array, ""]
    ended: Int[Array, ""]
    answers: Bool[Array, ""]
    found: Found


@pytree
class Common:
    """What the threads of a problem share: whether there is an answer; tokens that workers had been fed at the last question."""

    answered: Bool[Array, ""]
    asked: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Hogwild(Protocol):
    """Phrases and choices of a method.

    Attributes:
        recogniser: knows the phrase `answer`, which captures; all its other phrases end a step.
        phrases: `headers` (of others, of one's own); `openings` of the workers; `prefix` of each worker's further steps, worker by
            worker; `question`; and for the text that is read again `pivot`, after each step that has not ended, and `finish`.
        workers: number of workers.
        end: the token that ends the response.
        every: tokens of all workers after which a question is asked at the next end of a step; 0: never.
        banned: tokens that workers may not sample.
    """

    recogniser: Recogniser
    phrases: Phrases
    workers: int
    end: int
    every: int = 256
    banned: tuple[int, ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs(
            threads=3 + self.workers,
            live=True,
            together=self.workers,
            races=True,
            adjusts=bool(self.banned),
            views=True,
        )

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (races.defer, ForAll(verbs.end))

    @property
    def steps(self) -> int:
        """Further steps for which a worker has prefixes."""
        return len(self.phrases.starts[self.phrases.names.index("prefix")]) // self.workers

    def own_state(self) -> Role:
        zero = jnp.int32(0)
        return Role(zero, zero, zero, zero, jnp.bool(False), self.recogniser.start())

    def shared_state(self) -> Common:
        openings = self.phrases.lengths[self.phrases.names.index("openings")]
        return Common(jnp.bool(False), jnp.int32(sum(openings)))

    def begin(self, book: Book) -> Book:
        root = jnp.int32(0)
        return verbs.feed_prompt(books.open_root(book, samples=False), root, root, book.prompt_length)

    def adjust(self, shared: Any, own: Role, bulk: Any, logits: Float[Array, "V"]) -> Float[Array, "V"]:
        banned = logits.at[jnp.array(self.banned, jnp.int32)].set(-jnp.inf)
        return jnp.where(own.role == WORKER, banned, logits)

    def observe(self, shared: Any, own: Role, drawn: Drawn) -> tuple[Role, Int[Array, ""], Int[Array, ""]]:
        found, event = self.recogniser.step(own.found, drawn.token)
        answer = event == self.recogniser.captured_event("answer")
        answers = own.answers | (answer & (found.captured.tokens > 0))
        names = [phrase.name for phrase in self.recogniser.phrases if not phrase.until]
        ended = is_one_of(event, tuple(map(self.recogniser.event, names))) > 0
        event = jnp.where(own.role == WORKER, jnp.where(ended, 1, 0), jnp.where(drawn.token == self.end, 2, 0))
        return dataclasses.replace(own, found=found, answers=answers), drawn.token, event

    def offsets(self, book: Book, fed: Int[Array, "M"]) -> Int[Array, "M M"]:
        own = book.threads.own
        writes, was = own.role == WORKER, own.ended > 0
        past, present = writes & was, writes & ~was
        earlier = (own.ended[:, None] > own.ended) | (
            (own.ended[:, None] == own.ended) & (own.worker[:, None] > own.worker)
        )
        sum_of = lambda chosen: jnp.sum(jnp.where(chosen, fed, 0), axis=-1)
        history = book.prompt_length + sum_of(past & earlier)  # where a step of the history begins, in every view
        common, header = book.prompt_length + sum_of(past), sum_of(own.role == OTHERS)
        other = present & (own.worker[:, None] != own.worker)  # [viewer, thread]
        before = jnp.where(other, fed, 0) @ (own.worker[:, None] < own.worker).astype(fed.dtype)  # of the others
        mine = common + header + sum_of(other)[:, None]  # where one's own header begins
        begins = jnp.where(other, common + header + before, mine + sum_of(own.role == OWN))
        begins = jnp.where(past, history, begins)
        begins = jnp.where(own.role == OTHERS, common, jnp.where(own.role == OWN, mine, begins))
        return jnp.where(writes[:, None] & (own.role != ROOT), begins, 0)

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The root has read the prompt, or a header itself."""
        header = ends.close(book, thread, jnp.int32(Stop.END))
        return books.choose(book.threads.own.role[thread] == ROOT, self._read_headers(book, thread), header)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The headers are read: the workers begin. Or all workers have ended."""
        reads = book.threads.own.step[thread] == 0
        return books.choose(reads, self._start(book, thread), self._conclude(book, thread))

    def decided(self, book: Book, thread: Int[Array, ""]) -> Book:
        """A step has ended: its worker goes on with the next one, unless there is an answer; then all end.

        Others that have ended a step at the same clock end after that.
        """
        own, mine = book.threads.own, books.numbers(book) == thread
        answered = book.shared.answered | own.answers[thread]
        book = book.replace(shared=dataclasses.replace(book.shared, answered=answered))
        book = book.update_own(mine, ended=book.threads.cursor.clock)
        running = (own.role == WORKER) & (book.threads.status == READY)
        ended = ends.close(book, mine | running, jnp.where(mine, int(Stop.END), int(Stop.CUT)))
        last = own.step[thread] >= self.steps
        goes_on = books.choose(last, ends.close(book, mine, jnp.int32(Stop.LENGTH)), self._next(book, thread))
        return books.choose(answered, ended, goes_on)

    def _read_headers(self, book: Book, root: Int[Array, ""]) -> Book:
        book = books.open_children(book, root, 2)
        born, number = books.opened(book, root), books.numbers(book)
        which = books.place_among(book, born)
        start, length = self.phrases.each("headers", which)
        book = verbs.say(book, number, (books.TEMPLATE,), number, (start,), (length,), born)
        book = book.update_own(born, role=OTHERS + which)
        return fork(book, root, born, held=True, samples=False)

    def _start(self, book: Book, root: Int[Array, ""]) -> Book:
        """Let the workers begin; they see prompt, headers and each other."""
        headers = books.awaited(book, root)
        book = books.open_children(book.update_own(books.numbers(book) == root, step=1), root, self.workers)
        born, number = books.opened(book, root), books.numbers(book)
        worker = books.place_among(book, born)
        start, length = self.phrases.each("openings", worker)
        book = verbs.say(book, number, (books.TEMPLATE,), number, (start,), (length,), born)
        book = book.update_own(born, role=WORKER, worker=worker)
        book = fork(book, root, born, context=root, position=jnp.zeros_like(number), live=True)
        seen = book.sees | books.bits(headers, book.sees.shape[1])
        return book.replace(sees=jnp.where(born[:, None], seen, book.sees))

    def _next(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The worker goes on with a new step."""
        own, number = book.threads.own, books.numbers(book)
        worker, step = own.worker[thread], own.step[thread] + 1
        fed = jnp.sum(jnp.where(own.role == WORKER, book.threads.cursor.fed, 0))
        asks = (fed - book.shared.asked > self.every) & (self.every > 0)
        asked = jnp.where(asks, fed, book.shared.asked)
        book = book.replace(shared=dataclasses.replace(book.shared, asked=asked))
        book = lines.go_on(book, thread, book.sees[thread], jnp.int32(0), hand=True)
        new = (number == lines.successor(book, thread)) & (number != thread)
        fresh = dataclasses.replace(self.own_state(), role=jnp.int32(WORKER), worker=worker, step=step)
        prefix, question = self.phrases.each("prefix", worker * self.steps + step - 1), self.phrases.one("question")
        return verbs.say(
            book.update(new, own=fresh),
            number,
            (books.TEMPLATE, books.TEMPLATE),
            number,
            start=(prefix[0], question[0]),
            length=(prefix[1], question[1]),
            valid=(new, new & asks),
        )

    def _conclude(self, book: Book, root: Int[Array, ""]) -> Book:
        """End with the response that is there, or read all text again and ask for an answer."""
        header = (book.threads.own.role == OTHERS) | (book.threads.own.role == OWN)
        book = ends.release(book, header)
        asks = self._reread(book, root).update(root, samples=True, temperature=0.0)
        return books.choose(book.shared.answered, ends.close(book, root, jnp.int32(Stop.END)), asks)

    def _reread(self, book: Book, root: Int[Array, ""]) -> Book:
        """History, header, the present steps with a pivot after each, and what asks for the answer."""
        own, line = book.threads.own, book.threads.line
        past = (own.role == WORKER) & (own.ended > 0)
        present = (own.role == WORKER) & (own.ended == 0)
        latest = jnp.where(past, own.ended, jnp.iinfo(jnp.int32).max)
        order = jnp.lexsort((own.worker, latest, ~(past | present)))
        first = present & (own.worker == jnp.min(jnp.where(present, own.worker, self.workers)))
        handed = (line.segment > 0).astype(jnp.int32)  # it is the last token of the step before
        length = jnp.maximum(book.threads.cursor.length - handed, 0)
        header, pivot, finish = (self.phrases.one(name) for name in ("headers", "pivot", "finish"))

        def of_each(header, span, pivot, finish):
            whole = [jnp.broadcast_to(jnp.asarray(part), own.role.shape)[order] for part in (header, span, pivot)]
            return jnp.append(jnp.stack(whole, axis=1).reshape(-1), jnp.asarray(finish, whole[0].dtype))

        return messages.compose(
            book,
            to=of_each(root, root, root, root),
            kind=of_each(books.TEMPLATE, books.SPAN, books.TEMPLATE, books.TEMPLATE),
            thread=of_each(0, books.numbers(book), 0, 0),
            start=of_each(header[0], handed, pivot[0], finish[0]),
            length=of_each(header[1], length, pivot[1], finish[1]),
            valid=of_each(first, (past | present) & (length > 0), present, True),
        )
