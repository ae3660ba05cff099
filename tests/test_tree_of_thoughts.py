"""Tree of thoughts: against the interpreter of threads, against the published loop over full forwards, and its questions."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest

import oracle
import reference_model
import replaying
from apr_jax.decode import Engine, Problem, Source, Transcript
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.evaluate import metrics
from apr_jax.methods import TreeOfThoughts as Method
from apr_jax.methods import judges as configured
from apr_jax.pretrained.tokenizer import load
from apr_jax.protocols import Proposals, TreeOfThoughts, TreeSearch
from apr_jax.protocols.judges import Asked, Likelihood
from apr_jax.protocols.phrases import Phrases
from apr_jax.protocols.votes import Vote
from apr_jax.tasks.countdown import SHIPPED
from searching import CODEC, STEP_ENDS, WORDS, Beam, best, forward, model, problems, searching
from test_engine import SIZES
from test_native import need_kernel

SEED = 5
# Numbers of one, two and one letters; the fourth is of no candidate.
NUMBERS = Recogniser.of(CODEC, [Phrase(str(i), text) for i, text in enumerate(("b", "cd", "e", "f"), start=1)])
VOTE = Vote(NUMBERS, Phrases.of_ids(header=[(1,), (2, 2), (3,), (4,)], ask=[(5, 6)]), threads=3, tokens=6)
CHOICES = dict(end=WORDS.end, step_ends=STEP_ENDS, beams=2, width=2, steps=4)
TREES = {
    "yes": TreeOfThoughts(**CHOICES, judge=Asked((1, 7, 2), says=(4, 11)), distinct=True),
    "sure": TreeOfThoughts(**CHOICES, judge=Asked((12,), quotes=False)),
    "propose": Proposals(**CHOICES, judge=Asked((1, 7, 2), says=(4, 11)), propose=(12, 3)),
    "vote": TreeOfThoughts(**(CHOICES | dict(beams=3, width=1, steps=3)), judge=VOTE),
}


@functools.cache
def decoded(name: str, sizes: str) -> tuple[Transcript, ...]:
    engine = Engine(model("float64"), TREES[name], SIZES[sizes])
    found = sorted(engine.decode(problems(), seed=SEED), key=lambda transcript: transcript.problem)
    assert engine.traces == 1
    return tuple(found)


def interpreted(name: str, problem: Problem, last: list[Beam], **options) -> Transcript:
    program = functools.partial(searching, last=last)
    return oracle.run(forward("float64"), problem, TREES[name], SEED, program=program, **options)


@pytest.mark.parametrize(
    ("name", "sizes"), [("yes", "one row"), ("yes", "scarce rows"), ("sure", "scarce rows"), ("sure", "plenty")]
)
def test_f64_equals_the_oracle(name, sizes):
    seen = collections.Counter()
    for found in decoded(name, sizes):
        last: list[Beam] = []
        oracle.compare(found, interpreted(name, problems()[found.problem], last))
        voices = Method().voices(found)
        kept = best(last, len(last), TREES[name])
        assert [found.threads[voice].path for voice in voices] == [beam.thread.path for beam in kept]
        assert found.own["value"][voices].tolist() == [beam.value for beam in kept]
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        probes = np.flatnonzero(found.own["judges"])
        for probe in probes:
            asked = found.threads[probe].follows
            sources = found.log.source[found.log.thread == probe]
            quoted = TREES[name].judge.quotes and not found.own["finished"][asked]
            assert sources.tolist() == [Source.HANDED] * quoted + [Source.FED] * len(TREES[name].judge.ask)
            seen["quoted" if quoted else "not quoted"] += 1
        seen["rounds"] = max(seen["rounds"], int(found.own["steps"].max()))
        seen["kept one that likelihood would not"] += _differs(found)
    assert seen["not quoted"] > 30 and seen["rounds"] == 4 and seen["kept one that likelihood would not"] > 10, seen
    assert TREES[name].judge.quotes == (seen["quoted"] > 30)


def test_votes_equal_the_oracle():
    seen = collections.Counter()
    for found in decoded("vote", "scarce rows"):
        last: list[Beam] = []
        oracle.compare(found, interpreted("vote", problems()[found.problem], last))
        voices, own = Method().voices(found), found.own
        kept = best(last, len(last), TREES["vote"])
        assert [found.threads[voice].path for voice in voices] == [beam.thread.path for beam in kept]
        assert own["value"][voices].tolist() == [beam.value for beam in kept]
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        voters = own["judges"]
        fed = (found.log.source == Source.FED) & voters[found.log.thread]
        assert (np.bincount(found.log.thread[fed], minlength=len(voters))[voters] > 4).all()
        silent, lost = voters & (own["note.label"] < 0), voters & (own["note.label"] == 3)
        errors = Method(judge=configured.Vote()).format_errors(found)
        assert errors.get("vote without a number", 0) == silent.sum()
        assert errors.get("vote for no candidate", 0) >= lost.sum()
        seen += collections.Counter(silent=silent.sum(), lost=lost.sum(), cast=(own["value"][voters] > 0).sum())
        seen["several"] += len(set(own["value"][voices].tolist())) > 1
        seen["whole"] += any(beam.finished and beam.value for beam in kept)
    assert min(seen["silent"], seen["lost"], seen["cast"], seen["several"], seen["whole"]) > 10, seen


def test_a_vote_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    chosen = dict(header="<goal>{}", ask="<goal>", says="{}", choices=3, threads=2, tokens=5)
    made = configured.Vote(**chosen).made(words)
    assert [phrase.text for phrase in made.numbers.phrases] == ["1", "2", "3"]
    assert made.phrases.names == ("header", "ask") and (made.threads, made.tokens, made.choices) == (2, 5, 3)
    for refused, message in (
        (lambda: configured.Vote(header="Choice"), "vote.header is 'Choice'; it must hold {}"),
        (lambda: configured.Vote(choices=10), "of 10 choices 1 begins 10, so let the text go on after {}"),
        (lambda: configured.Vote(threads=0), "vote.threads is 0"),
        (lambda: TreeOfThoughts(**(CHOICES | dict(beams=5, width=1)), judge=VOTE), "has 4 numbers; its 5 candidates"),
        (lambda: TreeSearch(end=1, step_ends=(2,), judge=VOTE), "tree_search.judge is a vote"),
        (lambda: dataclasses.replace(VOTE, phrases=Phrases.of_ids(ask=[(1,)])), "vote.phrases lack header"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            refused()


def _differs(found: Transcript) -> bool:
    """Whether values rank the last candidates otherwise than the log-probability of their tokens does."""
    last = np.flatnonzero(found.own["final"] & ~found.own["judges"])
    by = [np.argsort(-found.own[name][last], kind="stable").tolist() for name in ("value", "total")]
    return by[0] != by[1]


def test_the_kernels_follow_from_their_own_tokens():
    need_kernel()
    engine = Engine(model("float32"), TREES["yes"], SIZES["scarce rows"], kernel=True)
    for found in engine.decode(problems(20), seed=SEED):

        def again(choose, found=found):
            program = functools.partial(searching, last=[])
            problem = problems(20)[found.problem]
            return oracle.run(forward("float32"), problem, TREES["yes"], SEED, program=program, choose=choose)

        replaying.replay(found, again, replaying.F32)


def published(problem: Problem, protocol: TreeOfThoughts) -> list[list[int]]:
    """`bfs.py` of tree-of-thought-llm (sample, value, greedy) over full forwards: the texts selected last, the best first.

    The frontier are texts. A text that has ended is not extended, but stays with its value. Prompts are encoded anew for
    each request; the draws of a request are those of the child with its number among all requests, those for values too.
    """
    params, config = jax.tree.map(np.asarray, model("float64").params), model("float64").config
    root = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)
    prompt, requests, judge = [int(token) for token in problem.prompt], 0, protocol.judge

    def logprobs(text):
        tokens = np.array(prompt + text)
        logits = reference_model.all_logits(params, config, tokens, np.arange(len(tokens)))[-1].astype(np.float64)
        return logits, reference_model.log_softmax(logits)

    frontier, done = [[]] * protocol.beams, []
    for depth in range(protocol.steps):
        thoughts = []
        for text in frontier * protocol.width:
            uniforms = np.asarray(reference_model.uniforms(jax.random.fold_in(root, 1 + requests)))
            requests, text, over = requests + 1, list(text), False
            for drawn, uniform in enumerate(uniforms, start=1):
                text.append(reference_model.draw(logprobs(text)[0], uniform, problem)[0])
                stepped = text[-1] in protocol.step_ends and depth < protocol.steps - 1
                limited = problem.child_max_tokens and depth < protocol.steps - 1
                cut = not stepped and limited and drawn == problem.child_max_tokens
                over = text[-1] == protocol.end or cut or len(text) == problem.max_tokens
                if over or stepped:
                    break
            thoughts.append((text, over))
        valued = []
        for text, over in thoughts:
            told = logprobs([*(text if judge.quotes and not over else text[:-1]), *judge.ask])[1]
            value = np.logaddexp.reduce(told[list(judge.says)]) if judge.says else told.max()
            valued.append((text, over, int(np.round(value * 1024))))
        requests += len(thoughts)
        standing = done + valued
        order = sorted(range(len(standing)), key=lambda i: -standing[i][2])[: protocol.beams]
        done = [standing[i] for i in sorted(order) if standing[i][1]]
        frontier = [standing[i][0] for i in sorted(order) if not standing[i][1]]
        if not frontier:
            break
    return [standing[i][0] for i in order]


def test_the_published_loop_over_full_forwards_selects_the_same_texts():
    method, several = Method(), 0
    for found in decoded("sure", "plenty")[:15]:
        texts = [method.said(found, voice, None).tolist() for voice in method.voices(found)]
        right = published(problems()[found.problem], TREES["sure"])
        assert texts == right
        several += len({tuple(text) for text in texts}) > 1 and found.own["steps"].max() > 2
    assert several > 2, "the cases are worth it"


def proposed(problem: Problem, protocol: Proposals) -> tuple[list[list[int]], collections.Counter]:
    """`bfs.py` (propose, value, greedy) over full forwards: the texts selected last, the best first, and what happened.

    Draws are those of the request with its number among all requests; a candidate takes a number, and draws nothing.
    """
    params, config = jax.tree.map(np.asarray, model("float64").params), model("float64").config
    root = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)
    prompt, requests, judge, events = [int(token) for token in problem.prompt], 0, protocol.judge, collections.Counter()

    def logits(text):
        tokens = np.array(prompt + text)
        return reference_model.all_logits(params, config, tokens, np.arange(len(tokens)))[-1].astype(np.float64)

    def lines(text, number):
        uniforms = np.asarray(reference_model.uniforms(jax.random.fold_in(root, 1 + number)))
        whole, line, asked = [], [], [*text, *protocol.propose]
        for uniform in uniforms[: problem.child_max_tokens or problem.max_tokens]:
            token = reference_model.draw(logits(asked), uniform, problem)[0]
            asked.append(token)
            if token != protocol.end:
                line.append(token)
            if token == protocol.end or token in protocol.step_ends:
                empty = not set(line) - set(protocol.step_ends)
                events["empty"] += empty
                events["no separator"] += token == protocol.end and not empty
                whole, line = whole + [line] * (not empty), []
            if token == protocol.end or len(whole) == protocol.width:
                break
        events["cut"] += bool(line)
        events["silent"] += not whole
        return whole

    frontier, done, standing, order = [[]], [], [], []
    for depth in range(1, 1 + protocol.steps):
        found = [lines(text, requests + i) for i, text in enumerate(frontier)]
        requests += len(frontier)
        thoughts = [text + line for text, whole in zip(frontier, found, strict=True) for line in whole]
        standing = list(done)
        for text in thoughts:
            told = reference_model.log_softmax(logits([*text, *judge.ask]))
            over = depth == protocol.steps or len(text) >= problem.max_tokens
            standing.append((text, over, int(np.round(np.logaddexp.reduce(told[list(judge.says)]) * 1024))))
        requests += 2 * len(thoughts)
        order = sorted(range(len(standing)), key=lambda i: -standing[i][2])[: protocol.beams]
        done = [standing[i] for i in sorted(order) if standing[i][1]]
        frontier = [standing[i][0] for i in sorted(order) if not standing[i][1]]
        if not frontier:
            break
    return [standing[i][0] for i in order], events


def test_the_published_loop_over_full_forwards_proposes_the_same_texts():
    seen, method = collections.Counter(), Method(propose="x")
    for found in decoded("propose", "scarce rows")[:28]:
        right, events = proposed(problems()[found.problem], TREES["propose"])
        assert [method.said(found, voice, None).tolist() for voice in method.voices(found)] == right
        assert method.format_errors(found).get("nothing proposed", 0) == events["silent"]
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        assert not (found.own["proposes"] & (found.own["place"] >= 0)).any()
        seen += events
        seen["deep"] += found.own["steps"].max() == TREES["propose"].steps and len(right) > 1
    assert min(seen[name] for name in ("empty", "no separator", "cut", "silent", "deep")) > 1, seen


def test_proposals_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    chosen = dict(step_ends=("<node>",), beams=2, width=3, judge=configured.Asked("<goal>"))
    made = Method(**chosen, propose="<goal>").protocol(words)
    assert type(made) is Proposals and made.propose == (words.id("<goal>"),) and (made.beams, made.width) == (2, 3)
    assert type(Method(**chosen).protocol(words)) is TreeOfThoughts
    for change, message in (
        (dict(propose=()), "proposals.propose is empty; a proposer is fed at least 1 token"),
        (dict(judge=Likelihood()), "proposals.judge is Likelihood; proposed thoughts need one that asks"),
        (dict(subtrees=2), "proposals: subtrees is 2, finished 'compete'; all proposals compete"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(made, **change)


def test_a_tree_without_a_question_is_refused():
    with pytest.raises(ValueError, match="asked.ask is empty; a probe is fed at least 1 token"):
        Asked(())
