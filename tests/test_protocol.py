"""What the engine promises to protocols: state of their own, tokens put in the place of others, and that the record says so."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

import oracle
import reference_model
import replaying
from apr_jax import record
from apr_jax.decode import Engine, Problem, Sizes, Source, Stop
from apr_jax.decode import book as books
from apr_jax.decode.book import pytree
from apr_jax.decode.needs import Needs
from apr_jax.model import transformer
from apr_jax.model.attention import packed_attend
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Samples
from apr_jax.train.packing import pack

CONFIG = ModelConfig(vocabulary=16, width=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=32, dtype="float32")
SIZES = Sizes(problems=2, lanes=2, rows=3, feed_tiles=1, feed_chunk=4, threads=4, slots=128, page_size=4, log=128, log_page_size=4,
              queue=4, prompt=8, outbox=2, attention_block=32)  # fmt: skip
BANNED, INSTEAD = tuple(range(8)), 9  # half of all tokens, so that many are rewritten


@pytree
class Tally:
    """What a thread keeps: tokens that it said, and the log-probability of what was drawn, all in all."""

    said: Int[Array, ""]
    logprob: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Careful(Samples):
    """Samples that never say a banned word, and end when they have said `most` tokens; the root adds up what they said."""

    most: int = 6

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, recorded=True)

    def own_state(self) -> Tally:
        return Tally(jnp.int32(0), jnp.float32(0))

    def shared_state(self) -> dict[str, Array]:
        return {"total": jnp.int32(0)}

    def observe(self, shared: Any, own: Tally, drawn: Any) -> tuple[Tally, Array, Array]:
        own = Tally(own.said + 1, own.logprob + drawn.logprob)
        banned = jnp.any(drawn.token == jnp.array(BANNED))
        return own, jnp.where(banned, INSTEAD, drawn.token), (own.said >= self.most).astype(jnp.int32)

    def joined(self, book: books.Book, thread: Int[Array, ""]) -> books.Book:
        said = jnp.sum(jnp.where(books.awaited(book, thread), book.threads.own.said, 0))
        return super().joined(book.replace(shared={"total": said}), thread)


@pytest.fixture(scope="module")
def model() -> transformer.Model:
    model = transformer.init(CONFIG, jax.random.key(1))
    return dataclasses.replace(model, params=jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, model.params))


@pytest.fixture(scope="module")
def decoded(model) -> list[record.Transcript]:
    engine = Engine(model, Careful(count=3, end=-1), SIZES)
    problems = [Problem(i, np.array([3, 5, 1 + i]), temperature=1.0, max_tokens=20) for i in range(5)]
    found = sorted(engine.decode(problems), key=lambda t: t.problem)
    assert engine.traces == 1
    return found


def test_what_a_rule_rewrites_is_what_the_thread_goes_on_with(model, decoded):
    """Each draw is as likely as it says after a context in which the banned words never stood."""
    params, rewritten = jax.tree.map(np.asarray, model.params), 0
    for found in decoded:
        log = found.log
        for thread in (1, 2, 3):
            context = [(int(token), place) for place, token in enumerate([3, 5, 1 + found.problem])]
            mine = np.flatnonzero(log.sampled & (log.thread == thread))
            assert len(mine) == 6 and found.threads[thread].stop == Stop.END
            for entry in mine:
                logits = reference_model.all_logits(params, CONFIG, *np.array(context).T)[-1].astype(np.float64)
                drawn = log.drawn[entry]
                assert log.logprob[entry] == pytest.approx(logits[drawn] - np.logaddexp.reduce(logits), abs=1e-4)
                banned = drawn in BANNED
                assert log.token[entry] == (INSTEAD if banned else drawn)
                assert log.source[entry] == (Source.REWRITTEN if banned else Source.SAMPLED)
                rewritten += banned
                context.append((int(log.token[entry]), len(context)))
    assert rewritten > 20, "the cases are worth it"


def test_state_is_recorded_by_name_and_kept_on_disk(decoded, tmp_path):
    record.write(tmp_path / "done.jsonl", decoded, text=str)
    again = [found for found, _ in record.read(tmp_path / "done.jsonl")]
    for found in (*decoded, *again):
        np.testing.assert_array_equal(found.own["said"], [0, 6, 6, 6])
        sums = [np.nansum(found.log.logprob[found.log.thread == i]) for i in range(4)]
        np.testing.assert_allclose(found.own["logprob"], sums, atol=1e-4)
        assert found.shared["total"] == 18
    for found, before in zip(again, decoded, strict=True):
        np.testing.assert_array_equal(found.log.drawn, before.log.drawn)


def test_training_gives_what_was_drawn_and_does_not_learn_what_was_rewritten(model, decoded):
    rows, origin, _ = pack(decoded, length=128, threads=16)
    token, position, owner, clock, sees = map(
        jnp.asarray, (rows.token, rows.position, rows.owner, rows.clock, rows.sees)
    )
    attend = packed_attend(owner, clock, sees)
    x, _ = transformer.hidden(model.graph, model.params, token, position, attend, (None,) * CONFIG.layers)
    logprobs = jax.nn.log_softmax(transformer.logits(model.graph, model.params, x))
    labelled = np.argwhere(rows.label >= 0)
    assert len(labelled) == 5 * 18
    for row, place in labelled:
        log = decoded[origin.transcript[row, place]].log
        entry = origin.label_entry[row, place]
        assert rows.label[row, place] == log.drawn[entry]
        assert rows.weight[row, place] == (log.source[entry] == Source.SAMPLED)
        assert logprobs[row, place, rows.label[row, place]] == pytest.approx(log.logprob[entry], abs=1e-4)


def test_logs_without_what_was_drawn_are_read_as_before(decoded, tmp_path):
    """Files of earlier versions."""
    record.write(tmp_path / "old.jsonl", decoded, text=str)
    with np.load(tmp_path / "old.npz") as archive:
        arrays = {name: archive[name] for name in archive.files if name != "drawn" and not name.startswith("own")}
    np.savez(tmp_path / "old.npz", **arrays)
    for found, _ in record.read(tmp_path / "old.jsonl"):
        np.testing.assert_array_equal(found.log.drawn, np.where(found.log.sampled, found.log.token, -1))
        assert not found.own


@dataclasses.dataclass(frozen=True)
class Pause(Samples):
    """Samples of which each ends at the second of its pauses, or at the end."""

    pause: int = 9

    def own_state(self) -> Array:
        return jnp.int32(0)

    def observe(self, shared: Any, own: Array, drawn: Any) -> tuple[Array, Array, Array]:
        own = own + (drawn.token == self.pause)
        return own, drawn.token, ((drawn.token == self.end) | (own == 2)).astype(jnp.int32)


def pausing(world: oracle.World, root: oracle.Thread, prompt: Sequence[int], protocol: Pause) -> oracle.Program:
    """The same in plain Python."""

    def child(thread: oracle.Thread) -> oracle.Program:
        yield from thread.feed_tokens(prompt[-1:])
        pauses = 0
        while thread.stop is None:
            entry = world.sample(thread)
            pauses += entry.token == protocol.pause
            if entry.token == protocol.end or pauses == 2:
                thread.stop = Stop.END
            elif world.spent(thread):
                thread.stop = Stop.LENGTH
            else:
                yield []
                thread.feed(entry)

    yield from root.feed_tokens(prompt[:-1])
    children = [root.open() for _ in range(protocol.count)]
    for thread in children:
        thread.seen, thread.next_position, thread.floor = [root, thread], len(prompt) - 1, root.clock
        world.start(thread, child(thread))
    yield from root.await_children(children)
    root.stop = Stop.END


def test_the_test_of_a_method_brings_its_interpreter(model):
    protocol = Pause(count=3, end=4)
    problems = [Problem(i, np.array([3, 5, 1 + i]), temperature=1.0, max_tokens=30) for i in range(4)]
    forward, ends = reference_model.transformer(model.params, CONFIG), set()
    for found in Engine(model, protocol, SIZES).decode(problems, seed=7):
        problem = problems[found.problem]
        again = functools.partial(oracle.run, forward, problem, protocol, 7, program=pausing)
        replaying.replay(found, lambda choose, again=again: again(choose=choose), replaying.F32)
        ends |= {int(found.generated(i)[-1]) for i in (1, 2, 3)}
    assert ends >= {protocol.end, protocol.pause}, "the cases are worth it"


@pytest.mark.parametrize("arguments", [(1,), (1, 2, 3)])
def test_arguments_are_as_many_as_the_protocol_needs(arguments):
    @dataclasses.dataclass(frozen=True)
    class Told(Samples):
        @property
        def needs(self):
            return dataclasses.replace(super().needs, arguments=2)

    engine = Engine(transformer.init(CONFIG, jax.random.key(1)), Told(count=2, end=1), SIZES)
    with pytest.raises(ValueError, match=f"problem 4: {len(arguments)} arguments; the protocol needs 2"):
        list(engine.decode([Problem(4, np.array([1]), arguments=arguments)]))


@dataclasses.dataclass(frozen=True)
class Lost(Samples):
    """Its root does nothing once the prompt is fed."""

    def drained(self, book: books.Book, thread: Int[Array, ""]) -> books.Book:
        return book


def test_decoding_ends_by_name_when_nothing_can_run(model):
    """It used to run for ever."""
    engine = Engine(model, Lost(count=2, end=1), SIZES)
    with pytest.raises(RuntimeError, match="nothing can run any more, but the problems 4, 7 have not ended: Lost left"):
        list(engine.decode([Problem(4, np.array([1, 2])), Problem(7, np.array([3]))]))


def test_steps_of_either_kind_are_counted_as_what_they_are(model):
    """A chunk of one token is fed in feed steps, too: they were counted as decode steps, and lowered the occupancy."""
    sizes = dataclasses.replace(SIZES, feed_chunk=1, feed_threshold=0, problems=1, rows=2)
    seen = []
    list(
        Engine(model, Samples(count=2, end=-1), sizes).decode(
            [Problem(0, np.arange(6), max_tokens=5)], watch=seen.append
        )
    )
    # The prompt but its last token; that one and four of the five sampled ones of each of two threads.
    assert (seen[-1].feed_steps, seen[-1].decode_steps, seen[-1].fed) == (5 + 2 * 5, 0, 5 + 2 * 5)
