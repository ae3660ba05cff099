"""Calls and returns, and siblings under an allowance: against an interpreter, against a client, and where all of it ends."""

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
import requesting
import scripting
from apr_jax.decode import Engine, Problem, Sizes, Stop
from apr_jax.evaluate import metrics
from apr_jax.methods import CallReturn, SpawnJoin
from apr_jax.methods.spawn_join import Budgets
from phrase_matcher import Table
from test_outlined import CONFIG

SEED = 3
BUDGETS = Budgets(threads=7, reserve=5, unit=8, threads_text="{number}t", tokens_text="{number}k", largest=9)
METHODS = {
    "calls": CallReturn(allowance=BUDGETS),
    "siblings": CallReturn(most=3, question=False, max_depth=3, allowance=BUDGETS),
}
DIGITS = [str(digit).encode() for digit in range(10)]
CODEC = Table([b"a", b"m", b"r", b"t", b"k", *DIGITS], METHODS["calls"].words)
SIZES = Sizes(problems=4, lanes=3, rows=6, feed_tiles=2, feed_chunk=8, feed_threshold=2, threads=12, slots=512, page_size=4,
              log=768, log_page_size=4, queue=128, prompt=8, outbox=8, attention_block=256)  # fmt: skip
ONE_ROW = dataclasses.replace(SIZES, problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0)
ROWS = {
    ("a", "k", "<go>"): {"a": 1.0, "<call>": 2.0, "<return>": 1.0, "</return>": -0.5},
    ("<call>",): {"m": 2.5, "</call>": -0.5, "<call>": -1.0},
    ("m",): {"m": 0.0, "</call>": 2.5, "<call>": 1.0, "</return>": -1.0},
    ("<return>",): {"r": 2.0, "</return>": 0.5, "<call>": 0.5},
    ("r",): {"r": 1.0, "</return>": 2.0, "<call>": -0.5, "<return>": -1.0},
}  # fmt: skip


@functools.cache
def model():
    config = dataclasses.replace(CONFIG, vocabulary=CODEC.size)
    return forking.biased_model(config, 0, forking.likely(CODEC, CODEC.size, ROWS), 0.8)


@functools.cache
def forward():
    return reference_model.transformer(model().params, model().config)


# ---- the interpreter


