"""APR in its published text against the published client, on demonstrations, and on texts that break the format."""

import collections
import dataclasses
import functools
import random
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Int

import vocabularies
from apr_client import CODEC, Client, model
from apr_jax import settings
from apr_jax.decode import Engine, Problem, Sizes, Stop, memory
from apr_jax.decode import book as books
from apr_jax.decode.book import pytree
from apr_jax.methods import AprText, apr_text
from apr_jax.model.config import PRESETS
from apr_jax.protocols.text_client import TextClient, Written
from apr_jax.tasks.countdown import problems, published, search, verify
from apr_jax.tasks.countdown.text import CountdownSearch, CountdownText

SEED, SCRIPTED, LONGEST, CHILDREN, CONTEXT = 5, 1000, 520, 4, 560
PROMPT = "Moving to Node #0\nCurrent State: 9:[1, 2, 3], Operations: []"
SIZES = Sizes(problems=4, lanes=4, rows=8, feed_tiles=2, feed_chunk=16, threads=24, slots=4096, page_size=8, log=6144,
              log_page_size=8, queue=128, prompt=64, outbox=16, attention_block=512, host=4096)  # fmt: skip
METHOD = AprText(search=CountdownSearch(), most=3, context=CONTEXT)


@pytree
class Scripts(Written):
    """What a thread remembers; the row of its script, how much of that it has said, and how many children it has forked."""

    row: Int[Array, ""]
    said: Int[Array, ""]
    forked: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Scripted(TextClient):
    """Threads of problems from `SCRIPTED` on follow `scripts`: of each problem a row for the root, then for its children."""

    scripts: tuple[tuple[tuple[int, ...], ...], ...] = ()

    def own_state(self):
        plain, zero = super().own_state(), jnp.int32(0)
        return Scripts(
            **{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}, row=zero, said=zero, forked=zero
        )

    def shared_state(self):
        return jnp.int32(0)

    def begin(self, book):
        return super().begin(book.replace(shared=book.problem))

    def observe(self, shared, own, drawn):
        place = jnp.clip(shared - SCRIPTED, 0, len(self.scripts) - 1), own.row, jnp.minimum(own.said, LONGEST - 1)
        token = jnp.where(shared >= SCRIPTED, jnp.asarray(self.scripts, jnp.int32)[place], drawn.token)
        own = dataclasses.replace(own, said=own.said + 1)
        return super().observe(shared, own, dataclasses.replace(drawn, token=token))

    def _fork(self, book, thread):
        count, forked = book.threads.reply.messages[thread], book.threads.own.forked[thread]
        book = super()._fork(book, thread)
        born = books.awaited(book, thread) & (book.threads.cursor.fed == 0)
        book = book.update_own(born, row=jnp.minimum(1 + forked + books.place_among(book, born), CHILDREN))
        return book.update_own(books.numbers(book) == thread, forked=forked + count)


# ---- scripts


def demonstration(seed):
    """The texts of a search that the package demonstrates, one that fits."""
    rng = random.Random(seed)
    while True:
        problem = problems.draw(problems.PRESETS["four"], "train", rng)
        trace = search.apr(problem, search.SearchConfig(2, 2, 1.0), rng)
        calls = published.render_apr(problem.target, trace)
        children = [child.main_calls[-1] for spawn in calls.sub_calls for child in spawn]
        if len(children) in (2, 4) and all(
            len(CODEC.encode_text(text)) < 500 for text in (*children, *calls.main_calls)
        ):
            return problem, trace, calls, children


def written(calls):
    """What the root itself writes in all its calls."""
    parts, prompt = [], calls.main_calls[0].index("\n", calls.main_calls[0].index("Current State"))
    for before, after in zip(("", *calls.main_calls), (*calls.main_calls, ""), strict=True):
        if after:
            start = after.rindex("<End Sub Searches>\n") + len("<End Sub Searches>\n") if before else prompt
            parts.append(after[start:])
    return parts


