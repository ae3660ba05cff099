"""SPRINT against the interpreter of threads, against its client on texts, and every breach of its format."""

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
from apr_jax.methods import Sprint
from apr_jax.methods.sprint import TAGS
from apr_jax.model.transformer import Model
from line_oracle import Line, Thread
from phrase_matcher import Plain, Table
from test_native import need_kernel
from test_outlined import CONFIG

SEED = 3
METHOD = Sprint(most=2, phases=3, plan_tokens=24, end="<end>")
PLAIN = [b"a", b"q", b"e", b"\n", b">", b"x>", b"1", b"2", b"3", b"."]
PIECES = b"<pro mpt_ </pro <Pl an_ </Pl <exe </exe cution_ <Exe </Exe <Fin al_answer> </Fin </thi nk>".split()
CODECS = {"ids": Table(PLAIN, (*METHOD.words, "<end>")), "spelt": Table([*PLAIN, *PIECES, b"<"], ["<end>"])}
ENDS = [name for name in TAGS if not name.startswith("prompt")]
PHRASES = tuple(Phrase(name, text, ">" if name.startswith("prompt") else "") for name, text in TAGS.items())
SIZES = Sizes(problems=4, lanes=3, rows=6, feed_tiles=2, feed_chunk=8, feed_threshold=2, threads=12, slots=1024, page_size=4,
              log=1024, log_page_size=4, queue=128, prompt=8, outbox=8, attention_block=256)  # fmt: skip
ONE_ROW = dataclasses.replace(SIZES, problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0)
ROWS = {
    ("\n",): {"a": 2.0, "e": 1.0, "<prompt_": 2.0, "<end>": -1.5},
    ("a",): {"a": 1.0, "e": 0.0, "<prompt_": 1.5, "</Final_answer>": 2.0, "</Plan_": -2.0, "<end>": 1.0},
    ("<prompt_",): {"x>": 2.5, "1": 0.0, ">": -1.5},
    ("1", "2", "3"): {">": 2.0, ".": 0.0, "x>": 0.0},
    ("x>",): {"q": 2.5, "</prompt_": -1.5},
    ("q",): {"q": 0.5, "</prompt_": 2.5, "</Plan_": -2.0, "<prompt_": -2.0},
    ("</prompt_",): {">": 2.5, "1": -1.0},
    (">",): {"<prompt_": 1.0, "</Plan_": 2.5, "a": 0.5, "</Final_answer>": 0.5, "</think>": -0.5},
    ("e",): {"e": 0.5, "</execution_": 1.5, "a": 0.0, "</think>": 0.0, "<end>": 0.0, "</Execution_": -1.0, "<prompt_": 0.5},
}  # fmt: skip


@functools.cache
def protocol(name):
    return METHOD.protocol(CODECS[name])


@functools.cache
def model(name, dtype="float64"):
    size, head = CODECS[name].size, 8 if dtype == "float64" else 16
    config = dataclasses.replace(CONFIG, vocabulary=size, dtype=dtype, param_dtype=dtype, head_dim=head)
    codec = CODECS[name]
    table = forking.likely(codec, size, ROWS)
    for text in (*TAGS.values(), "<prompt_"):  # what begins a tag goes on with it
        ids = codec.encode(text)
        for this, after in zip(ids, ids[1:], strict=False):
            table[this, after] = 3.0
    if name == "spelt":
        first, less = codec.encode("a")[0], codec.encode("<")[0]
        table[[first, codec.encode("q")[0]], less] = 0.0
        table[less] = np.maximum(table[first], table[codec.encode("q")[0]])
    wide = forking.biased_model(config, 0, table, 0.8)
    return Model(wide.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), wide.params))


@functools.cache
def forward(name, dtype="float64"):
    return reference_model.transformer(model(name, dtype).params, model(name, dtype).config)


# ---- the interpreter


class Reader:
    """What a thread's tokens end: the event, and how many tokens the word may hold."""

    def __init__(self, codec):
        self.plain, self.held = Plain(codec, PHRASES), 0

    def read(self, token):
        event, word = self.plain.step(token), self.held + 1
        seen = self.plain.seen
        begun = [self.plain.phrase(i)[:n] for i in range(len(PHRASES)) for n in range(1, len(self.plain.phrase(i)))]
        self.held = word if any(seen[-len(start) :] == start for start in begun) else 0
        return event, word