def told(budgets, threads, tokens):
    """What is said of an allowance."""
    units = [min(max(number, 0), budgets.largest) for number in (threads, tokens // budgets.unit)]
    return CODEC.encode(f"{units[0]}t{units[1] * budgets.unit}k")


def frame(world, thread, fed, method, question=(), threads=None, tokens=None):
    """The program of a frame that may start so many threads and sample so many tokens, with all below it."""
    budgets = method.allowance
    threads = budgets.threads if threads is None else threads
    tokens = world.problem.max_tokens if tokens is None else tokens
    fed = [*fed, *told(budgets, threads, tokens)] if not thread.path else fed
    question = question or fed[: len(world.problem.prompt)]
    yield from thread.feed_tokens(fed)
    opened, returns = [], None
    while True:
        entry, stop = world.sample(thread), None
        word = CODEC.table[entry.token].decode()
        left = tokens - thread.generated
        if word == "</return>":
            stop = Stop.MALFORMED if opened else Stop.END
        elif word == "<call>":
            if len(thread.path) >= method.max_depth or len(opened) == method.most:
                stop = Stop.MALFORMED
            else:
                opened.append((thread.open(), []))
        elif word == "</call>":
            if not opened or len(opened) > threads:
                stop = Stop.MALFORMED
            elif left - budgets.reserve < len(opened):
                stop = Stop.LENGTH
        else:
            if opened:
                opened[-1][1].append(entry.token)
            if word == "<return>" and thread.path and returns is None:
                returns = len(thread.entries)
        calls = word == "</call>" and stop is None
        if stop is None and not calls and left <= 0:
            stop = Stop.LENGTH
        if stop is not None:
            break
        yield []
        if not calls:
            thread.feed(entry)
            continue
        count = len(opened)
        share = (left - budgets.reserve) // count
        share = min(share, world.problem.child_max_tokens or world.problem.max_tokens)
        each, threads = (threads - count) // count, (threads - count) % count
        oracle._fork(thread, [child for child, _ in opened], "isolated")
        for child, message in opened:
            child.granted = share
            header = [
                *question * method.question,
                CODEC.id("<call>"),
                *message,
                *told(budgets, each, share),
                CODEC.id("<go>"),
            ]
            world.start(child, frame(world, child, header, method, question, each, share))
        yield from thread.await_children([child for child, _ in opened])
        threads += sum(child.threads for child, _ in opened)
        tokens -= sum(child.granted - child.tokens for child, _ in opened)
        message = [token for child, _ in opened for token in [CODEC.id("<result>"), *child.message]]
        opened = []
        if thread.generated >= tokens:
            stop = Stop.LENGTH
            break
        thread.feed(entry)
        yield []
        yield from thread.feed_tokens([*message, CODEC.id("<go>")])
    for child, _ in opened:
        child.stop = Stop.DROPPED
    if stop == Stop.END and returns is not None:
        thread.message = [entry.token for entry in thread.entries[returns:-1]]
    thread.threads, thread.tokens, thread.stop = threads, tokens - thread.generated, stop


# ---- equality


def case(rng, number):
    prompt = rng.integers(0, 2, size=rng.integers(1, 6))
    most = int(rng.integers(10, 60))
    return Problem(
        number, prompt.astype(np.int32), temperature=0.0 if rng.random() < 0.1 else float(rng.choice([0.5, 0.75, 1.0])),
        top_k=int(rng.choice([0, 0, 5])), top_p=float(rng.choice([1.0, 0.875])), max_tokens=most,
        child_max_tokens=most // 2 if number % 3 == 0 else 0,
    )  # fmt: skip


@functools.cache
def right(name, count=80):
    """Problems that fit the sizes, and what is right for them."""
    rng, found = np.random.default_rng(7), []
    while len(found) < count:
        problem = case(rng, len(found))
        expected = oracle.run(forward(), problem, METHODS[name], SEED, program=frame)
        if len(expected.threads) <= 12 and len(expected.log) <= 500:
            found.append((problem, expected))
    return tuple(zip(*found, strict=True))


@functools.cache
def decoded(name, sizes=SIZES):
    engine = Engine(model(), METHODS[name].protocol(CODEC), sizes, kernel=False)
    found = sorted(engine.decode(right(name)[0], seed=SEED), key=lambda each: each.problem)
    assert engine.traces == 1
    return found


def said(tokens):
    return b"".join(CODEC.token_bytes(token) for token in tokens).decode()


@pytest.mark.parametrize(("name", "sizes"), [("calls", SIZES), ("siblings", ONE_ROW)])
def test_f64_equals_the_oracle(name, sizes):
    events = collections.Counter()
    for found, expected in zip(decoded(name, sizes), right(name)[1], strict=True):
        oracle.compare(found, expected)
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        paths = [thread.path for thread in found.threads]
        events.update(f"{'frame' if thread.path else 'root'} {thread.stop.name}" for thread in found.threads)
        events[f"depth {max(map(len, paths))}"] += 1
        events["several"] += (1,) in paths
        started = sum(thread.stop != Stop.DROPPED for thread in found.threads) - 1
        events["threads used up"] += started == BUDGETS.threads
        assert started <= BUDGETS.threads, "no more threads than allowed"
        assert found.log.sampled.sum() <= right(name)[0][found.problem].max_tokens, "nor tokens"
    print(name, dict(events))
    assert events["root END"] > 20 and events["frame END"] > 30 and events["depth 3"] > 3, events
    assert events["frame LENGTH"] > 3 and events["frame MALFORMED"] + events["root MALFORMED"] > 3, events


# ---- the client


@dataclasses.dataclass
class Frame:
    """What is on the stack: a text, and what is left of its allowance. `result`: where its result begins, once it has."""

    line: requesting.Line
    text: str
    path: tuple
    threads: int
    tokens: int
    result: int = 0

    def __post_init__(self):
        self.granted = self.tokens


def returned(server, problem):
    """The texts of all frames by path: the one on top of the stack is continued, one full forward for each token."""
    question, texts = said(problem.prompt), {}
    allowed = BUDGETS.threads, problem.max_tokens
    stack = [Frame(server.root(), question + said(told(BUDGETS, *allowed)), (), *allowed)]
    while stack:
        top = stack[-1]
        word = CODEC.table[server.next(top.line, CODEC.encode(top.text))].decode()
        top.text, top.tokens = top.text + word, top.tokens - 1
        if word == "<return>" and top.path and not top.result:
            top.result = len(top.text)
        if call := re.search(r"<call>([^<]*)</call>$", top.text):
            top.threads -= 1
            allowed = top.threads, min(top.tokens - BUDGETS.reserve, problem.child_max_tokens or problem.max_tokens)
            opening = f"{question}<call>{call[1]}{said(told(BUDGETS, *allowed))}<go>"
            stack.append(Frame(top.line.child(), opening, (*top.path, len(top.line.children) - 1), *allowed))
        if word == "</return>":
            texts[stack.pop().path] = top.text
            if stack:
                result = top.text[top.result : -len(word)] if top.result else ""
                stack[-1].text += f"<result>{result}<go>"
                stack[-1].threads = top.threads
                stack[-1].tokens -= top.granted - top.tokens
    return texts


def test_the_client_says_the_same():
    params, config = jax.tree.map(np.asarray, model().params), model().config
    deep = 0
    for problem, found in zip(right("calls")[0], decoded("calls"), strict=True):
        if all(thread.stop == Stop.END for thread in found.threads):
            texts = returned(requesting.Server(params, config, problem, SEED), problem)
            assert {thread.path: said(found.tokens(i)) for i, thread in enumerate(found.threads)} == texts
            deep += any(len(path) > 1 for path in texts)
    assert deep > 3, deep


# ---- where all ends


CASES = {  # what the root says, what each frame says, tokens, how the root ends, how its frames end
    "good": ("a<call>m</call>a</return>", "a<return>r</return>", 40, "END", ["END"]),
    "no bottom, and threads for it": ("<call>m</call>", "<call>m</call>", 60, "THREADS_FULL", None),
    "no bottom, and tokens for some": (
        "<call>m</call></return>", "<call>m</call></return>", 13, "END", ["END", "END", "LENGTH", "DROPPED"],
    ),
    "two calls at once": ("<call>m<call>", "", 40, "MALFORMED", ["DROPPED"]),
    "a call that is not written": ("a</call>", "", 40, "MALFORMED", []),
    "an end inside a call": ("<call>m</return>", "", 40, "MALFORMED", ["DROPPED"]),
    "an empty call": ("<call></call></return>", "<return>r</return>", 40, "END", ["END"]),
    "a frame without result": ("<call>m</call></return>", "a</return>", 40, "END", ["END"]),
    "a frame that breaks off in a call": ("<call>m</call></return>", "<call>m</return>", 40, "END", ["MALFORMED", "DROPPED"]),
    "a frame that never ends": ("<call>m</call>a", "<return>r", 40, "LENGTH", ["LENGTH"]),
    "the budget, in a call": (f"{38 * 'a'}<call>m", "", 40, "LENGTH", ["DROPPED"]),
    "the budget, with a call": (f"{37 * 'a'}<call>m</call>", "a", 40, "LENGTH", ["DROPPED"]),
}  # fmt: skip
ENDLESS = CallReturn(allowance=dataclasses.replace(BUDGETS, threads=0, reserve=1))


@functools.cache
def broken():
    texts = [{"root": root, "frame": frame} for root, frame, *_ in CASES.values()]
    place = lambda own: (own.asked >= 0).astype(int)
    protocol = scripting.scripted(ENDLESS.protocol(CODEC), CODEC, texts, ("root", "frame"), place)
    problems = [Problem(i, np.array([0, 1]), max_tokens=each[2]) for i, each in enumerate(CASES.values())]
    problems += [dataclasses.replace(problem, sample=1) for problem in problems]  # slots of those before are used again
    found = Engine(model(), protocol, SIZES, kernel=False).decode(problems)
    return {(each.problem, each.sample): each for each in found}


@pytest.mark.parametrize("name", CASES)
def test_every_breach_ends_by_a_name(name):
    *_, stop, frames = CASES[name]
    first, again = (broken()[list(CASES).index(name), sample] for sample in (0, 1))
    text = [f"{thread.path} {thread.stop.name} {said(first.tokens(i))}" for i, thread in enumerate(first.threads)]
    assert first.stop.name == stop, text
    if frames is not None:
        assert [thread.stop.name for thread in first.threads if thread.path] == frames, text
        assert first.threads == again.threads and first.log.token.tolist() == again.log.token.tolist()
    if name == "no bottom, and threads for it":
        assert max(len(thread.path) for thread in first.threads) == SIZES.threads - 1, "each frame is a thread"
        assert first.peak_context < 40, "and sees itself only"


def test_configurations_are_read_and_checked():
    made = METHODS["calls"].protocol(CODEC)
    assert (made.most, made.question, made.max_depth) == (1, True, 2**31 - 1)
    assert made.allowance.phrases.names == ("threads", "tokens") and made.allowance.phrases.lengths[1][:3] == (2, 2, 3)
    assert CallReturn().protocol(CODEC).allowance is None and CallReturn().name == "call_return"
    for make, message in (
        (lambda: CallReturn(most=-1), "call_return.most is -1"),
        (lambda: SpawnJoin(question=True, context="shared"), "spawn_join.question is True; children see the prompt"),
        (lambda: Budgets(reserve=-1), "budgets.reserve is -1"),
        (lambda: Budgets(threads_text="many"), "threads_text is 'many'; it must hold {number}"),
        (lambda: dataclasses.replace(made, most=-1), "spawn_join.most is -1"),
        (lambda: dataclasses.replace(made.allowance, unit=0), "allowance.unit is 0; at least 1 is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
