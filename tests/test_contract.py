"""What else a protocol may ask for: signals, bulk state, parts of the prompt, random choices, handed tokens, a last phrase."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

import reference_model
from apr_jax.decode import Engine, Problem, Sizes, Source, Stop, ends
from apr_jax.decode import book as books
from apr_jax.decode.book import pytree
from apr_jax.decode.forks import fork
from apr_jax.decode.needs import Needs
from apr_jax.decode.protocol import Protocol
from apr_jax.decode.signals import BestMean, Entropy, Logprobs
from apr_jax.model import transformer
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import verbs

CONFIG = ModelConfig(vocabulary=16, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=32, dtype="float32")
SIZES = Sizes(problems=2, lanes=2, rows=3, feed_tiles=1, feed_chunk=4, threads=4, slots=128, page_size=4, log=128, log_page_size=4,
              queue=4, prompt=8, outbox=2, attention_block=32)  # fmt: skip
ONE_ROW = dataclasses.replace(SIZES, problems=1, lanes=1, rows=1, feed_chunk=1, outbox=1)
SIGNALS = (Entropy(), BestMean(3), Logprobs((4, 7)))
PROMPT, QUESTION = (3, 5, 1, 9, 2), (1, 4)
SAID, RING = 6, 4  # tokens that a thread samples, numbers that are kept in bulk
PHRASE = (12, 13)


@pytree
class Notes:
    """What a thread keeps: its depth, how often it has sampled, sums of signals, those of its last row, its own temperature."""

    depth: Int[Array, ""]
    said: Int[Array, ""]
    recent: Float[Array, ""]
    last: Float[Array, "3"]
    temperature: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Asking(Protocol):
    """The root says a few tokens, then two children are handed the last of them and asked the question again.

    Each ends with a phrase in place of its last token.
    """

    needs = Needs(threads=3, signals=SIGNALS, parts=("question",), recorded=True)
    templates = PHRASE

    @property
    def handlers(self):
        return (self._spoken,)

    def own_state(self) -> Notes:
        return Notes(jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.zeros(3, jnp.float32), jnp.float32(1))

    def fresh(self, shared, parent: Notes) -> Notes:
        return dataclasses.replace(self.own_state(), depth=parent.depth + 1)

    def bulk_state(self) -> Array:
        return jnp.full(RING, 99, jnp.float32)  # what nobody wrote must not be read

    def watch(self, bulk, own: Notes, drawn):
        bulk = bulk.at[own.said % RING].set(drawn.signals[0])
        mine = jnp.where(jnp.arange(RING) <= own.said, bulk, 0)
        return bulk, dataclasses.replace(own, recent=jnp.sum(mine))

    def begin(self, book):
        return verbs.open_sampler(book)

    def observe(self, shared, own: Notes, drawn):
        own = dataclasses.replace(own, said=own.said + 1)
        return own, drawn.token, (own.said == SAID).astype(jnp.int32)

    def _spoken(self, book, thread):
        asked = books.open_child(books.open_child(book, thread), thread)
        born, number = books.opened(asked, thread), books.numbers(book)
        start, length = verbs.part(book, self.needs.parts.index("question"))
        asked = verbs.say(asked, number, (books.PROMPT,), number, (number * 0 + start,), (length,), born)
        keys = jax.vmap(lambda child: books.stream(asked, child, jnp.int32(0)))(number)
        draw = lambda key: jax.random.uniform(jax.random.wrap_key_data(key, impl=books.RANDOM), (), jnp.float32, 0.5)
        temperature = jax.vmap(draw)(keys)
        asked = asked.update_own(born, temperature=temperature)
        forked = fork(asked, thread, born, hand=True, temperature=temperature)
        closing = verbs.say_last(book, thread, 0, len(PHRASE), drop=True)
        return books.choose(book.threads.line.nesting[thread] == 0, forked, closing)

    def drained(self, book, thread):
        noted = book.update_own(books.numbers(book) == thread, last=book.threads.drawn.signals[thread])
        return ends.close(noted, thread, jnp.int32(Stop.END))

    def joined(self, book, thread):
        return ends.close(ends.release(book, books.awaited(book, thread)), thread, jnp.int32(Stop.END))


def sharp_model() -> transformer.Model:
    """Weights so large that a token depends on all that is seen."""
    model = transformer.init(CONFIG, jax.random.key(1))
    return dataclasses.replace(model, params=jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, model.params))


def predicted(model, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Log-probabilities of what comes after each token of a sequence: Float [E, V]."""
    params = jax.tree.map(np.asarray, model.params)
    logits = reference_model.all_logits(params, CONFIG, tokens, positions).astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def model() -> transformer.Model:
    return sharp_model()


def decoded(model, sizes):
    problems = [Problem(i, np.array(PROMPT), temperature=1.0, parts={"question": QUESTION}) for i in range(3)]
    return sorted(Engine(model, Asking(), sizes).decode(problems), key=lambda t: t.problem)


