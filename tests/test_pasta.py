"""PASTA against the interpreter of threads, a client with mask and positions written out, and every breach of its format."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

import forking
import oracle
import reference_model
import replaying
import requesting
import scripting
from apr_jax.decode import Engine, Problem, Sizes, Stop
from apr_jax.decode.recogniser import Phrase
from apr_jax.evaluate import metrics
from apr_jax.methods import Pasta
from apr_jax.methods.pasta import TAGS
from apr_jax.model.transformer import Model
from line_oracle import Line, Thread
from phrase_matcher import Plain, Table
from test_native import need_kernel
from test_outlined import CONFIG

SEED = 3
METHOD = Pasta(unit=2, largest=3, end="<end>")
PLAIN = [b"a", b"e", b"b", b' tokens="', b"1", b"2", b"3", b"4", b'"', b' topic="t"']
PIECES = [b"<pro", b"mise", b"<sync", b"<as", b"</as", b"ync>", b"/>"]
CODECS = {"ids": Table(PLAIN, (*METHOD.words, "<end>")), "spelt": Table([*PLAIN, *PIECES], ["<end>"])}
PHRASES = (*(Phrase(name, text) for name, text in TAGS.items()), Phrase("tokens", 'tokens="', '"'))
SIZES = Sizes(problems=4, lanes=3, rows=6, feed_tiles=2, feed_chunk=8, feed_threshold=2, threads=24, slots=768, page_size=4,
              log=768, log_page_size=4, queue=128, prompt=8, outbox=8, attention_block=256)  # fmt: skip
ONE_ROW = dataclasses.replace(SIZES, problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0)
LENGTH = ' tokens="'
ROWS = {  # the writer writes a and b, promises are kept with e
    ("a", "b"): {"a": 1.0, "b": 0.5, "<promise": 2.0, "<sync/>": 0.0, "<end>": -0.5, "e": -2.0},
    ("<promise",): {LENGTH: 2.5, ' topic="t"': 0.5, "/>": -1.5, "<promise": -2.0},
    (' topic="t"',): {LENGTH: 2.5, "/>": -1.0, "<sync/>": -2.0},
    (LENGTH,): {"1": 1.0, "2": 1.0, "3": 1.0, "4": -1.5, '"': -1.5},
    ("1", "2", "3", "4"): {'"': 3.0, "/>": -1.0},
    ('"',): {"/>": 3.0, "a": -1.0},
    ("/>",): {"a": 1.0, "b": 1.0, "<promise": 0.5, "<sync/>": 0.5, "<end>": 0.0},
    ("<sync/>",): {"a": 1.0, "b": 1.0, "<promise": 0.5, "<end>": 0.5, "<sync/>": -1.0},
    ("<async>",): {"e": 2.0, "</async>": 0.0},
    ("e",): {"e": 2.5, "</async>": 1.5, "<promise": -1.5, "<end>": 0.5},
}


@functools.cache
def protocol(name):
    return METHOD.protocol(CODECS[name])


@functools.cache
def model(name, dtype="float64"):
    codec, head = CODECS[name], 8 if dtype == "float64" else 16
    config = dataclasses.replace(CONFIG, vocabulary=codec.size, dtype=dtype, param_dtype=dtype, head_dim=head)
    table = forking.likely(codec, codec.size, ROWS)
    for text in TAGS.values():  # what begins a tag goes on with it
        ids = codec.encode(text)
        for this, after in zip(ids, ids[1:], strict=False):
            table[this, after] = 3.0
    wide = forking.biased_model(config, 0, table, 0.8)
    return Model(wide.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), wide.params))


@functools.cache
def forward(name, dtype="float64"):
    return reference_model.transformer(model(name, dtype).params, model(name, dtype).config)


# ---- the interpreter


def writing(name):
    codec = CODECS[name]

    def program(world, thread, prompt, protocol):
        thread.__class__ = Thread
        line = Line(thread, None, False)
        yield from line.feed(prompt)
        plain, length, tag, promised = Plain(codec, PHRASES), None, False, None
        while True:
            token, stop = world.sample(line.thread).token, None
            if promised is not None:
                promise(world, line, codec, promised)
                promised = None
            event = plain.step(token)
            if token == codec.id("<end>"):
                stop = Stop.MALFORMED if tag else Stop.END
            elif event == "promise":
                stop, tag, length = Stop.MALFORMED if tag else None, True, None
            elif event == "tokens captured" and tag:
                digits = re.fullmatch(r"\s*(\d{1,9})\s*", plain.text.decode())
                length = int(digits[1]) if digits else None
            elif event == "close" and tag:
                stop = None if length is not None and length <= METHOD.largest else Stop.MALFORMED
                promised, tag = length, False
            elif event == "sync" and tag:
                stop = Stop.MALFORMED
            elif event == "sync" and line.outstanding:
                left = list(line.outstanding)
                yield [kept.thread for kept in left]
                line.go_on_after()
                for kept in line.join(left):
                    line.thread.stitch(kept.thread)
            stop = Stop.LENGTH if stop is None and line.thread.generated >= world.problem.max_tokens else stop
            if stop is not None:
                break
            yield from line.feed_handed()
            yield from line.feed_unfed()
        left = list(line.outstanding)
        yield [kept.thread for kept in left]
        line.join(left)
        line.thread.stop = stop

    return program


def promise(world, line, codec, length):
    """Start a promise of so many units; the writer goes on behind its room."""
    thread = line.thread
    child = thread.open()
    child.seen, child.next_position = [*thread.seen, child], thread.next_position
    child.floor, child.count = thread.clock, thread.count
    kept = Line(child, line, True, holds=True)
    line.outstanding.append(kept)
    world.start(child, keep(world, kept, codec))
    line.go_on_after()
    line.thread.next_position += METHOD.unit * length


def keep(world, line, codec):
    yield from line.feed(codec.encode("<async>"))
    plain = Plain(codec, PHRASES)
    while True:
        token = world.sample(line.thread).token
        event = plain.step(token)
        if event == "async_end":
            yield from line.feed_unfed()
            line.thread.stop = Stop.END
            return
        if token == codec.id("<end>") or world.spent(line.thread):
            yield from line.feed(codec.encode("</async>"))
            line.thread.stop = Stop.MALFORMED if token == codec.id("<end>") else Stop.LENGTH
            return
        yield from line.feed_unfed()


# ---- equality


def case(rng, number):
    prompt = rng.choice([0, 2], size=rng.integers(1, 6))
    most = int(rng.integers(10, 60))
    return Problem(
        number, prompt.astype(np.int32), temperature=0.0 if rng.random() < 0.1 else float(rng.choice([0.5, 0.75, 1.0])),
        top_k=int(rng.choice([0, 0, 5])), top_p=float(rng.choice([1.0, 0.875])), max_tokens=most,
        child_max_tokens=5 if number % 3 == 0 else 0,
    )  # fmt: skip


@functools.cache
def right(name, count=80):
    """Problems that fit the sizes, and what is right for them."""
    rng, found = np.random.default_rng(7), []
    while len(found) < count:
        problem = case(rng, len(found))
        expected = oracle.run(forward(name), problem, None, SEED, program=writing(name))
        if len(expected.threads) <= 24 and len(expected.log) <= 400:
            found.append((problem, expected))
    return tuple(zip(*found, strict=True))


@functools.cache
def decoded(name, sizes=SIZES, dtype="float64", kernel=False):
    engine = Engine(model(name, dtype), protocol(name), sizes, kernel=kernel)
    found = sorted(engine.decode(right(name)[0], seed=SEED), key=lambda each: each.problem)
    assert engine.traces == 1
    return found


def text_of(codec, tokens):
    return b"".join(codec.token_bytes(token) for token in tokens).decode()


@pytest.mark.parametrize(("name", "sizes"), [("ids", SIZES), ("spelt", ONE_ROW)])
def test_f64_equals_the_oracle(name, sizes):
    events = collections.Counter()
    for found, expected in zip(decoded(name, sizes), right(name)[1], strict=True):
        oracle.compare(found, expected)
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        kept = [i for i, thread in enumerate(found.threads) if thread.path]
        events["several"] += len(kept) > 1
        root = [i for i, thread in enumerate(found.threads) if not thread.path]
        events["seen"] += found.sees[root[-1], kept].sum()
        events["renewed before anything was fed"] += any(not len(found.tokens(i)) for i in root)
        events.update(f"{'promise' if thread.path else 'writer'} {thread.stop.name}" for thread in found.threads)
    print(name, dict(events))
    assert events["several"] > 15, events
    if name == "spelt":
        return
    assert events["seen"] > 10 and events["renewed before anything was fed"] > 1, events
    assert events["writer END"] > 10 and events["writer MALFORMED"] > 5 and events["writer LENGTH"] > 3, events
    assert all(events[f"promise {stop}"] > 3 for stop in ("END", "LENGTH", "MALFORMED")), events


def test_cpu_kernels_follow_from_their_own_tokens():
    need_kernel()
    replayed = 0
    for found in decoded("ids", SIZES, "float32", True):
        if found.stop in (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL):
            continue  # in f32 it says something else than the problem that fits
        replayed += len(found.threads) > 1
        problem = right("ids")[0][found.problem]
        run = lambda choose, problem=problem: oracle.run(
            forward("ids", "float32"), problem, None, SEED, program=writing("ids"), choose=choose
        )
        replaying.replay(found, run, replaying.F32)
    assert replayed > 20


# ---- the client


class Client:
    """One sequence of tokens with positions, of the writer (`None`) and of promises by number, under the mask of the paper."""

    def __init__(self, server, problem):
        self.server, self.problem, self.codec = server, problem, CODECS["ids"]
        self.tokens, self.positions, self.owner = [], [], []
        self.made, self.synced, self.texts = {}, {}, {}

    def add(self, token, position, owner=None):
        self.tokens.append(token)
        self.positions.append(position)
        self.owner.append(owner)

    def mask(self):
        """Row i sees j: of the writer all before, and promises from their `<sync/>` on; of a promise what stands before it."""
        count, owner = len(self.tokens), self.owner
        sees = np.zeros((count, count), bool)
        for i in range(count):
            for j in range(count):
                if owner[i] == owner[j]:
                    sees[i, j] = j <= i
                elif owner[i] is None:
                    sees[i, j] = self.synced.get(owner[j], count) <= i
                elif owner[j] is None:
                    sees[i, j] = j < self.made[owner[i]]
                else:
                    sees[i, j] = self.synced.get(owner[j], count) < self.made[owner[i]]
        return sees

    def next(self, line, owner=None):
        """The next token of the writer or of a promise: the row of its last one is put last."""
        last = max(i for i, one in enumerate(self.owner) if one == owner)
        order = [*(i for i in range(len(self.tokens)) if i != last), last]
        pick = lambda values: [values[i] for i in order]
        return self.server.next(line, pick(self.tokens), pick(self.positions), self.mask()[np.ix_(order, order)])

    def keep(self, line, number, position):
        """Write a promise; returns the position after it."""
        told = self.codec.encode("<async>")
        self.add(told[0], position, number)
        most = self.problem.child_max_tokens or self.problem.max_tokens
        while told[-1] != self.codec.id("</async>"):
            position += 1
            token = self.next(line, number)
            broken = token == self.codec.id("<end>") or (
                len(line.tokens) == most and token != self.codec.id("</async>")
            )
            told += [token, self.codec.id("</async>")] if broken else [token]
            self.add(told[-1], position, number)
        self.texts[number] = told
        return position + 1

    def run(self):
        line, text, furthest = self.server.root(), "", 0
        for position, token in enumerate(self.problem.prompt.tolist()):
            self.add(token, position)
        position = len(self.tokens)
        while len(line.tokens) < self.problem.max_tokens:
            token = self.next(line)
            text += text_of(self.codec, [token])
            if promised := re.search(r'<promise[^/]*tokens="(\d)"[^/]*/>$', text[: -len(text_of(self.codec, [token]))]):
                number = len(self.made)
                self.made[number] = len(self.tokens)
                furthest = max(furthest, self.keep(line.child(), number, position))
                position += METHOD.unit * int(promised[1])
            if token == self.codec.id("<end>"):
                break
            waits = token == self.codec.id("<sync/>") and self.made.keys() - self.synced.keys()
            if waits and len(line.tokens) < self.problem.max_tokens:
                self.synced |= dict.fromkeys(waits, len(self.tokens))
                position = max(position, furthest)
            self.add(token, position)
            position += 1
        self.texts[None] = line.tokens
        return self.texts


def test_the_client_says_the_same():
    params, config = jax.tree.map(np.asarray, model("ids").params), model("ids").config
    synced = several = 0
    for problem, found in zip(right("ids")[0][:24], decoded("ids"), strict=False):
        root = [i for i, thread in enumerate(found.threads) if not thread.path]
        if found.threads[root[-1]].stop == Stop.MALFORMED:
            continue
        client = Client(requesting.Server(params, config, problem, SEED), problem)
        told = {thread.path[0]: found.tokens(i).tolist() for i, thread in enumerate(found.threads) if thread.path}
        assert {**told, None: [t for i in root for t in found.generated(i).tolist()]} == client.run()
        log = found.log
        mine = np.isin(log.thread, root) & (log.clock >= 0)
        order = np.argsort(log.clock[mine])
        dense = [i for i, owner in enumerate(client.owner) if owner is None]
        assert log.position[mine][order].tolist() == [client.positions[i] for i in dense][: mine.sum()]
        synced += len(client.synced)
        several += len(client.made) > 1
    assert synced > 5 and several > 5, (synced, several)


# ---- breaches


TOPIC = ' topic="t"'


def made(length=1, more=""):
    return f'<promise{more} tokens="{length}"/>'


CASES = {
    "good": ({"": f"a{made()}b<sync/>a<end>", "1": "e</async>"}, "END", ["END"]),
    "two at once": ({"": f"a{made(2)}{made(3)}b<sync/>a<end>", "1": "e</async>", "2": "ee</async>"}, "END", ["END"] * 2),
    "a topic, and no wait": ({"": f"{made(1, TOPIC)}<end>", "1": "</async>"}, "END", ["END"]),
    "waits at once": ({"": f"a{made()}<sync/>a<end>", "1": "e</async>"}, "END", ["END"]),
    "ends at once": ({"": f"a{made()}<end>", "1": "e</async>"}, "END", ["END"]),
    "nothing to wait for": ({"": "a<sync/>b<sync/><end>"}, "END", []),
    "no length": ({"": "a<promise/>"}, "MALFORMED", []),
    "no number": ({"": f"a{made('a')}"}, "MALFORMED", []),
    "too long": ({"": f"a{made(4)}"}, "MALFORMED", []),
    "an open quotation": ({"": 'a<promise tokens="1/>'}, "MALFORMED", []),
    "a promise inside a tag": ({"": f"a<promise{made()}"}, "MALFORMED", []),
    "a wait inside a tag": ({"": "a<promise<sync/>"}, "MALFORMED", []),
    "an end inside a tag": ({"": "a<promise<end>"}, "MALFORMED", []),
    "an end inside the next tag": ({"": f"a{made()}<promise<end>", "1": "</async>"}, "MALFORMED", ["END"]),
    "ends of nothing": ({"": "a/>b</async>a<end>"}, "END", []),
    "tags inside a promise": ({"": f"a{made()}b<sync/><end>", "1": f"{made()}<sync/>e</async>"}, "END", ["END"]),
    "an end inside a promise": ({"": f"a{made()}b<sync/>a<end>", "1": "e<end>"}, "END", ["MALFORMED"]),
    "a promise that never ends": ({"": f"a{made()}b<sync/>a<end>", "1": "e"}, "END", ["LENGTH"]),
    "the budget, plain": ({"": "a"}, "LENGTH", []),
    "the budget, with the tag": ({"": f"{25 * 'a'}{made()}", "1": "</async>"}, "LENGTH", []),
    "the budget, with the token after": ({"": f"{24 * 'a'}{made()}a", "1": "</async>"}, "LENGTH", ["END"]),
    "the budget, with the wait": ({"": f"{23 * 'a'}{made()}a<sync/>", "1": "</async>"}, "LENGTH", ["END"]),
    "more than there is room for": ({"": 4 * f"{made()}a", "1": "</async>"}, "THREADS_FULL", None),
}  # fmt: skip


@functools.cache
def broken():
    texts = [texts for texts, *_ in CASES.values()]
    protocol_ = scripting.scripted(protocol("ids"), CODECS["ids"], texts, ("", "1", "2"))
    problems = [Problem(i, np.array([0, 2]), max_tokens=30, child_max_tokens=9) for i in range(len(CASES))]
    problems += [dataclasses.replace(problem, sample=1) for problem in problems]  # slots of those before are used again
    found = Engine(model("ids"), protocol_, dataclasses.replace(SIZES, threads=7), kernel=False).decode(problems)
    return {(each.problem, each.sample): each for each in found}


@pytest.mark.parametrize("name", CASES)
def test_every_breach_ends_by_a_name(name):
    _, stop, promises = CASES[name]
    first, again = (broken()[list(CASES).index(name), sample] for sample in (0, 1))
    codec = CODECS["ids"]
    text = [
        f"{thread.path} {thread.stop.name} {text_of(codec, first.tokens(i))}" for i, thread in enumerate(first.threads)
    ]
    assert first.stop.name == stop, text
    if promises is not None:
        assert [thread.stop.name for thread in first.threads if thread.path] == promises, text
        assert first.threads == again.threads and first.log.token.tolist() == again.log.token.tolist()


def test_what_is_said_has_promises_in_their_places():
    found, codec = broken()[list(CASES).index("two at once"), 0], CODECS["ids"]
    assert METHOD.voices(found) == [0]
    assert text_of(codec, METHOD.said(found, 0, codec)) == f"a{made(2)}e</async>{made(3)}ee</async>b<sync/>a<end>"
    found = broken()[list(CASES).index("a promise that never ends"), 0]
    kept = [i for i, thread in enumerate(found.threads) if thread.path][0]
    assert found.log.sampled[found.log.thread == kept].tolist() == [False, *[True] * 9, False]
    assert text_of(codec, found.tokens(kept)).endswith("a</async>")


def test_choices_that_make_no_sense_are_refused():
    right_one = protocol("ids")
    lacking = dataclasses.replace(right_one.phrases, names=("async", "b"))
    for make, message in (
        (lambda: Pasta(unit=0), "pasta.unit is 0"),
        (lambda: dataclasses.replace(right_one, largest=0), "promises.largest is 0; at least 1 is needed"),
        (lambda: dataclasses.replace(right_one, phrases=lacking), "promises.phrases lack async_end"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