E, C, R, Z = (
    "<|end|>",
    "<Calling Sub Searches>",
    "<End Calling Sub Searches>",
    "<Start Sub Search 0 at level 1> Moving to Node #0",
)
G = "\nGenerated Node #0,0: 9:[3, 3] Operation: 1+2=3\nGenerated Node #0,1: 9:[2, 2] Operation: 3-1=2\n"
GOAL = "Goal Reached\na\nGoal Reached"
# What the root says and its children; how the root ends, what its last request and what came of it are, and how many children.
CASES = {
    "good": (f"{G}{C}\n{Z},0\n{Z},1\n{R}{E}b{E}", [f"a{E}", f"{GOAL}\n{E}"], "END", 2),
    "no call": (f"a{E}", [], "END", 0),
    "a call that is not the end": (f"{G}{C}\n{Z},0\n{R}\na{E}", [], "END", 0),
    "more behind the end on its line": (f"{G}{C}\n{Z},0\n{R}a{E}b{E}", [E], "END", 1),
    "a block without an end": (f"{G}{C}\n{Z},0\n{E}", [], "END", 0),
    "a block without a beginning": (f"{G}{Z},0\n{R}{E}", [], "NO_BEGINNING", 0),
    "an empty block": (f"{G}{C}\n{R}{E}", [], "NO_NODES", 0),
    "a block of other lines": (f"{G}{C}\na\n{R}{E}", [], "NO_NODES", 0),
    "a node that is not there": (f"{G}{C}\n{Z},0\n{Z},2\n{R}{E}", [], "UNKNOWN_NODE", 0),
    "a node without a mother": (f"\nGenerated Node #2,0: 9:[3] Operation: 1+2=3\n{C}\n{Z},0\n{R}{E}", [], "UNKNOWN_NODE", 0),
    "a state that does not parse": (f"\nGenerated Node #0,0: 9:[3, 3 Operation: 1\n{C}\n{Z},0\n{R}{E}", [], "UNKNOWN_NODE", 0),
    "hundreds of children": (f"{G}{C}\n{300 * f'{Z},0{chr(10)}'}{R}{E}", [], "TOO_MANY", 0),
    "the same node twice": (f"{G}{C}\n{Z},0\n{Z},0\n{R}{E}b{E}", [E, f"a{E}"], "END", 2),
    "a guard": (f"{G}<Sub Searches>\n\n{Z},0\n{R}{E}b{E}", [E], "END", 1),
    "a guard behind the end on its line": (f"{G}{C}\n{Z},0\n{R}<Sub Searches>b{E}a{E}", [E], "END", 1),
    "guards in a row": ("<Sub Searches><Sub Searches>a" + E, [], "END", 0),
    "a guard in a child, which calls nobody": (f"{G}{C}\n{Z},0\n{R}{E}b{E}", [f"<Sub Searches>\n\n{Z},0\n{R}{E}"], "END", 1),
    "a child that never ends": (f"{G}{C}\n{Z},0\n{R}{E}b{E}", ["a"], "END", 1),
    "a root that never ends": ("a", [], "LENGTH", 0),
    "two calls": (2 * f"{G}{C}\n{Z},0\n{R}{E}" + f"b{E}", [E, f"{GOAL}{E}"], "END", 2),
    "calls that fill the table": (12 * f"{C}\n{Z}\n{R}{E}", [E] * 4, "THREADS_FULL", None),
    "a user who writes a block": (E, [], "END", 0),
}  # fmt: skip
DEMONSTRATIONS = tuple(demonstration(seed) for seed in range(2))


def row(text):
    ids = CODEC.encode(text)
    assert len(ids) <= LONGEST
    return tuple([*ids, *[CODEC.encode("a")[0]] * (LONGEST - len(ids))])


@functools.cache
def decoded():
    """All that these tests look at, by problem: first those that are drawn, then those that follow scripts."""
    block = f"{PROMPT}{G}{C}\n{Z},0\n{R}"
    items = [(block if name.startswith("a user") else PROMPT, text, told) for name, (text, told, *_) in CASES.items()]
    for problem, _, calls, children in DEMONSTRATIONS:
        text = "".join(part.removesuffix("\n") + E for part in written(calls))
        told = ["\n" + child.split("\n", 2)[2] + E for child in children]
        items.append((CountdownText().text(problem), text, told))
    asked = list(drawn())
    for number, (prompt, _, _) in enumerate(items):
        ids = np.array(apr_text.encoded(CODEC, prompt))
        asked.append(Problem(SCRIPTED + number, ids, max_tokens=2000, child_max_tokens=400))
    scripts = tuple(tuple(map(row, (text, *told, *[E] * (CHILDREN - len(told))))) for _, text, told in items)
    plain, last = METHOD.protocol(CODEC), []
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    engine = Engine(model(), Scripted(**fields, scripts=scripts), SIZES, kernel=False, host=METHOD.host(CODEC))
    found = {each.problem: each for each in engine.decode(asked, seed=SEED, watch=last.append)}
    assert engine.traces == 1 and last[-1].questions > 10 and last[-1].returns <= last[-1].questions
    return found


