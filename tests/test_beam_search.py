"""Beam search and DVTS: against the interpreter of threads, against the published loop over full forwards, and where sizes end."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import oracle
import reference_model
import replaying
from apr_jax import protocols
from apr_jax.decode import Engine, Problem, Stop, Transcript
from apr_jax.evaluate import metrics
from apr_jax.methods import BeamSearch as Method
from apr_jax.methods import EarlyVote, Sampling, TreeOfThoughts
from apr_jax.methods.judges import Asked
from apr_jax.pretrained.tokenizer import load
from apr_jax.protocols import BeamSearch, judges
from apr_jax.tasks.countdown import SHIPPED
from searching import STEP_ENDS, WORDS, Beam, best, forward, model, problems, searching
from test_engine import SIZES
from test_native import need_kernel

SEED = 5
CHOICES = dict(end=WORDS.end, step_ends=STEP_ENDS, beams=2, width=3, steps=6)
SEARCHES = {
    "beams": BeamSearch(**CHOICES, distinct=True),
    "subtrees": BeamSearch(**CHOICES, subtrees=2, score="last"),
    "published": BeamSearch(**CHOICES, finished="leave", score="sum"),
}


# ---- against the loop


@functools.cache
def right(name: str, number: int) -> tuple[Transcript, tuple[tuple[int, ...], ...]]:
    """What the interpreter makes of a problem, and the paths of the beams kept in the end, the best first."""
    last: list[Beam] = []
    program = functools.partial(searching, last=last)
    found = oracle.run(forward("float64"), problems()[number], SEARCHES[name], SEED, program=program)
    return found, tuple(beam.thread.path for beam in best(last, len(last), SEARCHES[name]))


@functools.cache
def decoded(name: str, sizes: str) -> tuple[Transcript, ...]:
    engine = Engine(model("float64"), SEARCHES[name], SIZES[sizes])
    found = sorted(engine.decode(problems(), seed=SEED), key=lambda transcript: transcript.problem)
    assert engine.traces == 1
    return tuple(found)


def voices(found: Transcript) -> list[int]:
    return list(Method(step_ends=()).voices(found))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("beams", "one row"), ("beams", "scarce rows"), ("beams", "plenty"), ("subtrees", "scarce rows"),
     ("published", "plenty")],
)  # fmt: skip
def test_f64_equals_the_oracle(name, sizes):
    seen = collections.Counter()
    for found in decoded(name, sizes):
        expected, kept = right(name, found.problem)
        oracle.compare(found, expected)
        assert tuple(found.threads[voice].path for voice in voices(found)) == kept
        assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
        seen.update(thread.stop.name for thread in found.threads[1:])
        seen["follows"] += sum(thread.follows >= 0 for thread in found.threads)
        seen["rounds"] = max(seen["rounds"], metrics.threads(found) // 6)
        seen["kept before the last round"] += any(
            found.threads[voice].path < found.threads[-1].path[:1] and len(found.threads) - voice > 6
            for voice in voices(found)
        )
    assert seen["follows"] > 100 and seen["LENGTH"] > 20 and seen["END"] > 100 and seen["rounds"] > 3, seen
    assert seen["kept before the last round"] >= 3, seen


def test_the_kernels_follow_from_their_own_tokens():
    need_kernel()
    engine = Engine(model("float32"), SEARCHES["beams"], SIZES["scarce rows"], kernel=True)
    run = functools.partial(oracle.run, forward("float32"))
    for found in engine.decode(problems(20), seed=SEED):

        def again(choose, found=found):
            program = functools.partial(searching, last=[])
            return run(problems(20)[found.problem], SEARCHES["beams"], SEED, program=program, choose=choose)

        replaying.replay(found, again, replaying.F32)


# ---- the published loop


def published(problem: Problem, protocol: BeamSearch) -> list[list[int]]:
    """`beam_search.py` of search-and-learn over full forwards: the completed texts, in the order of their completion.

    Its beams are texts; each of a round is extended by one step from a prompt that is encoded anew. The draws of the i-th
    request are those of the i-th child.
    """
    params, config = jax.tree.map(np.asarray, model("float64").params), model("float64").config
    root = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)
    prompt, requests, most = [int(token) for token in problem.prompt], 0, protocol.beams * protocol.width
    active, completed = [([], 0)] * most, []
    for iteration in range(protocol.steps):
        if iteration:
            active = (active * most)[:most]
        extended, last = [], iteration == protocol.steps - 1
        for text, score in active:
            uniforms = np.asarray(reference_model.uniforms(jax.random.fold_in(root, 1 + requests)))
            requests, text, done = requests + 1, list(text), False
            for drawn, uniform in enumerate(uniforms, start=1):
                tokens = np.array(prompt + text)
                logits = reference_model.all_logits(params, config, tokens, np.arange(len(tokens)))[-1]
                token, logprob, _ = reference_model.draw(logits, uniform, problem)
                text.append(token)
                score += int(np.round(logprob * 1024))
                stopped = token in protocol.step_ends and not last
                full = len(text) == problem.max_tokens
                cut = bool(problem.child_max_tokens) and not last and drawn == problem.child_max_tokens
                done = token == protocol.end or full or (cut and not stopped)
                if done or stopped:
                    break
            extended.append((text, score, done))
        completed += [text for text, _, done in extended if done]
        active = [(text, score) for text, score, done in extended if not done]
        order = sorted(range(len(active)), key=lambda i: -active[i][1])[: protocol.beams]
        active = [active[i] for i in sorted(order)]
        if not active:
            break
    return completed[:most]


def test_the_published_loop_over_full_forwards_completes_the_same_texts():
    method, several = Method(step_ends=()), 0
    for found in decoded("published", "plenty")[:15]:
        texts = [method.said(found, voice, None).tolist() for voice in sorted(voices(found))]
        assert texts == published(problems()[found.problem], SEARCHES["published"])
        several += len({tuple(text) for text in texts}) > 2
        assert found.own["place"].max() + 1 == len(texts)
        for voice in voices(found):
            chain = method.chain(found, voice)
            assert len(chain) == 1 or found.threads[chain[0]].follows == -1
            drawn = found.log.sampled & np.isin(found.log.thread, chain)
            assert found.own["total"][voice] == np.round(found.log.logprob[drawn] * 1024).sum()
            assert metrics.mean_logprob(found, chain) == pytest.approx(found.log.logprob[drawn].mean())
    assert several > 3, "the cases are worth it"


def test_a_subtree_may_answer_with_all_its_last_candidates():
    """As published for DVTS: of each subtree those that its best one was chosen from in its last round, finished or not."""
    method, unfinished = Method(step_ends=(), answers="last"), 0
    for found in decoded("subtrees", "scarce rows"):
        answers, tree = method.voices(found), found.own["tree"]
        for kept in voices(found):
            mates = [
                i
                for i, thread in enumerate(found.threads[1:], start=1)
                if tree[i] == tree[kept] and thread.follows == found.threads[kept].follows
            ]
            assert kept in mates and len(mates) == 3 and {*mates} <= {*answers}
            assert answers.index(kept) == min(map(answers.index, mates)), "the best one comes first"
            unfinished += sum(not found.own["finished"][i] for i in mates)
        assert len(answers) == len({*answers}) == 6
    assert unfinished > 10


# ---- where sizes end, and steps do not


def test_what_is_full_is_named_and_what_was_said_stands():
    """The others are decoded as ever, what there is of a problem is a beginning of what is right; released slots serve again."""
    sizes = dataclasses.replace(SIZES["scarce rows"], threads=31, slots=80, attention_block=80, log=180)
    stops, again = collections.Counter(), 0
    for found in Engine(model("float64"), SEARCHES["beams"], sizes).decode(problems(), seed=SEED):
        expected, _ = right("beams", found.problem)
        stops[found.stop] += 1
        if found.stop == Stop.END:
            oracle.compare(found, expected)
            again += (found.log.index >= 0).sum() > sizes.slots
            continue
        whole = {thread.path: expected.generated(i).tolist() for i, thread in enumerate(expected.threads)}
        for i, thread in enumerate(found.threads):
            said = found.generated(i).tolist()
            assert said == whole[thread.path][: len(said)]
    assert set(stops) == {Stop.END, Stop.THREADS_FULL, Stop.POOL_FULL, Stop.LOG_FULL}, stops
    assert again > 1, (stops, again)


def test_budgets_end_beams_in_every_state():
    """All at once, in all steps but the last, after a prompt that the root does not read, and where all say the same."""
    once, cut, unread, copies = decoded("beams", "scarce rows")[-4:]
    assert len(once.threads) == 7 and {thread.stop for thread in once.threads[1:]} <= {Stop.LENGTH, Stop.END}
    assert {thread.stop for thread in cut.threads[1:]} == {Stop.LENGTH, Stop.END}
    assert not (unread.log.thread == 0).any() and len(unread.threads) > 7
    assert len(voices(copies)) == 1 and (len(copies.threads) - 1) % 3 == 0, "of copies one is kept"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(beams=0), "beam_search.beams is 0; at least 1 is needed"),
        (dict(subtrees=3), "beams is 2; it must be a multiple of subtrees, 3"),
        (dict(subtrees=2, finished="leave"), "finished is 'leave'; with 2 subtrees only 'compete'"),
        (dict(score="best"), "score is 'best'; allowed are mean, sum, last"),
        (dict(end=8), "step_ends holds the id 8, which is end"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BeamSearch(**(CHOICES | change))


def test_candidates_that_would_be_copies_are_refused():
    with pytest.raises(ValueError, match="temperature is 0: the 4 candidates of each beam would be copies"):
        Method().check(Sampling())
    assert Method(width=1).check(Sampling())


def test_every_choice_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    choices = dict(beams=6, width=2, subtrees=3, steps=7, distinct=True)
    made = Method(step_ends=("<node>", "<sub>"), score="last", **choices).protocol(words)
    assert made == BeamSearch(words.id("<end>"), (words.id("<node>"), words.id("<sub>")), score="last", **choices)
    judge = Asked("<goal><go>", says=("1",), quotes=False)
    made = TreeOfThoughts(step_ends=("<node>",), judge=judge, **choices).protocol(words)
    assert made.judge == judges.Asked((words.id("<goal>"), words.id("<go>")), (words.id("1"),), False)
    assert {name: getattr(made, name) for name in choices} == choices
    assert EarlyVote(7).protocol(words) == protocols.EarlyVote(7, words.id("<end>"), words.id("<goal>"))
    with pytest.raises(ValueError, match="beam_search.width is 0; it must be a whole number of 1"):
        Method(width=0)
    with pytest.raises(ValueError, match="tree_of_thoughts.finished is 'leave'; with 2 subtrees"):
        TreeOfThoughts(subtrees=2, finished="leave")
    with pytest.raises(ValueError, match="asked.ask is empty"):
        TreeOfThoughts(step_ends=("<node>",), judge=Asked("")).protocol(words)