def planning(name):
    codec = CODECS[name]

    def program(world, thread, prompt, protocol):
        thread.__class__ = Thread
        line = Line(thread, None, False)
        yield from line.feed(prompt)
        for phase in range(1, METHOD.phases + 1):
            line.go_on(line.thread.seen, line.thread.next_position)
            if line.thread.generated >= world.problem.max_tokens:
                line.thread.stop = Stop.LENGTH
                return
            last = phase == METHOD.phases
            yield from line.feed(codec.encode("<Final_answer>\n" if last else f"<Plan_{phase}>\n"))
            stop, said, tags, cut = yield from plan(world, line, codec, last)
            if stop is not None:
                line.thread.stop = stop
                return
            yield from executions(world, line, codec, phase, said, tags, cut)

    return program


PARTS = {"prompt": 0, "prompt captured": 1, "prompt_end": 2, "prompt_end captured": 3}


def plan(world, line, codec, last):
    """One plan; returns why it ends the planner, or its tokens, where parts of prompts begin or end, and where it ends."""
    reader, said, tags, broken = Reader(codec), [], [], False
    most = min(world.problem.max_tokens, line.thread.generated + METHOD.plan_tokens)
    while True:
        token = world.sample(line.thread).token
        said.append(token)
        event, word = reader.read(token)
        if event in PARTS:
            part = PARTS[event]
            place = len(said) - (0 if part % 2 else word)
            right = part == len(tags) % 4 and len(tags) < 4 * METHOD.most and not (part == 2 and place <= tags[-1])
            broken |= not right
            tags += [place] * right
        whole = len(tags) % 4 == 0
        if event == "plan_end" and whole and tags and not broken and not last:
            return None, said, tags, len(said) - word
        ended = token == codec.id("<end>")
        if event in ENDS or ended:
            good = whole and (ended or event in ("answer_end", "think_end"))
            return Stop.END if good else Stop.MALFORMED, said, tags, 0
        if line.thread.generated >= most:
            return Stop.LENGTH, said, tags, 0
        yield from line.feed_unfed()


def executions(world, line, codec, phase, said, tags, cut):
    before, thread, children = line.threads[-2], line.thread, []
    prompts = [tags[i : i + 4] for i in range(0, len(tags), 4)]
    for mine in range(len(prompts)):
        child = thread.open()
        child.seen, child.next_position, child.follows = [*before.seen, child], before.next_position, before
        child.floor, child.count = thread.clock, thread.count
        message, upto = codec.encode(f"<Plan_{phase}>\n"), 0
        for place, (begin, text, text_end, end) in enumerate(prompts):
            message += said[upto:begin]
            if place == mine:
                own = said[text:text_end]
                message += [*codec.encode(f"<prompt_{phase}.1>"), *own, *codec.encode(f"</prompt_{phase}.1>")]
            upto = end
        message += said[upto:cut]
        message += codec.encode(f"</Plan_{phase}>\n\n<Execution_{phase}>\n<execution_{phase}.1>\n")
        world.start(child, execution(world, Line(child, line, False), message, codec))
        children.append(child)
    yield from thread.await_children(children)
    yield from line.feed_unfed()
    yield from line.feed(codec.encode(f"{phase}>\n\n<Execution_{phase}>\n"))
    for number, child in enumerate(children, start=1):
        yield from line.feed(codec.encode(f"<execution_{phase}.{number}>\n"))
        yield from line.feed(child.message)
        yield from line.feed(codec.encode(f"</execution_{phase}.{number}>\n"))
    yield from line.feed(codec.encode(f"</Execution_{phase}>\n"))


def execution(world, line, message, codec):
    yield from line.feed(message)
    reader, said = Reader(codec), []
    while line.thread.stop is None:
        token = world.sample(line.thread).token
        said.append(token)
        event, word = reader.read(token)
        if event in ENDS or token == codec.id("<end>"):
            line.thread.message, line.thread.stop = said[: -word if event in ENDS else -1], Stop.END
        elif world.spent(line.thread):
            line.thread.message, line.thread.stop = said, Stop.LENGTH
        else:
            yield from line.feed_unfed()


# ---- equality


def case(rng, number):
    prompt = rng.choice([0, 3], size=rng.integers(1, 6))
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
        expected = oracle.run(forward(name), problem, None, SEED, program=planning(name))
        if len(expected.threads) <= 12 and len(expected.log) <= 700:
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
        paths = [thread.path for thread in found.threads]
        events["executed"] += (0,) in paths
        events["several"] += (1,) in paths
        events["phases"] += any(thread.segment > 2 for thread in found.threads if not thread.path)
        events.update(f"{'executor' if thread.path else 'planner'} {thread.stop.name}" for thread in found.threads)
    print(name, dict(events))
    few = name == "spelt"
    assert events["executed"] > (8 if few else 30) and events["several"] > (1 if few else 15), events
    assert few or events["phases"] > 15, events
    assert all(events[f"{who} {stop}"] > 2 for who in ("planner", "executor") for stop in ("END", "LENGTH")), events