def drawn():
    """Prompts that describe two nodes, so that most calls name nodes that are there."""
    ids, rng = np.array(apr_text.encoded(CODEC, PROMPT + G)), np.random.default_rng(3)
    for number in range(32):
        yield Problem(
            number, ids, temperature=float(rng.choice([0.75, 1.0])), max_tokens=int(rng.integers(8, 20)),
            child_max_tokens=int(rng.choice([0, 8])),
        )  # fmt: skip


# ---- tests


def test_the_client_says_the_same():
    full, seen = (
        (Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL, Stop.HOST_FULL, Stop.MESSAGES_FULL),
        collections.Counter(),
    )
    for problem in drawn():
        found = decoded()[problem.id]
        if found.stop in full:
            continue
        client = Client(problem, SEED, CONTEXT, METHOD.most)
        stop = client.run(PROMPT + G)
        assert found.stop == stop, problem.id
        said = METHOD.said(found, METHOD.voices(found)[0], CODEC)
        assert said.tolist() == client.root.seen, problem.id
        lines = collections.defaultdict(list)
        for number in sorted(range(len(found.threads)), key=lambda i: found.threads[i].segment):
            lines[found.threads[number].path] += [*found.generated(number)]
        assert sum(map(len, lines.values())) == len(client.root.tokens) + sum(
            len(child.tokens) for child in client.children
        )
        for child, path in zip(client.children, sorted(path for path in lines if is_child(found, path)), strict=True):
            last = max(i for i, thread in enumerate(found.threads) if thread.path == path)
            assert METHOD.said(found, last, CODEC).tolist() == child.seen
        seen["anew"] += sum(line.anew for line in (client.root, *client.children))
        seen.update(
            {
                stop.name: 1,
                "children": len(client.children),
                "guarded": client.guarded,
                "several": len(client.children) > 2,
            }
        )
    print(dict(seen))
    assert seen["children"] > 12 and seen["several"] > 2 and seen["guarded"] > 10 and seen["anew"], seen
    assert seen["MALFORMED"] and seen["END"] > 5, seen


def is_child(found, path):
    return len(path) == 1 and any(thread.path == path and thread.stop != Stop.SPLIT for thread in found.threads)


def last_text(found):
    return apr_text.decoded(CODEC, METHOD.said(found, METHOD.voices(found)[0], CODEC))


@pytest.mark.parametrize("name", CASES)
def test_every_breach_ends_by_a_name(name):
    _, _, ends, children = CASES[name]
    found = decoded()[SCRIPTED + list(CASES).index(name)]
    errors = METHOD.format_errors(found)
    assert (next(iter(errors), "").upper() or found.stop.name) == ends, last_text(found)
    assert (found.stop == Stop.MALFORMED) == bool(errors)
    if children is not None:
        assert sum(is_child(found, path) for path in {thread.path for thread in found.threads}) == children


def text_of(name):
    return last_text(decoded()[SCRIPTED + list(CASES).index(name)])


def test_a_thread_may_hold_so_many_tokens():
    found = decoded()[SCRIPTED + list(CASES).index("a root that never ends")]
    assert len(found.log) == CONTEXT


def test_what_the_root_goes_on_from():
    no, goal = "<No Solution in Sub Search", "<Goal Reached in Sub Search"
    assert text_of("good") == (
        f"{PROMPT}{G}<Sub Searches>\n{no} 0 at level 1 at Node #0,0>\n{goal} 1 at level 1 at Node #0,1>\na\nGoal Reached\n"
        "<End Sub Searches>\nb"
    )
    assert text_of("guards in a row") == f"{PROMPT}{2 * C}a"
    assert text_of("a guard").endswith(f"<Sub Searches>\n{no} 0 at level 1 at Node #0,0>\n<End Sub Searches>\nb")
    assert text_of("two calls").count("<End Sub Searches>") == 2
    found = decoded()[SCRIPTED + list(CASES).index("a guard in a child, which calls nobody")]
    child = max(i for i, thread in enumerate(found.threads) if is_child(found, thread.path))
    told = f"Moving to Node #0,0\nCurrent State: 9:[3, 3], Operations: ['1+2=3']{C}\n{Z},0\n{R}"
    assert apr_text.decoded(CODEC, METHOD.said(found, child, CODEC)) == told


