"""AsyncThink against the interpreter of threads, against a plain client of requests, and every breach of its format."""

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
from apr_jax.evaluate import metrics
from apr_jax.methods import AsyncThink
from apr_jax.model.transformer import Model
from phrase_matcher import Table
from test_native import need_kernel
from test_outlined import CONFIG

SEED = 3
METHOD = AsyncThink(numbers=3, agents=3, max_depth=2, worker="?{query}:", end="<end>")
CODEC = Table([b"a", b"b", b"c", b"1", b"2", b"3", b"w", b"r", b"?", b":"], (*METHOD.words, "<end>"))
TAG = re.compile(r"<(/?)(FORK|JOIN|RETURN)-?(\d*)>")
SIZES = Sizes(problems=4, lanes=3, rows=6, feed_tiles=2, feed_chunk=8, feed_threshold=2, threads=24, slots=768, page_size=4,
              log=768, log_page_size=4, queue=128, prompt=8, outbox=8, attention_block=256)  # fmt: skip
ONE_ROW = dataclasses.replace(SIZES, problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0)
# Sub-queries are of 1, 2 or 3, what stands between forks of a, b or c, workers write w, returns are of r.
ROWS = {
    ("a",): {"a": 1.5, "<FORK-1>": 2.5, "<FORK-3>": 0.0, "<end>": -0.5},
    ("</JOIN-1>", "</JOIN-2>", "</JOIN-3>"): {"a": -0.5, "b": 1.0, "<FORK-3>": 1.5, "<JOIN-2>": 1.0, "<end>": 1.0},
    ("<FORK-1>",): {"1": 3.0, "</FORK-1>": -1.5},
    ("<FORK-2>",): {"2": 3.0, "<end>": -1.5},
    ("<FORK-3>",): {"3": 3.0, "</FORK-1>": -1.5},
    ("1",): {"1": -0.5, "</FORK-1>": 3.0, "<end>": -1.5},
    ("2",): {"2": -0.5, "</FORK-2>": 3.0, "<JOIN-1>": -1.5},
    ("3",): {"3": -0.5, "</FORK-3>": 3.0, "</FORK-2>": -1.5},
    ("</FORK-1>", "b"): {"b": 2.5, "<FORK-2>": 2.5, "<JOIN-1>": 2.0, "<end>": -1.0, "<FORK-3>": 0.0},
    ("</FORK-2>", "</FORK-3>", "c"): {"c": 2.5, "<JOIN-2>": 2.5, "<JOIN-1>": 1.0, "<FORK-3>": -0.5, "<end>": 0.0},
    (":",): {"w": 2.0, "<FORK-1>": 1.5, "<RETURN>": 0.5},
    ("w",): {"w": 2.0, "<RETURN>": 2.0, "<FORK-1>": 0.0, "<end>": -1.0},
    ("<RETURN>",): {"r": 2.5, "</RETURN>": 0.5, "<end>": -1.0},
    ("r",): {"r": 1.0, "</RETURN>": 2.5, "<RETURN>": -1.0, "<end>": -1.5},
}  # fmt: skip


@functools.cache
def model(dtype="float64"):
    size, head = CODEC.size, 8 if dtype == "float64" else 16
    config = dataclasses.replace(CONFIG, vocabulary=size, dtype=dtype, param_dtype=dtype, head_dim=head)
    wide = forking.biased_model(config, 0, forking.likely(CODEC, size, ROWS), 0.8)
    return Model(wide.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), wide.params))


@functools.cache
def forward(dtype="float64"):
    return reference_model.transformer(model(dtype).params, model(dtype).config)


# ---- the interpreter


def take(thread, children):
    """Go on after children that have ended."""
    thread.floor = max([thread.floor, *(max(child.clock, child.floor) for child in children)])
    thread.count = max([thread.count, *(child.count for child in children)])
    for child in children:
        child.joined = max(thread.clock, thread.floor)