def test_cpu_kernels_follow_from_their_own_tokens():
    need_kernel()
    replayed = 0
    for found in decoded("ids", SIZES, "float32", True):
        if found.stop in (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL):
            continue  # in f32 it says something else than the problem that fits
        replayed += len(found.threads) > 1
        problem = right("ids")[0][found.problem]
        run = lambda choose, problem=problem: oracle.run(
            forward("ids", "float32"), problem, None, SEED, program=planning("ids"), choose=choose
        )
        replaying.replay(found, run, replaying.F32)
    assert replayed > 20


# ---- the client


STOPS = tuple(TAGS[name] for name in ENDS) + ("<end>",)
PROMPT = re.compile(r"<prompt_[^>]*>(.*?)</prompt_[^>]*>", re.S)


def request(server, line, text, most):
    """Sample until a stop string; returns what was said with it, and the string."""
    codec, said = CODECS["ids"], ""
    for _ in range(most):
        said += text_of(codec, [server.next(line, codec.encode(text + said))])
        if stop := next((stop for stop in STOPS if said.endswith(stop)), ""):
            return said, stop
    return said, ""


def client(server, problem):
    """The texts of the planner and of its executors, as the released client makes them."""
    line, past, texts = server.root(), text_of(CODECS["ids"], problem.prompt), []
    for phase in range(1, METHOD.phases + 1):
        if len(line.tokens) >= problem.max_tokens:
            break
        past += "<Final_answer>\n" if phase == METHOD.phases else f"<Plan_{phase}>\n"
        most = min(METHOD.plan_tokens, problem.max_tokens - len(line.tokens))
        said, stop = request(server, line, past, most)
        if stop != "</Plan_":
            past += said
            break
        plan, context, executed = said.removesuffix(stop), past.removesuffix(f"<Plan_{phase}>\n"), ""
        for number, mine in enumerate(PROMPT.finditer(plan), start=1):
            before, after = (PROMPT.sub("", part) for part in (plan[: mine.start()], plan[mine.end() :]))
            own = f"<prompt_{phase}.1>{mine[1]}</prompt_{phase}.1>"
            message = f"{context}<Plan_{phase}>\n{before}{own}{after}</Plan_{phase}>\n\n"
            message += f"<Execution_{phase}>\n<execution_{phase}.1>\n"
            wrote, stop = request(server, line.child(), message, problem.child_max_tokens or problem.max_tokens)
            texts.append(message.removeprefix(context) + wrote)
            executed += f"<execution_{phase}.{number}>\n{wrote.removesuffix(stop)}</execution_{phase}.{number}>\n"
        past += f"{said}{phase}>\n\n<Execution_{phase}>\n{executed}</Execution_{phase}>\n"
    return [past, *texts]


def test_the_client_says_the_same():
    params, config = jax.tree.map(np.asarray, model("ids").params), model("ids").config
    executed = several = 0
    for problem, found in zip(right("ids")[0], decoded("ids"), strict=True):
        if any(thread.stop == Stop.MALFORMED for thread in found.threads):
            continue
        texts = client(requesting.Server(params, config, problem, SEED), problem)
        told = [text_of(CODECS["ids"], found.tokens(i)) for i in range(len(found.threads))]
        planner = sum(not thread.path for thread in found.threads)
        assert ["".join(told[:planner]), *told[planner:]] == texts
        executed += len(texts) > 1
        several += len(texts) > 2
    assert executed > 5 and several > 2, (executed, several)


# ---- breaches


def asks(*numbers):
    return "".join(f"<prompt_{number}>q</prompt_{number}>" for number in numbers)