def test_what_is_forgotten_is_seen_by_nobody_and_positions_have_no_gaps():
    for found in decoded().values():
        if found.stop in (Stop.END, Stop.LENGTH, Stop.MALFORMED):
            log, voice = found.log, METHOD.voices(found)[0]
            seen = found.sees[voice][log.thread] & (log.clock >= 0)
            assert sorted(log.position[seen].tolist()) == list(range(seen.sum()))
            assert not found.sees[voice][[thread.stop == Stop.SPLIT for thread in found.threads]].any()


@pytest.mark.parametrize("number", range(len(DEMONSTRATIONS)))
def test_demonstrations_are_decoded_as_they_are_written(number):
    problem, trace, calls, children = DEMONSTRATIONS[number]
    found = decoded()[SCRIPTED + len(CASES) + number]
    assert found.stop == Stop.END
    assert last_text(found) == calls.main_calls[-1].removesuffix("\n")
    task = CountdownText()
    answer = task.answer(METHOD.said(found, METHOD.voices(found)[0], CODEC), CODEC)
    assert (answer is not None) == (trace.goal is not None) == verify.check_published(problem, calls.main_calls[-1])
    assert answer is None or task.grade([(problem, answer)]) == [True]
    wrote = {
        apr_text.decoded(CODEC, METHOD.said(found, i, CODEC))
        for i, thread in enumerate(found.threads)
        if is_child(found, thread.path)
    }
    assert wrote == set(children)


def test_a_tokenizer_of_the_construction_of_llama_keeps_what_stands_before_a_call():
    """The released checkpoints have that of Llama 2: byte fallback, a space before the text, no piece with a new line."""
    codec, before = vocabularies.sentence(), f"{PROMPT}{G}"
    called, answered = f"{before}{C}\n{Z},0\n{R}", apr_text.Call.of(f"{before}{C}\n{Z},0\n{R}").answered([None])
    first, second, kept = (apr_text.encoded(codec, text) for text in (called, answered, before))
    assert first[0] == codec.bos and apr_text.decoded(codec, [*first, codec.eos]) == called
    assert first[: len(kept)] == second[: len(kept)] == kept
    protocol = METHOD.protocol(codec)
    assert protocol.end == codec.eos
    found, met = protocol.recogniser.start(), []
    for token in codec.encode_text("<Sub Searches>", continues=True):
        found, event = protocol.recogniser.step(found, jnp.int32(token))
        met.append(int(event))
    assert met[-1] == protocol.recogniser.event("guard") and not any(met[:-1])


def test_the_configuration_of_the_released_checkpoints_can_be_read():
    config = settings.load(Path("configs/pretrained/apr.py"))
    assert settings.to_dict(config)["methods"]["apr"]["rollout"]["method"]["search"]["class"].endswith(
        ".CountdownSearch"
    )
    rollout = config.methods["apr"].rollout
    size = memory.estimate(
        dataclasses.replace(PRESETS["apr_228m"], dtype="bfloat16", param_dtype="bfloat16"), rollout.sizes
    )
    assert size.total < 15 * 2**30, str(size)


def test_conditioned_prompts_and_budgets():
    problem = problems.Problem((22, 26, 31, 53), 27)
    assert (
        CountdownText(budget=10).text(problem)
        == "Sub Call Budget: 10 Moving to Node #0\nCurrent State: 27:[22, 26, 31, 53], Operations: []"
    )
    assert CountdownText(form="sos", budget=1024).text(problem).startswith("Token Budget: 1024 Current State: 27:[22")
    assert CountdownSearch().prompts(CountdownText(budget=3).text(problem), ["0"]) == [CountdownText().text(problem)]
    with pytest.raises(ValueError, match="form is 'x'; allowed are apr, sos"):
        CountdownText(form="x")
    with pytest.raises(ValueError, match="tokens: 100 is not one of 512"):
        CountdownText(form="sos", budget=100)
    with pytest.raises(ValueError, match="apr_text.most is 0"):
        AprText(search=CountdownSearch(), most=0)