def organize(world, thread, fed, method):
    """The program of an organizer or a worker, from the words that it says."""
    thread.joined = -1
    yield from thread.feed_tokens(fed)
    depth, begun, text, workers, joined = len(thread.path), None, [], {}, set()
    while True:
        entry = world.sample(thread)
        word, stop, joins = CODEC.table[entry.token].decode(), None, None
        tag = TAG.fullmatch(word)
        if tag and not (depth if tag[2] == "RETURN" else depth < method.max_depth and tag[1] + tag[2] != "/JOIN"):
            tag = None  # a word of the other role
        if word == "<end>":
            stop = Stop.MALFORMED if begun or depth else Stop.END
        elif tag and tag[1]:
            stop = None if begun == tag.group(2, 3) and (text or tag[2] == "RETURN") else Stop.MALFORMED
        elif tag and tag[2] == "FORK":
            free = len(workers) - len(joined) < method.agents - 1
            stop = None if free and not begun and tag[3] not in workers else Stop.MALFORMED
        elif tag and tag[2] == "JOIN":
            joins = tag[3] if not begun and tag[3] in workers.keys() - joined else None
            stop = None if joins else Stop.MALFORMED
        elif tag:
            stop = Stop.MALFORMED if begun else None
        elif begun:
            text.append(entry.token)
        if tag and tag[1] and stop is None:
            begun = None
            if tag[2] == "RETURN":
                thread.message, stop = text, Stop.END
            else:
                workers[tag[3]] = child = thread.open()
                child.floor, child.count = thread.clock, thread.count
                world.start(child, organize(world, child, CODEC.encode(f"?{said(text)}:"), method))
        elif tag and joins is None:
            begun, text = tag.group(2, 3), []
        if joins is not None:
            yield [workers[joins]]
            take(thread, [workers[joins]])
            joined.add(joins)
        stop = Stop.LENGTH if stop is None and world.spent(thread) else stop
        if stop is not None:
            break
        yield []
        thread.feed(entry)
        if joins is not None:
            yield []
            yield from thread.feed_tokens([*workers[joins].message, CODEC.id(f"</JOIN-{joins}>")])
    left = [workers[number] for number in workers.keys() - joined]
    yield left
    take(thread, left)
    if left:  # it stands one clock later than all
        thread.floor = 1 + max(thread.clock, thread.floor)
    thread.stop = stop


def said(tokens):
    return b"".join(CODEC.token_bytes(token) for token in tokens).decode()


# ---- equality


def case(rng, number):
    prompt = np.append(rng.integers(0, 3, size=rng.integers(0, 6)), 0)
    most = int(rng.integers(10, 60))
    return Problem(
        number, prompt.astype(np.int32), temperature=0.0 if rng.random() < 0.1 else float(rng.choice([0.5, 0.75, 1.0])),
        top_k=int(rng.choice([0, 0, 5])), top_p=float(rng.choice([1.0, 0.875])), max_tokens=most,
        child_max_tokens=most // 2 if number % 3 == 0 else 0,
    )  # fmt: skip


@functools.cache
def right(count=80):
    """Problems that fit the sizes, and what is right for them."""
    rng, found = np.random.default_rng(7), []
    while len(found) < count:
        problem = case(rng, len(found))
        expected = oracle.run(forward(), problem, METHOD, SEED, program=organize)
        if len(expected.threads) <= 24 and len(expected.log) <= 500:
            found.append((problem, expected))
    return tuple(zip(*found, strict=True))


@functools.cache
def decoded(sizes, dtype="float64", kernel=False):
    engine = Engine(model(dtype), METHOD.protocol(CODEC), sizes, kernel=kernel)
    found = sorted(engine.decode(right()[0], seed=SEED), key=lambda each: each.problem)
    assert engine.traces == 1
    return found


def overlaps(found):
    """Threads that were fed a token between the start and the end of a worker that they forked."""
    log, count = found.log, 0
    clocks = [log.clock[(log.thread == i) & (log.clock >= 0)] for i in range(len(found.threads))]
    for i, thread in enumerate(found.threads):
        if thread.path and len(clocks[i]):
            above = clocks[thread.parent]
            count += bool(np.any((above > clocks[i].min()) & (above < clocks[i].max())))
    return count


@pytest.mark.parametrize("sizes", [SIZES, ONE_ROW], ids=["few rows", "one row"])
def test_f64_equals_the_oracle(sizes):
    events = collections.Counter()
    for found, expected in zip(decoded(sizes), right()[1], strict=True):
        oracle.compare(found, expected)
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        events.update(f"{'worker' if thread.path else 'root'} {thread.stop.name}" for thread in found.threads)
        events["beside"] += overlaps(found)
        events["nested"] += any(len(thread.path) > 1 for thread in found.threads)
        events["joins"] += sum(CODEC.table[token].startswith(b"</JOIN") for token in found.log.token)
    print(dict(events))
    assert events["beside"] > 30 and events["joins"] > 30 and events["nested"] > 5, events
    assert all(events[f"{who} {stop}"] > 1 for who in ("root", "worker") for stop in ("END", "MALFORMED", "LENGTH"))


def test_cpu_kernels_follow_from_their_own_tokens():
    need_kernel()
    replayed = 0
    for found in decoded(SIZES, "float32", True):
        if found.stop in (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL):
            continue  # in f32 it says something else than the problem that fits
        replayed += len(found.threads) > 1
        problem = right()[0][found.problem]
        run = lambda choose, problem=problem: oracle.run(
            forward("float32"), problem, METHOD, SEED, program=organize, choose=choose
        )
        replaying.replay(found, run, replaying.F32)
    assert replayed > 20