@pytest.fixture(scope="module")
def found(model):
    return decoded(model, SIZES)


def logprobs(model, found, thread: int) -> np.ndarray:
    """What the model predicts after each token that a thread was fed, which saw its own only: Float [fed, V]."""
    log = found.log
    mine = np.flatnonzero((log.thread == thread) & (log.index >= 0))
    mine = mine[np.argsort(log.index[mine])]
    return predicted(model, log.token[mine], log.position[mine])


def test_children_are_handed_the_token_and_asked_the_question(found):
    for each in found:
        handed = each.generated(0)[-1]
        for child in (1, 2):
            mine = each.log.thread == child
            sources = [Source.HANDED, *[Source.FED] * 3, *[Source.SAMPLED] * SAID, *[Source.FED] * 2]
            assert each.log.source[mine].tolist() == sources
            assert each.tokens(child)[:4].tolist() == [handed, *PROMPT[slice(*QUESTION)]]
            assert each.tokens(child)[-2:].tolist() == list(PHRASE)
            assert (each.log.clock[mine] < 0).tolist() == [False] * 9 + [True] + [False] * 2, (
                "the dropped token is not fed"
            )
            assert each.own["depth"].tolist() == [0, 1, 1]
        counts = each.log.depth[each.log.sampled & (each.log.thread > 0)]
        assert counts.tolist() == 2 * [*range(SAID + 1, 2 * SAID + 1)], "what is handed on counts once"


def test_signals_are_those_of_the_model(model, found):
    for each in found:
        for child in (1, 2):
            rows = logprobs(model, each, child)
            entropy = -np.sum(np.exp(rows) * rows, axis=-1)
            sampled = entropy[3 : 3 + SAID]  # rows from the question's last token on predict what is sampled
            np.testing.assert_allclose(each.own["recent"][child], sampled[-RING:].sum(), atol=1e-4)
            last = [entropy[-1], -np.sort(rows[-1])[-3:].mean(), np.logaddexp(rows[-1, 4], rows[-1, 7])]
            np.testing.assert_allclose(
                each.own["last"][child], last, atol=1e-4, err_msg="of a row that samples nothing"
            )


def test_random_choices_have_keys_of_their_own_and_no_schedule_changes_them(model, found):
    root = jax.random.key(0, impl=books.RANDOM)
    for each, again in zip(found, decoded(model, ONE_ROW), strict=True):
        line = jax.random.fold_in(jax.random.fold_in(root, each.problem), each.sample)
        for child in (1, 2):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(line, child), np.uint32(2**32 - 1)), 0)
            assert each.own["temperature"][child] == jax.random.uniform(key, (), jnp.float32, 0.5)
        for name, value in each.own.items():
            np.testing.assert_allclose(again.own[name], value, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(again.log.token, each.log.token)


def test_a_part_that_the_prompt_lacks_is_refused(model):
    engine = Engine(model, Asking(), SIZES)
    with pytest.raises(ValueError, match="no part question; name it in parts"):
        next(engine.decode([Problem(0, np.array(PROMPT))]))
    with pytest.raises(ValueError, match="part question is 2 .. 9; it must lie in the prompt, 0 .. 5"):
        next(engine.decode([Problem(0, np.array(PROMPT), parts={"question": (2, 9)})]))


def test_what_a_protocol_does_not_say_that_it_needs_is_refused():
    book = books.open_root(books.empty(SIZES, Asking()), samples=True)
    root = jnp.int32(0)
    for option, name in ((dict(live=True), "live"), (dict(waits=False), "beside")):
        with pytest.raises(ValueError, match=f"needs.{name} is False"):
            fork(book, root, books.opened(book, root), **option)


@dataclasses.dataclass(frozen=True)
class Closing(Asking):
    """The root never forks; what has used up its budget is given a phrase in place of its last token."""

    needs = Needs(pieces=1, signals=SIGNALS)
    handlers = ()

    def observe(self, shared, own: Notes, drawn):
        return own, drawn.token, jnp.int32(0)

    def spent(self, book, mask):
        return verbs.say_last(book, mask, 0, len(PHRASE), drop=True)

    def drained(self, book, thread):
        return ends.close(book, thread, jnp.int32(Stop.LENGTH))


def test_a_spent_budget_may_be_followed_by_a_phrase(model):
    assert books.empty(SIZES, Closing()).pieces.kind.shape == (SIZES.threads + 4,)
    problems = [Problem(i, np.array(PROMPT), temperature=1.0, max_tokens=1 + i) for i in range(3)]
    for each in Engine(model, Closing(), SIZES).decode(problems):
        said = 1 + each.problem
        assert each.log.source.tolist() == [Source.FED] * 5 + [Source.SAMPLED] * said + [Source.FED] * 2
        assert each.tokens(0)[-2:].tolist() == list(PHRASE) and each.stop == Stop.LENGTH
        assert (each.log.clock < 0).tolist() == [False] * (4 + said) + [True, False, False]
