"""Skeleton of thought: against an interpreter of its rule, its client over full forwards, and where there is no skeleton."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import forking
import oracle
import reference_model
import replaying
import vocabularies
from apr_jax.decode import Engine, Problem, Stop, Transcript
from apr_jax.evaluate import metrics
from apr_jax.methods import Skeleton as Method
from apr_jax.model import transformer
from apr_jax.tasks.language.gym import ReasoningGym
from apr_jax.tasks.language.task import Question
from apr_jax.tasks.prompt import Prompt
from phrase_matcher import Table
from test_engine import CONFIG, SIZES
from test_native import need_kernel

SEED = 9
PIECES = [b"a", b" b", b"1", b"2", b"3", b"12", b".", b"\n", b"\n2", b". c", b"x\n", b"4", b"\n\n", b" ", b"d"]
CODEC = Table(PIECES, ["<end>"])
METHOD = Method(end="<end>", skeleton="d\n1.", ask="a{number} b", most=4)
RULE = METHOD.protocol(CODEC)


@functools.cache
def model(dtype: str) -> transformer.Model:
    """One that mostly writes numbered lines, and often ends; in f32 with heads that the CPU kernels serve."""
    table = np.full((16, 16), -8.0)
    text, lines, digits, dots, end = [0, 1, 14], [7, 10, 12], [2, 3, 4], [6, 9], 15
    for rows, after in (
        (text, ((text, -0.5), (lines, 1.5), ([8], -1.0), ([end], -0.5), (dots, -2.0), (digits, -2.0))),
        (dots, ((text, 1.5), (lines, -1.5), ([end], -2.0))),
        (lines, ((digits, 1.5), ([13], 0.0), ([5, 11], -1.5), (text, -1.5), (lines, -2.0), ([end], -1.0))),
        ([8, 5, 11, 13, *digits], ((dots, 2.0), (digits, -1.5), ([13], -1.5), (text, -2.0), (lines, -2.0))),
        ([end], ((text, 0.0),)),
    ):
        for tokens, value in after:
            table[np.ix_(rows, tokens)] = value
    size = CONFIG.head_dim if dtype == "float64" else 16
    config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype, head_dim=size)
    made = forking.biased_model(config, 0, table, 0.7)
    return transformer.Model(made.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), made.params))


@functools.cache
def forward(dtype: str) -> reference_model.Forward:
    return reference_model.transformer(model(dtype).params, model(dtype).config)


@functools.cache
def problems(count: int = 40) -> tuple[Problem, ...]:
    rng, made = np.random.default_rng(4), []
    for number in range(count):
        case = forking.random_case(rng, number, greedy=0.1, max_tokens=32)
        fields = {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}
        ends = sorted(rng.integers(0, len(case.prompt) + 1, 4).tolist())
        parts = {"question": tuple(ends[:2]), "turn": tuple(ends[2:])}
        made.append(
            Problem(**{**fields, "prompt": case.prompt % 15, "child_max_tokens": int(rng.choice([0, 4]))}, parts=parts)
        )
    return tuple(made)


@functools.cache
def decoded(sizes: str) -> tuple[Transcript, ...]:
    engine = Engine(model("float64"), RULE, SIZES[sizes])
    found = sorted(engine.decode(problems(), seed=SEED), key=lambda transcript: transcript.problem)
    assert engine.traces == 1
    return tuple(found)


# ---- the rule once more


def outline(said: list[int]) -> list[tuple[int, list[int]]] | None:
    """The points of a skeleton, number and text; None if it is malformed. A token that holds a new line ends one."""
    lines: list[list[int]] = [[]]
    for token in said:
        if b"\n" in PIECES[token]:
            lines.append([])
        else:
            lines[-1].append(token)
    points = [(1, lines[0])] if lines[0] else []
    for line in lines[1:]:
        stop = next((i for i, token in enumerate(line) if b"." in PIECES[token]), None)
        number = b"".join(PIECES[token] for token in line[: stop or 0])
        number = (number + PIECES[line[stop]].partition(b".")[0]).strip() if stop is not None else b""
        if not number.isdigit() or len(number) > 9:
            continue
        if not 1 <= int(number) <= METHOD.most or len(points) == METHOD.most:
            return None
        points += [(int(number), line[stop + 1 :])] if line[stop + 1 :] else []
    return points or None


def asked(problem: Problem, skeleton: list[int], number: int, text: list[int]) -> tuple[list[int], int]:
    """What a thread sees before it samples, and how much of it begins the answer."""
    prompt, parts = problem.prompt.tolist(), problem.parts
    begins = [*CODEC.encode(f"{number}."), *text]
    end = min(parts["question"][1], len(prompt) - 1)
    whole = [
        *prompt[:end],
        *CODEC.encode(METHOD.skeleton),
        *skeleton,
        *CODEC.encode(f"a{number} b"),
        *prompt[slice(*parts["turn"])],
    ]
    return [*whole, *begins], len(begins)


def writing(world: oracle.World, thread: oracle.Thread, fed: list[int], budget: int) -> oracle.Program:
    """The skeleton's thread, or that of a point."""
    yield from thread.feed_tokens(fed)
    while True:
        entry = world.sample(thread)
        if entry.token == RULE.end:
            thread.stop = Stop.END
        elif thread.generated == budget:
            thread.stop = Stop.LENGTH
        if thread.stop is not None:
            thread.message = [one.token for one in thread.entries[len(fed) :]]
            return
        yield []
        thread.feed(entry)