# ---- the client


@dataclasses.dataclass
class Client:
    """A client of texts: a worker's request is sent, and answered, where its sub-query ends."""

    server: requesting.Server
    problem: Problem
    texts: dict = dataclasses.field(default_factory=dict)

    def agent(self, line, prompt, path=()):
        """Sample until an end, with what is inserted; returns what it says between its `<RETURN>` tags, if it says that."""
        text, returns = prompt, {}
        most = (path and self.problem.child_max_tokens) or self.problem.max_tokens
        while len(line.tokens) < most:
            text += CODEC.table[self.server.next(line, CODEC.encode(text))].decode()
            if fork := re.search(r"<FORK-(\d)>([^<]+)</FORK-\1>$", text):
                child = (*path, len(line.children))
                returns[fork[1]] = self.agent(line.child(), f"?{fork[2]}:", child)
            if join := re.search(r"<JOIN-(\d)>$", text):
                text += f"{returns[join[1]]}</JOIN-{join[1]}>" if len(line.tokens) < most else ""
            done = re.search(r"<RETURN>([^<]*)</RETURN>$", text)
            if done or text.endswith("<end>"):
                break
        self.texts[path] = text
        return done[1] if done else ""


def test_the_client_says_the_same():
    params, config = jax.tree.map(np.asarray, model().params), model().config
    joins = several = 0
    for found in decoded(SIZES):
        if any(thread.stop == Stop.MALFORMED for thread in found.threads):
            continue
        problem = right()[0][found.problem]
        client = Client(requesting.Server(params, config, problem, SEED), problem)
        client.agent(client.server.root(), said(problem.prompt))
        assert {thread.path: said(found.tokens(i)) for i, thread in enumerate(found.threads)} == client.texts
        joins += client.texts[()].count("</JOIN")
        several += len(client.texts) > 2
    assert joins > 5 and several > 3, (joins, several)


# ---- breaches


GOOD = "w<RETURN>r</RETURN>"
CASES = {
    "good": ({"": "a<FORK-1>1</FORK-1>b<JOIN-1>a<end>", "1": GOOD}, "END", ["END"]),
    "two at once, joined in the other order": (
        {"": "<FORK-1>1</FORK-1><FORK-2>2</FORK-2>b<JOIN-2><JOIN-1>a<end>", "1": GOOD, "2": GOOD}, "END", ["END"] * 2,
    ),
    "the pool again after a join": (
        {"": "<FORK-1>1</FORK-1><FORK-2>2</FORK-2><JOIN-1><FORK-3>3</FORK-3><JOIN-3><JOIN-2><end>", **dict.fromkeys("123", GOOD)},
        "END", ["END"] * 3,
    ),
    "beyond the pool": ({"": "<FORK-1>1</FORK-1><FORK-2>2</FORK-2><FORK-3>", "1": GOOD, "2": GOOD}, "MALFORMED", ["END"] * 2),
    "a number twice": ({"": "<FORK-1>1</FORK-1><JOIN-1><FORK-1>", "1": GOOD}, "MALFORMED", ["END"]),
    "joined twice": ({"": "<FORK-1>1</FORK-1><JOIN-1><JOIN-1>", "1": GOOD}, "MALFORMED", ["END"]),
    "joined before it is forked": ({"": "<JOIN-1>"}, "MALFORMED", []),
    "joined inside its sub-query": ({"": "<FORK-1>1<JOIN-1>"}, "MALFORMED", []),
    "tags inside tags": ({"": "<FORK-1>1<FORK-2>2</FORK-2>"}, "MALFORMED", []),
    "tags that do not match": ({"": "<FORK-1>1</FORK-2>"}, "MALFORMED", []),
    "an end that nothing begins": ({"": "a</FORK-1>"}, "MALFORMED", []),
    "an empty sub-query": ({"": "<FORK-1></FORK-1>"}, "MALFORMED", []),
    "an unclosed sub-query": ({"": "<FORK-1>1<end>"}, "MALFORMED", []),
    "never joined": ({"": "<FORK-1>1</FORK-1>a<end>", "1": GOOD}, "END", ["END"]),
    "words of the other role": ({"": "a<RETURN>b</RETURN></JOIN-1><end>"}, "END", []),
    "a worker that forks": (
        {"": "<FORK-1>1</FORK-1><JOIN-1><end>", "1": f"<FORK-2>2</FORK-2><JOIN-2>{GOOD}", "2": GOOD}, "END", ["END"] * 2,
    ),
    "a worker without return": ({"": "<FORK-1>1</FORK-1><JOIN-1>a<end>", "1": "w<end>"}, "END", ["MALFORMED"]),
    "an end inside a return": ({"": "<FORK-1>1</FORK-1><JOIN-1>a<end>", "1": "<RETURN>r<end>"}, "END", ["MALFORMED"]),
    "a return that nothing begins": ({"": "<FORK-1>1</FORK-1><JOIN-1>a<end>", "1": "r</RETURN>"}, "END", ["MALFORMED"]),
    "an empty return": ({"": "<FORK-1>1</FORK-1><JOIN-1>a<end>", "1": "<RETURN></RETURN>"}, "END", ["END"]),
    "a worker that never ends": ({"": "<FORK-1>1</FORK-1><JOIN-1>a<end>", "1": "<RETURN>r"}, "END", ["LENGTH"]),
    "the budget, plain": ({"": "a"}, "LENGTH", []),
    "the budget, in a sub-query": ({"": 28 * "a" + "<FORK-1>11"}, "LENGTH", []),
    "the budget, with the fork": ({"": 27 * "a" + "<FORK-1>1</FORK-1>", "1": GOOD}, "LENGTH", ["END"]),
    "the budget, with the join": ({"": 26 * "a" + "<FORK-1>1</FORK-1><JOIN-1>", "1": GOOD}, "LENGTH", ["END"]),
    "forks of more than there is room for": (
        {
            "": "<FORK-1>1</FORK-1><FORK-2>2</FORK-2><JOIN-1><JOIN-2><FORK-3>3</FORK-3>",
            **dict.fromkeys("123", "<FORK-1>1</FORK-1>"),
        },
        "THREADS_FULL", None,
    ),
}  # fmt: skip


