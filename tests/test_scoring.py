"""Tokens that are scored without being sampled, and logits that a protocol adjusts: bans and a repetition penalty."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from apr_jax.decode import Engine, Problem, Source, Stop, ends
from apr_jax.decode import book as books
from apr_jax.decode.book import pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Protocol
from apr_jax.protocols import Sequential, verbs
from test_contract import ONE_ROW, SIZES, predicted, sharp_model

PROMPT, BAN = (3, 5, 1, 9, 2), 7
PHRASES = ((12, 13, 4, 1, 0, 8, 8), (5,), (2, 6))  # what the children are asked, of several lengths
MANY = dataclasses.replace(SIZES, lanes=4, rows=7, feed_threshold=1)


@pytree
class Score:
    """The sum of the log-probabilities of a thread's message, and how many there were."""

    sum: Float[Array, ""]
    count: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Asking(Protocol):
    """The root says three tokens, then three children are handed the last one and scored on a phrase each; none samples."""

    handed: bool = True
    needs = Needs(threads=4, scores=True, recorded=True)
    templates = sum(PHRASES, ())

    @property
    def handlers(self):
        return (self._spoken,)

    def own_state(self) -> Score:
        return Score(jnp.float32(0), jnp.int32(0))

    def scored(self, own):
        return own.count >= 0

    def score(self, own, token, logprob):
        return Score(own.sum + logprob.astype(jnp.float32), own.count + 1)

    def begin(self, book):
        book = verbs.open_sampler(book)
        return book.update_own(books.numbers(book) == 0, count=-1000)  # the prompt is not scored

    def observe(self, shared, own, drawn):
        own = dataclasses.replace(own, count=own.count + 1)
        return own, drawn.token, (own.count == -997).astype(jnp.int32)

    def _spoken(self, book, thread):
        for _ in PHRASES:
            book = books.open_child(book, thread)
        born, number, ordinal = books.opened(book, thread), books.numbers(book), book.threads.line.ordinal
        lengths = jnp.array([len(phrase) for phrase in PHRASES])
        which = jnp.clip(ordinal, 0, len(PHRASES) - 1)
        start, length = (jnp.cumsum(lengths) - lengths)[which], lengths[which]
        book = verbs.say(book, number, (books.TEMPLATE,), number, (start,), (length,), born)
        return fork(book, thread, born, context=thread, hand=self.handed, samples=False, held=True)

    def drained(self, book, thread):
        return ends.close(book, thread, jnp.int32(Stop.END))

    def joined(self, book, thread):
        return ends.close(ends.release(book, books.awaited(book, thread)), thread, jnp.int32(Stop.END))


@pytest.fixture(scope="module")
def model():
    return sharp_model()


def after_each(model, tokens: list[int]) -> np.ndarray:
    """Log-probabilities of what comes after each token of a plain sequence: Float [E, V]."""
    return predicted(model, np.array(tokens), np.arange(len(tokens)))


@pytest.mark.parametrize("sizes", [SIZES, ONE_ROW, MANY], ids=["few rows", "one row", "many rows"])
@pytest.mark.parametrize("handed", [True, False])
def test_messages_are_scored_as_the_model_says(model, handed, sizes):
    problems = [Problem(i, np.array(PROMPT), temperature=1.0) for i in range(3)]
    engine = Engine(model, Asking(handed=handed), sizes)
    for transcript in engine.decode(problems, seed=2):
        assert transcript.stop == Stop.END and len(transcript.threads) == 4
        said = transcript.generated(0).tolist()
        for child, phrase in enumerate(PHRASES, start=1):
            context = [*PROMPT, *said] if handed else [*PROMPT, *said[:-1]]
            known = after_each(model, [*context, *phrase])
            places = range(len(context) - (1 if handed else 0), len(context) + len(phrase) - 1)
            after = [*context, *phrase]
            right = [known[place, after[place + 1]] for place in places]
            assert transcript.own["count"][child] == len(right) == len(phrase) - (not handed)
            np.testing.assert_allclose(transcript.own["sum"][child], sum(right), atol=1e-4)
    assert engine.traces == 1


# ---- adjusted logits


@dataclasses.dataclass(frozen=True)
class Banning(Sequential):
    """Tokens are never drawn twice in a row, one never at all; `all`: none may be drawn."""

    none: bool = False

    @property
    def needs(self):
        return dataclasses.replace(super().needs, adjusts=True)

    def own_state(self):
        return jnp.int32(-1)

    def observe(self, shared, own, drawn):
        _, token, event = super().observe(shared, own, drawn)
        return drawn.token, token, event

    def adjust(self, shared, own, bulk, logits):
        token = jnp.arange(len(logits))
        return jnp.where((token == own) | (token == BAN) | self.none, -jnp.inf, logits)


@pytest.mark.parametrize(
    "options", [dict(temperature=0.0), dict(temperature=1.0), dict(temperature=1.3, top_k=3, top_p=0.9)]
)
def test_what_is_banned_is_not_drawn_and_both_log_probabilities_are_kept(model, options):
    problems = [Problem(i, np.array(PROMPT), max_tokens=20, **options) for i in range(4)]
    engine = Engine(model, Banning(end=0), SIZES)
    count = 0
    for transcript in engine.decode(problems, seed=5):
        log, tokens = transcript.log, transcript.generated(0)
        whole = [*PROMPT, *tokens.tolist()]
        known = after_each(model, whole)
        for place, entry in enumerate(np.flatnonzero(log.sampled), start=len(PROMPT)):
            offered = known[place - 1].copy()
            offered[BAN] = -np.inf
            if place > len(PROMPT):
                offered[whole[place - 1]] = -np.inf
            np.testing.assert_allclose(log.logprob[entry], known[place - 1, whole[place]], atol=1e-4)
            if options["temperature"] == 1.0:
                behaviour = offered[whole[place]] - np.logaddexp.reduce(offered)
                np.testing.assert_allclose(log.behaviour_logprob[entry], behaviour, atol=1e-4)
            elif not options["temperature"]:
                assert offered[whole[place]] > offered.max() - 1e-4
            else:
                assert offered[whole[place]] >= np.sort(offered)[-3] - 1e-4
            assert log.source[entry] == Source.SAMPLED and np.isfinite(offered[whole[place]])
            count += 1
    assert count > 40


def test_a_thread_that_may_draw_nothing_ends_its_problem(model):
    (transcript,) = Engine(model, Banning(end=0, none=True), SIZES).decode(
        [Problem(0, np.array(PROMPT), temperature=1.0)]
    )
    assert transcript.stop == Stop.NOT_FINITE