DONE = "e</execution_"
CASES = {
    "good": ({"": f"a{asks(1, 2)}a</Plan_a</Final_answer>", "1": DONE, "2": f"e{DONE}"}, "END", ["END", "END"]),
    "two rounds": ({"": f"{asks(1)}</Plan_{asks(1, 2)}</Plan_a</think>", "1": DONE, "2": DONE}, "END", ["END"] * 3),
    "the last phase is no plan": ({"": f"{asks(1)}</Plan_{asks(1)}</Plan_{asks(1)}</Plan_", "1": DONE}, "MALFORMED", ["END"] * 2),
    "numbers are not read": ({"": "<prompt_3.3>q</prompt_1>a</Plan_<end>", "1": DONE}, "END", ["END"]),
    "no prompts": ({"": "a</Plan_"}, "MALFORMED", []),
    "too many prompts": ({"": f"{asks(1, 2, 3)}</Plan_"}, "MALFORMED", []),
    "an empty prompt": ({"": "<prompt_1.1></prompt_1.1></Plan_"}, "MALFORMED", []),
    "an unclosed prompt": ({"": "<prompt_1.1>q</Plan_"}, "MALFORMED", []),
    "an unclosed tag": ({"": "<prompt_1.1q</Plan_"}, "MALFORMED", []),
    "an unclosed closing tag": ({"": "<prompt_1.1>q</prompt_1</Plan_"}, "MALFORMED", []),
    "a prompt inside a prompt": ({"": f"<prompt_1.1>{asks(2)}</prompt_1.1></Plan_"}, "MALFORMED", []),
    "a closing tag alone": ({"": f"</prompt_1.1>{asks(1)}</Plan_"}, "MALFORMED", []),
    "an end inside a prompt": ({"": "<prompt_1.1>q<end>"}, "MALFORMED", []),
    "an end with prompts": ({"": f"{asks(1)}<end>"}, "END", []),
    "the end of an execution in a plan": ({"": "a</execution_"}, "MALFORMED", []),
    "an executor that plans": ({"": f"{asks(1)}</Plan_</think>", "1": f"{asks(1)}</Plan_"}, "END", ["END"]),
    "an executor that ends the text": ({"": f"{asks(1)}</Plan_</think>", "1": "e<end>"}, "END", ["END"]),
    "an executor that says nothing": ({"": f"{asks(1)}</Plan_</think>", "1": "</execution_"}, "END", ["END"]),
    "an executor that never ends": ({"": f"{asks(1)}</Plan_</think>", "1": "e"}, "END", ["LENGTH"]),
    "the budget of a plan": ({"": "a"}, "LENGTH", []),
    "the budget, with the fork": ({"": f"{16 * 'a'}{asks(1)}</Plan_{12 * 'a'}", "1": DONE}, "LENGTH", ["END"]),
}  # fmt: skip


@functools.cache
def broken():
    texts = [texts for texts, *_ in CASES.values()]
    protocol_ = scripting.scripted(protocol("ids"), CODECS["ids"], texts, ("", "1", "2"))
    problems = [Problem(i, np.array([0, 3]), max_tokens=30, child_max_tokens=12) for i in range(len(CASES))]
    problems += [dataclasses.replace(problem, sample=1) for problem in problems]  # slots of those before are used again
    found = Engine(model("ids"), protocol_, SIZES, kernel=False).decode(problems)
    return {(each.problem, each.sample): each for each in found}


@pytest.mark.parametrize("name", CASES)
def test_every_breach_ends_by_a_name(name):
    _, stop, executors = CASES[name]
    first, again = (broken()[list(CASES).index(name), sample] for sample in (0, 1))
    codec = CODECS["ids"]
    text = [
        f"{thread.path} {thread.stop.name} {text_of(codec, first.tokens(i))}" for i, thread in enumerate(first.threads)
    ]
    assert first.stop.name == stop, text
    assert [thread.stop.name for thread in first.threads if thread.path] == executors, text
    assert first.threads == again.threads and first.log.token.tolist() == again.log.token.tolist()


def test_what_is_said_to_executors_and_by_them():
    found, codec = broken()[list(CASES).index("good"), 0], CODECS["ids"]
    told = [text_of(codec, found.tokens(i)) for i in range(len(found.threads))]
    rest = "a</Plan_1>\n\n<Execution_1>\n<execution_1.1>\n"
    assert told[3:] == [f"<Plan_1>\na<prompt_1.1>q</prompt_1.1>{rest}{wrote}</execution_" for wrote in ("e", "ee")]
    wrote = "<execution_1.1>\ne</execution_1.1>\n<execution_1.2>\nee</execution_1.2>\n"
    assert (
        told[1].endswith(f"</Plan_1>\n\n<Execution_1>\n{wrote}</Execution_1>\n")
        and told[2] == "<Plan_2>\na</Final_answer>"
    )
    assert METHOD.voices(found) == [0] and text_of(codec, METHOD.said(found, 0, codec)).endswith(
        "a</Plan_a</Final_answer>"
    )


def test_choices_that_make_no_sense_are_refused():
    made = protocol("ids")
    for make, message in (
        (lambda: Sprint(most=0), "sprint.most is 0"),
        (lambda: Sprint(plan_tokens=-1), "sprint.plan_tokens is -1"),
        (lambda: dataclasses.replace(made, phases=0), "plan_execute.phases is 0; at least 1 is needed"),
        (
            lambda: dataclasses.replace(made, phrases=dataclasses.replace(made.phrases, names=("plan",))),
            "phrases lack prompt",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