@functools.cache
def broken():
    texts = [texts for texts, *_ in CASES.values()]
    protocol = scripting.scripted(METHOD.protocol(CODEC), CODEC, texts, ("", "1", "2", "3"))
    problems = [Problem(i, np.array([0, 1]), max_tokens=30, child_max_tokens=12) for i in range(len(CASES))]
    problems += [dataclasses.replace(problem, sample=1) for problem in problems]  # slots of those before are used again
    found = Engine(model(), protocol, dataclasses.replace(SIZES, threads=6), kernel=False).decode(problems)
    return {(each.problem, each.sample): each for each in found}


@pytest.mark.parametrize("name", CASES)
def test_every_breach_ends_by_a_name(name):
    _, stop, workers = CASES[name]
    first, again = (broken()[list(CASES).index(name), sample] for sample in (0, 1))
    text = [f"{thread.path} {thread.stop.name} {said(first.tokens(i))}" for i, thread in enumerate(first.threads)]
    assert first.stop.name == stop, text
    if workers is not None:
        assert [thread.stop.name for thread in first.threads if thread.path] == workers, text
        assert first.threads == again.threads and first.log.token.tolist() == again.log.token.tolist()


def test_what_is_inserted():
    told = lambda name: said(broken()[list(CASES).index(name), 0].tokens(0))
    assert told("good") == "aba<FORK-1>1</FORK-1>b<JOIN-1>r</JOIN-1>a<end>"
    for name in ("a worker without return", "an empty return", "a worker that never ends"):
        assert told(name) == "ab<FORK-1>1</FORK-1><JOIN-1></JOIN-1>a<end>"


def test_configurations_are_read_and_checked():
    codec = CODEC
    made = METHOD.protocol(codec)
    assert made.forks == tuple(codec.id(f"<FORK-{i}>") for i in (1, 2, 3)) and (made.agents, made.max_depth) == (3, 2)
    assert made.phrases.tokens == tuple(codec.encode("?:</JOIN-1></JOIN-2></JOIN-3>"))
    found = broken()[list(CASES).index("two at once, joined in the other order"), 0]
    assert said(METHOD.said(found, 0, codec)) == "</FORK-1></FORK-2>b<JOIN-2><JOIN-1>a<end>"
    for change, message in (
        (dict(numbers=0), "async_think.numbers is 0"),
        (dict(agents=1), "async_think.agents is 1; it must be a whole number of 2"),
        (dict(worker="none"), "async_think.worker is 'none'; it must hold {query} once"),
    ):
        with pytest.raises(ValueError, match=message):
            AsyncThink(**change)
    for change, message in (
        (dict(joins=()), "async_think: 3, 3, 0 words of forks"),
        (dict(agents=1), "async_think.agents is 1; at least 2 is needed"),
        (dict(returns=made.end), "control words must be different tokens"),
        (dict(phrases=dataclasses.replace(made.phrases, names=("worker", "b", "c"))), "phrases lack asks, joined"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(made, **change)
