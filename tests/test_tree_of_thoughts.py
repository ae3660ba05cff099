"""Tree of thoughts: against the interpreter of threads, against the published loop over full forwards, and its questions."""

import collections
import functools

import jax
import numpy as np
import pytest

import oracle
import reference_model
import replaying
from apr_jax.decode import Engine, Problem, Source, Transcript
from apr_jax.evaluate import metrics
from apr_jax.methods import TreeOfThoughts as Method
from apr_jax.protocols import TreeOfThoughts
from apr_jax.protocols.judges import Asked
from searching import STEP_ENDS, WORDS, Beam, best, forward, model, problems, searching
from test_engine import SIZES
from test_native import need_kernel

SEED = 5
CHOICES = dict(end=WORDS.end, step_ends=STEP_ENDS, beams=2, width=2, steps=4)
TREES = {
    "yes": TreeOfThoughts(**CHOICES, judge=Asked((1, 7, 2), says=(4, 11)), distinct=True),
    "sure": TreeOfThoughts(**CHOICES, judge=Asked((12,), quotes=False)),
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


def test_a_tree_without_a_question_is_refused():
    with pytest.raises(ValueError, match="asked.ask is empty; a probe is fed at least 1 token"):
        Asked(())
