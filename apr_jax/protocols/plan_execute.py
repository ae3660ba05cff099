"""Rounds of a plan and its parallel execution (SPRINT, Biju et al. 2025, arXiv 2506.05745; the client that was released with it).

    the planner samples     <Plan_p> ... <prompt_p.1> a </prompt_p.1> ... <prompt_p.2> b </prompt_p.2> ... </Plan_
    executor k is fed       the plan without the other prompts, its own as number 1, and <execution_p.1>
    the planner is fed      <Execution_p> all executions in order </Execution_p>, then <Plan_p+1>

1. An executor sees all that stands before the plan, and is fed the plan: so a plan is a thread of its own, and its line goes on as
   another at the next plan. An executor ends at any word that ends something; that word is dropped.
2. An execution that its budget cut off counts as it stands.
3. Of `phases` the last is no plan: its opening is forced, as the client forces the answer, and it forks no more.
4. `</Final_answer>`, `</think>` or the end of the text end the planner.
5. A plan without prompts, or more than `most`, an empty prompt, tags that do not match, and the end of an execution in a plan are
   MALFORMED. The client repairs tags and tries an executor that failed again; here nothing is repaired. Numbers in tags are not
   read: prompts count in their order.

Words may be ids or text. The tokens since the recogniser last stood at its start belong to a word that ends, so that a prompt may
lose a last token that could have begun one. What a token holds beyond a tag's `>` is lost with the tag.

The published count of sequential tokens lets executor k start when its prompt is complete, although it is fed the rest of the plan;
the critical path counted here has it start at the end of the plan, as it does.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from apr_jax.decode import book as books
from apr_jax.decode import ends, lines
from apr_jax.decode.book import Book, pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Drawn, ForAll, Handler, Protocol
from apr_jax.decode.recogniser import Found, Recogniser
from apr_jax.protocols import verbs
from apr_jax.protocols.phrases import Phrases
from apr_jax.record import Stop

ENDS = ("plan_end", "answer_end", "think_end", "execution_end", "executions_end")
WORDS = ("prompt", "prompt_end", *ENDS)
SAID = ("plan", "prompt", "prompt_end", "execute", "executions", "execution", "execution_end", "executed")


@pytree
class Part:
    """What a thread remembers.

    Attributes:
        found: how far the recogniser has come.
        held: tokens since it last stood at its start.
        number: the place of an executor's prompt, -1 for the planner.
        phase: of the planner, from 0 on; -1 while it reads its prompt.
        said: tokens that it sampled, of the planner in this plan.
        until: how many of these stand before the word that ended it.
        count: complete prompts of the plan.
        stage: parts of the prompt that is being written that have ended: opening tag begun, ended, closing tag begun.
        marks: Int [most, 4]; where the four parts of each prompt begin or end, in tokens sampled in this plan.
        refused: a prompt that the format does not allow.
        ending: a `Stop`, set when it is to end.
    """

    found: Found
    held: Int[Array, ""]
    number: Int[Array, ""]
    phase: Int[Array, ""]
    said: Int[Array, ""]
    until: Int[Array, ""]
    count: Int[Array, ""]
    stage: Int[Array, ""]
    marks: Int[Array, "most 4"]
    refused: Bool[Array, ""]
    ending: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class PlanExecute(Protocol):
    """The control words, what is said in the protocol's name, and the choices of the method.

    Attributes:
        recogniser: of the phrases in `WORDS`; `prompt` and `prompt_end` capture what stands before the end of their tags.
        phrases: by phase `plan` (what opens it), `prompt` and `prompt_end` (an executor's own), `execute` (what an executor is fed
            last), `executions` and `executed` (what the planner is fed first and last); and by phase and number, `most` numbers
            a phase, `execution` and `execution_end`.
        end: id of the token that ends a text.
        most: prompts of a plan.
        phases: of a planner.
        plan_tokens: that the planner may sample in one phase; 0: only its budget bounds it.
    """

    recogniser: Recogniser
    phrases: Phrases
    end: int
    most: int = 8
    phases: int = 12
    plan_tokens: int = 0

    def __post_init__(self):
        for name, least in (("most", 1), ("phases", 1), ("plan_tokens", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"plan_execute.{name} is {getattr(self, name)}; at least {least} is needed")
        for name in WORDS:
            self.recogniser.event(name)
        for name in ("prompt", "prompt_end"):
            self.recogniser.captured_event(name)
        missing = [name for name in SAID if name not in self.phrases.names]
        if missing:
            raise ValueError(f"plan_execute.phrases lack {', '.join(missing)}")

    @property
    def needs(self) -> Needs:
        # Of an executor: the pieces of the plan, its own prompt, what stands around them; three at the join, and the planner's.
        return Needs(threads=2, pieces=self.most + 12)

    @property
    def templates(self) -> tuple[int, ...]:
        return self.phrases.tokens

    @property
    def handlers(self) -> tuple[Handler, ...]:
        return (ForAll(self._stop), self._fork)

    def own_state(self) -> Part:
        zero, none, no = jnp.int32(0), jnp.int32(-1), jnp.bool(False)
        marks = jnp.zeros((self.most, 4), jnp.int32)
        return Part(self.recogniser.start(), zero, none, none, zero, zero, zero, zero, marks, no, zero)

    def begin(self, book: Book) -> Book:
        root = jnp.int32(0)
        return verbs.feed_prompt(books.open_root(book, samples=False), root, root, book.prompt_length)

    def observe(self, shared: Any, own: Part, drawn: Drawn) -> tuple[Part, Int[Array, ""], Int[Array, ""]]:
        found, met = self.recogniser.step(own.found, drawn.token)
        said, word, ended = own.said + 1, own.held + 1, drawn.token == self.end
        is_met = {name: met == self.recogniser.event(name) for name in WORDS}
        marked = (
            is_met["prompt"],
            met == self.recogniser.captured_event("prompt"),
            is_met["prompt_end"],
            met == self.recogniser.captured_event("prompt_end"),
        )
        stops = ended | jnp.any(jnp.stack([is_met[name] for name in ENDS]))
        own = dataclasses.replace(
            own,
            found=found,
            held=jnp.where(found.at == 0, 0, word),
            said=said,
            until=jnp.where(stops, said - jnp.where(ended, 1, word), own.until),
        )
        plans = own.number < 0
        own = self._marked(own, jnp.stack(marked) & plans, word)
        whole = own.stage == 0
        forks = is_met["plan_end"] & whole & (own.count > 0) & ~own.refused & (own.phase < self.phases - 1)
        answers = (is_met["answer_end"] | is_met["think_end"] | ended) & whole
        own = dataclasses.replace(own, ending=jnp.where(answers | ~plans, int(Stop.END), int(Stop.MALFORMED)))
        return own, drawn.token, jnp.where(stops, jnp.where(forks & plans, 2, 1), 0)

    def _marked(self, own: Part, marked: Bool[Array, "4"], word: Int[Array, ""]) -> Part:
        """The state of a planner after a part of a prompt has begun or ended, if one has."""
        part = jnp.argmax(marked)
        place = own.said - jnp.where(part % 2 == 0, word, 0)  # tags begin with their words
        empty = (part == 2) & (place <= own.marks[jnp.minimum(own.count, self.most - 1), 1])
        legal = jnp.any(marked) & (part == own.stage) & (own.count < self.most) & ~empty
        here = (jnp.arange(self.most)[:, None] == own.count) & (jnp.arange(4) == part) & legal
        return dataclasses.replace(
            own,
            count=own.count + (legal & (part == 3)),
            stage=jnp.where(legal, (part + 1) % 4, own.stage),
            marks=jnp.where(here, place, own.marks),
            refused=own.refused | (jnp.any(marked) & ~legal),
        )

    def _stop(self, book: Book, mask: Bool[Array, "M"]) -> Book:
        return ends.close(book, mask, book.threads.own.ending)

    def _fork(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Start the executors of the plan that has just been ended, on what stands before it."""
        line, own = book.threads.line, book.threads.own
        before = (line.first == line.first[thread]) & (line.segment == line.segment[thread] - 1)
        before &= books.numbers(book) < book.used
        book = books.open_children(book, thread, own.count[thread])
        born = books.opened(book, thread)
        book = book.update_own(born, number=books.place_among(book, born))
        return fork(self._ask(book, thread, born), thread, born, context=jnp.argmax(before).astype(jnp.int32))

    def _ask(self, book: Book, thread: Int[Array, ""], born: Bool[Array, "M"]) -> Book:
        """Give executors the plan, each with its own prompt only."""
        own, number = book.threads.own, books.numbers(book)
        count, phase, marks = own.count[thread], own.phase[thread], own.marks[thread]
        base = book.threads.cursor.length[thread] - own.said[thread]
        # Stretches of the plan between prompts, [most + 1]; what comes after the last prompt is the one at `count`.
        begins = jnp.append(0, marks[:, 3])
        stops = jnp.where(jnp.arange(self.most + 1) == count, own.until[thread], jnp.append(marks[:, 0], 0))
        says = lambda name: (books.TEMPLATE, *self.phrases.each(name, number * 0 + phase), born)
        pieces = [says("plan")]
        for place in range(self.most + 1):
            length = number * 0 + stops[place] - begins[place]
            there = born & (place <= count) & (length > 0)
            pieces.append((books.SPAN, number * 0 + base + begins[place], length, there))
            if place < self.most:
                mine = born & (own.number == place)
                pieces += [
                    (*says("prompt")[:-1], mine),
                    (books.SPAN, number * 0 + base + marks[place, 1], marks[place, 2] - marks[place, 1], mine),
                    (*says("prompt_end")[:-1], mine),
                ]
        kind, start, length, valid = zip(*pieces, says("execute"), strict=True)
        return verbs.say(book, number, kind, thread, start, length, valid)

    def joined(self, book: Book, thread: Int[Array, ""]) -> Book:
        """Feed the planner what its executors wrote; its next plan begins when all of it is fed."""
        born, own = books.awaited(book, thread), book.threads.own
        phase, first = own.phase[thread], books.eldest(book, born)
        place = phase * self.most + own.number
        wrote = jnp.where(book.threads.stop == Stop.END, own.until, own.said)
        opening, closing = (self.phrases.each(name, place) for name in ("execution", "execution_end"))
        executions = self.phrases.each("executions", born * 0 + phase)
        return verbs.say(
            book.update(thread, samples=False),
            to=jnp.broadcast_to(thread, born.shape),
            kind=(books.TEMPLATE, books.TEMPLATE, books.SPAN, books.TEMPLATE),
            thread=books.numbers(book),
            start=(executions[0], opening[0], book.threads.cursor.length - own.said, closing[0]),
            length=(executions[1], opening[1], wrote, closing[1]),
            valid=(first, born, born & (wrote > 0), born),
            footer=self.phrases.each("executed", phase),
        )

    def drained(self, book: Book, thread: Int[Array, ""]) -> Book:
        """The prompt, or the executions of a plan, are fed: the next plan begins, in a thread of its own."""
        cursor, new = book.threads.cursor, books.numbers(book) == book.used
        phase, generated = book.threads.own.phase[thread] + 1, cursor.generated[thread]
        book = lines.go_on(book, thread, book.sees[thread], cursor.position[thread])
        book = book.update_own(new, phase=phase, said=0, count=0, stage=0, refused=False)
        book = book.update(new, samples=True)
        if self.plan_tokens:
            book = book.update(new, budget=jnp.minimum(book.request.max_tokens, generated + self.plan_tokens))
        start, length = self.phrases.each("plan", phase)
        return verbs.say(book, books.numbers(book), (books.TEMPLATE,), thread, (start,), (length,), new)