def program(world: oracle.World, root: oracle.Thread, prompt: list[int], rule) -> oracle.Program:
    """The coordinator."""
    problem = world.problem
    end = min(problem.parts["question"][1], len(prompt) - 1)

    def start(fed: list[int], budget: int) -> oracle.Thread:
        child = root.open()
        child.seen, child.next_position = [root, child], root.next_position
        child.floor, child.count = max(root.clock, root.floor), root.count
        world.start(child, writing(world, child, fed, budget))
        return child

    yield from root.feed_tokens(prompt[:end])
    writer = start(prompt[end:], problem.max_tokens)
    yield from root.await_children([writer])
    skeleton = [token for token in writer.message if token != rule.end]
    points = outline(skeleton)
    root.stop = None
    if points:
        budget = problem.child_max_tokens or problem.max_tokens
        threads = [start(asked(problem, skeleton, *point)[0][end:], budget) for point in points]
        yield from root.await_children(threads)
    root.stop = Stop.END if points else Stop.MALFORMED


@pytest.mark.parametrize("sizes", ["one row", "plenty"])
def test_f64_equals_the_oracle(sizes):
    seen = collections.Counter()
    for found in decoded(sizes):
        oracle.compare(found, oracle.run(forward("float64"), problems()[found.problem], RULE, SEED, program=program))
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        seen.update([found.stop.name, found.threads[1].stop.name, len(found.threads) - 2])
        assert (found.stop == Stop.MALFORMED) == (len(found.threads) == 2) == (not METHOD.voices(found))
    assert seen["MALFORMED"] > 3 and seen["END"] > 20 and seen["LENGTH"] > 3 and min(seen[1], seen[2], seen[3]) > 2, (
        seen
    )


def test_the_kernels_follow_from_their_own_tokens():
    need_kernel()
    for found in Engine(model("float32"), RULE, SIZES["scarce rows"], kernel=True).decode(problems(16), seed=SEED):

        def again(choose, found=found):
            return oracle.run(
                forward("float32"), problems(16)[found.problem], RULE, SEED, program=program, choose=choose
            )

        replaying.replay(found, again, replaying.F32)


def test_the_client_over_full_forwards_gives_the_same_answer():
    """Requests one after the other, each a prompt of its own; the answer is their text."""
    params, config = jax.tree.map(np.asarray, model("float64").params), model("float64").config
    answered = 0
    for found in decoded("plenty")[:16]:
        problem = problems()[found.problem]
        root = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)

        def request(number: int, text: list[int], most: int, root=root, problem=problem) -> list[int]:
            uniforms, said = np.asarray(reference_model.uniforms(jax.random.fold_in(root, 1 + number))), []
            while len(said) < most and RULE.end not in said:
                ids = np.array([*text, *said])
                logits = reference_model.all_logits(params, config, ids, np.arange(len(ids)))[-1]
                said.append(reference_model.draw(logits, uniforms[len(said)], problem)[0])
            return said

        skeleton = [token for token in request(0, problem.prompt.tolist(), problem.max_tokens) if token != RULE.end]
        texts = []
        for number, point in enumerate(outline(skeleton) or (), start=1):
            prompt, begins = asked(problem, skeleton, *point)
            texts.append([*prompt[-begins:], *request(number, prompt, problem.child_max_tokens or problem.max_tokens)])
        answers = [METHOD.said(found, voice, CODEC) for voice in METHOD.voices(found)]
        assert answers == (
            [[token for i, text in enumerate(texts) for token in (*[7] * (i > 0), *text)]] if texts else []
        )
        answered += len(texts) > 1
    assert answered > 3


# ---- as configurations name it


def test_what_it_says_and_what_it_refuses():
    codec = vocabularies.byte_level()
    rule = Method(end="", most=4).protocol(codec)
    said = lambda name, number: rule.templates[(at := rule.phrases.each(name, number))[0] : at[0] + at[1]]
    assert codec.decode(said("header", 3)) == "4." and "point 2 of it" in codec.decode(said("ask", 1))
    with pytest.raises(ValueError, match="skeleton.most is 0"):
        Method(most=0)
    with pytest.raises(ValueError, match="skeleton.phrases lack ask, header"):
        dataclasses.replace(rule, phrases=type(rule.phrases).of_ids(skeleton=[(1,)]))


def test_a_prompt_names_its_question_and_its_turn():
    """The turn is what begins the assistant's, between what was asked and the opening of the answer."""
    codec = vocabularies.byte_level()
    task = ReasoningGym(ask=Prompt(wrap="Of {question} only the skeleton!", opening="1."))
    question = Question(0, "a swarm?", "")
    prompt = task.prompt(question, codec)
    parts = {name: codec.decode(prompt[slice(*part)]) for name, part in task.parts(question, prompt, codec).items()}
    assert parts["question"].strip() == "a swarm?"
    assert parts["turn"].startswith("<|im_end|>") and parts["turn"].endswith("assistant\n")
