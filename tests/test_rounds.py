"""Rounds: against an interpreter of their rule, against a client over full forwards, and where threads have nothing to tell."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import oracle
import reference_model
import replaying
import searching
import vocabularies
from apr_jax.decode import Engine, Problem, Source, Stop, Transcript
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.evaluate import metrics
from apr_jax.methods import Rounds as Method
from apr_jax.methods import Sampling
from apr_jax.methods.rounds import Template
from apr_jax.pretrained.tokenizer import load
from apr_jax.protocols import Rounds
from apr_jax.protocols.phrases import Phrases
from apr_jax.protocols.rounds import Round
from apr_jax.tasks.countdown import SHIPPED
from apr_jax.tasks.countdown.task import Countdown
from apr_jax.tasks.language.task import shown
from phrase_matcher import Plain, Table
from searching import WORDS
from test_engine import SIZES
from test_native import need_kernel

SEED = 6
model = functools.partial(searching.model, end=1.0, steps=1.5)
forward = functools.partial(searching.forward, end=1.0, steps=1.5)
# Reasoning ends at "ik", said in one token, in two, or in a token that holds more.
CODEC = Table([b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h", b"i", b"ik", b"k", b"kik", b"l", b"ikx", b"m", b"n"])
WORD = Phrase("reasoning", "ik")
PHRASES = dict(before=[(), (3, 1)], header=[(12,), (12, 12), (12, 0), (14,), (), (14, 1)], after=[(2, 9), (15,)])


def made(rounds, most: int, reasoning: bool, shuffled: bool) -> Rounds:
    header = [PHRASES["header"][3 * (i // most) + i % most % 3] for i in range(2 * most)]
    phrases = Phrases.of_ids(**{**PHRASES, "header": header})
    ends = Recogniser.of(CODEC, [WORD]) if reasoning else None
    return Rounds(WORDS.end, tuple(Round(*each) for each in rounds), phrases, ends, shuffled)


RULES = {
    "pacore": made([(4,), (2, 0, 1), (1, 0, 1)], 4, True, True),
    "rsa": made([(3,), (3, 2), (3, 2)], 2, False, True),
    "pdr": made([(3,), (1, 0, 1), (2, 2, 0), (1,)], 3, True, False),
}


@functools.cache
def problems(count: int = 24) -> tuple[Problem, ...]:
    """Those of the searches; each calls some part of its prompt the question, be it all of it or none."""
    rng, parted = np.random.default_rng(2), []
    for problem in searching.problems()[:count]:
        ends = sorted(rng.integers(0, len(problem.prompt) + 1, 2).tolist())
        parted.append(dataclasses.replace(problem, parts={"question": tuple(ends)}))
    return tuple(parted)


@functools.cache
def decoded(name: str, sizes: str) -> tuple[Transcript, ...]:
    engine = Engine(model("float64"), RULES[name], SIZES[sizes])
    found = sorted(engine.decode(problems(), seed=SEED), key=lambda transcript: transcript.problem)
    assert engine.traces == 1
    return tuple(found)


# ---- the rule once more: what a thread tells, what a thread is fed


def told(said: list[int], rule: Rounds) -> list[int]:
    """The message of a thread that sampled these tokens."""
    matcher, start = Plain(CODEC, (WORD,)), -1 if rule.reasoning else 0
    for number, token in enumerate(said, start=1):
        start = number if rule.reasoning and matcher.step(token) else start
    return [] if start < 0 else said[start : len(said) - (said[-1] == rule.end)]


def orders(key, place: int, told: int, rule: Rounds) -> list[list[int]]:
    """Which messages each thread of a round reads, by the key of the problem."""
    each, most = rule.rounds[place], max(one.threads for one in rule.rounds)
    key = jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), place)
    chance = np.asarray(jax.random.uniform(key, (most, most), np.float32))
    picked = [
        sorted(range(told), key=lambda j, row=row: row[j])[: each.reads or None] for row in chance[: each.threads]
    ]
    return picked if rule.shuffled else list(map(sorted, picked))


def asked(
    prompt: list[int], part: tuple[int, int], read: list[list[int]], each: Round, rule: Rounds
) -> tuple[list[int], int | None]:
    """What a thread sees before it samples, and how many of these tokens the root has read for it; None: it sees itself only."""
    end = min(part[1], len(prompt) - 1)
    begin = min(part[0], end)
    if not read:
        return prompt, end
    headers = PHRASES["header"][3 * each.template :]
    said = [token for number, message in enumerate(read) for token in (*headers[number % 3], *message)]
    before, after = PHRASES["before"][each.template], PHRASES["after"][each.template]
    whole = [*prompt[:begin], *before, *prompt[begin:end], *said, *after, *prompt[end:]]
    return whole, None if before else end


def answering(world: oracle.World, thread: oracle.Thread, fed: list[int], budget: int, rule: Rounds) -> oracle.Program:
    """One thread of a round."""
    yield from thread.feed_tokens(fed)
    while True:
        entry = world.sample(thread)
        said = [one.token for one in thread.entries[len(fed) :]]
        if entry.token == rule.end:
            thread.stop = Stop.END if not rule.reasoning or _reasoned(said) else Stop.MALFORMED
        elif thread.generated == budget:
            thread.stop = Stop.LENGTH
        if thread.stop is not None:
            thread.message = told(said, rule)
            return
        yield []
        thread.feed(entry)


def _reasoned(said: list[int]) -> bool:
    matcher = Plain(CODEC, (WORD,))
    return any([matcher.step(token) for token in said])


def program(world: oracle.World, root: oracle.Thread, prompt: list[int], rule: Rounds) -> oracle.Program:
    """The coordinator."""
    problem, told = world.problem, []
    yield from root.feed_tokens(prompt[: asked(prompt, problem.parts["question"], [], rule.rounds[0], rule)[1]])
    for place, each in enumerate(rule.rounds):
        children = [root.open() for _ in range(each.threads)]
        limit = problem.child_max_tokens if place < len(rule.rounds) - 1 else 0
        for child, order in zip(children, orders(root.key, place, len(told), rule), strict=True):
            text, shared = asked(prompt, problem.parts["question"], [told[i] for i in order], each, rule)
            child.floor, child.count = max(root.clock, root.floor), root.count
            if shared is not None:
                child.seen, child.next_position = [root, child], root.next_position
            world.start(child, answering(world, child, text[shared or 0 :], limit or problem.max_tokens, rule))
        yield from root.await_children(children)
        told = [child.message for child in children if child.message]
    root.stop = Stop.END


@pytest.mark.parametrize(("name", "sizes"), [("pacore", "scarce rows"), ("rsa", "one row"), ("pdr", "plenty")])
def test_f64_equals_the_oracle(name, sizes):
    rule, seen = RULES[name], collections.Counter()
    for found in decoded(name, sizes):
        problem = problems()[found.problem]
        oracle.compare(found, oracle.run(forward("float64"), problem, rule, SEED, program=program))
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        seen.update(thread.stop.name for thread in found.threads[1:])
        later = found.log.thread > rule.rounds[0].threads
        seen["read"] += np.sum(later & (found.log.source == Source.FED)) > 20
        seen["shared"] += bool(found.sees[1 + rule.rounds[0].threads, 0])
        seen["fed anew"] += not found.sees[1 + rule.rounds[0].threads, 0]
    assert seen["read"] > 10 and seen["END"] > 10 and seen["LENGTH"] > 10, seen
    assert (seen["MALFORMED"] > 10) == (rule.reasoning is not None), seen
    assert seen["shared"] > 1 and (seen["fed anew"] > 10) == (name != "rsa"), seen


def test_the_kernels_follow_from_their_own_tokens():
    need_kernel()
    engine = Engine(model("float32"), RULES["pacore"], SIZES["scarce rows"], kernel=True)
    for found in engine.decode(problems(12), seed=SEED):

        def again(choose, found=found):
            problem = problems(12)[found.problem]
            return oracle.run(forward("float32"), problem, RULES["pacore"], SEED, program=program, choose=choose)

        replaying.replay(found, again, replaying.F32)


# ---- the client: each request is a prompt of its own


def client(problem: Problem, rule: Rounds) -> list[list[int]]:
    """All answers, round by round, each from one full forward a token over a prompt that is encoded anew."""
    params, config = jax.tree.map(np.asarray, model("float64").params), model("float64").config
    root = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)
    prompt, answers, messages = problem.prompt.tolist(), [], []
    for place, each in enumerate(rule.rounds):
        last, responses = place == len(rule.rounds) - 1, []
        for order in orders(root, place, len(messages), rule):
            text, _ = asked(prompt, problem.parts["question"], [messages[i] for i in order], each, rule)
            uniforms = np.asarray(reference_model.uniforms(jax.random.fold_in(root, 1 + len(answers))))
            said: list[int] = []
            while len(said) < (problem.max_tokens if last else problem.child_max_tokens or problem.max_tokens):
                ids = np.array([*text, *said])
                logits = reference_model.all_logits(params, config, ids, np.arange(len(ids)))[-1]
                said.append(reference_model.draw(logits, uniforms[len(said)], problem)[0])
                if said[-1] == rule.end:
                    break
            responses.append(said)
            answers.append(said)
        messages = [message for message in (told(said, rule) for said in responses) if message]
    return answers


@pytest.mark.parametrize(("name", "sizes"), [("pacore", "scarce rows"), ("rsa", "one row"), ("pdr", "plenty")])
def test_the_client_over_full_forwards_says_the_same(name, sizes):
    rule = RULES[name]
    for found in decoded(name, sizes)[:8]:
        answers = client(problems()[found.problem], rule)
        assert [found.generated(i).tolist() for i in range(1, len(found.threads))] == answers
        voices = Method(rounds=rule.rounds, templates=(Template(), Template())).voices(found)
        assert list(voices) == list(range(1, len(answers) + 1))[-rule.rounds[-1].threads :]


def test_one_that_tells_nothing_is_left_out_and_all_may():
    """Where no thread of a round has ended its reasoning, the next one is fed the prompt as it is."""
    rule, unread = RULES["pacore"], 0
    for found in decoded("pacore", "scarce rows"):
        problem, first = problems()[found.problem], range(1, 5)
        if any(told(found.generated(i).tolist(), rule) for i in first):
            continue
        unread += 1
        cut = min(problem.parts["question"][1], len(problem.prompt) - 1)
        fed = found.log.token[(found.log.thread == 5) & (found.log.source == Source.FED)]
        assert fed.tolist() == problem.prompt[cut:].tolist() and found.sees[5, 0]
    assert unread > 1


def test_every_piece_of_a_message_has_room():
    """Of rounds of many the pieces are as many as all readers' messages, not as the threads'."""
    needs = made([(8,), (8, 0, 1), (8, 0, 1)], 8, False, True).needs
    assert needs.threads == 25 and needs.room(25) >= 8 * 5 + 2 * 8 * (5 + 2 * 8)


# ---- as configurations name it


def test_every_choice_can_be_configured():
    codec = vocabularies.byte_level()
    templates = (Template(), Template("Read. ", "{number}: ", ""))
    method = Method(
        end="", rounds=(Round(3), Round(2, 2, 1), Round(1)), templates=templates, reasoning="</think>", shuffled=False
    )
    rule, phrases = method.protocol(codec), method.protocol(codec).phrases
    assert (rule.rounds, rule.shuffled, rule.most) == (method.rounds, False, 2)
    assert [phrase.text for phrase in rule.reasoning.phrases] == ["</think>"]
    texts = [
        [codec.decode(phrases.tokens[start : start + length]) for start, length in zip(*each, strict=True)]
        for each in zip(phrases.starts, phrases.lengths, strict=True)
    ]
    headers = [f"\n\nAnswer {number}:\n" for number in (1, 2)] + ["1: ", "2: "]
    assert texts == [["", "Read. "], headers, [templates[0].after, ""]]
    assert Method(end="").protocol(codec).reasoning is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Method(rounds=(Round(3),)), "rounds.rounds has 1; at least 2 are needed"),
        (lambda: Method(rounds=(Round(3), Round(1, 0, 1))), "round 2 has template 1; there are 1, from 0 on"),
        (lambda: Round(0), "round.threads is 0; it must be a whole number of 1"),
        (lambda: Method().check(Sampling()), "the 4 threads of the first round would say the same"),
        (
            lambda: dataclasses.replace(RULES["rsa"], phrases=Phrases.of_ids(before=[()])),
            "phrases has 0 of header; 1 templates need 2",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_question_is_found_in_its_prompt():
    """By its bytes, in the tokens that hold any of them, where it stands last; a prompt that does not show it is refused."""
    tokens = CODEC.encode("ikaikxcikd")
    assert [CODEC.table[i] for i in tokens] == [b"ik", b"a", b"ikx", b"c", b"ik", b"d"]
    assert [shown(CODEC, tokens, text) for text in ("ik", " xc ", "d")] == [(4, 5), (2, 4), (5, 6)]
    with pytest.raises(ValueError, match="does not show the question 'kk' as it is"):
        shown(CODEC, tokens, "kk")
    task, codec = Countdown(problems_per_setting=1), load(str(SHIPPED / "compact.model"))
    question = task.questions(0)[0]
    begin, end = task.parts(question, prompt := task.prompt(question, codec), codec)["question"]
    assert codec.decode(prompt[begin:end]) == f"{question.target}:{','.join(map(str, question.nums))}"
