"""ParaThinker's two stages against its client, written plainly: one full list of what each token sees, no pool and no clocks."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import fuzz_programs
import reference_model
from apr_jax.decode import Engine, Problem, Sizes, Source, Stop
from apr_jax.evaluate.causality import causality, depths
from apr_jax.model.transformer import Model
from apr_jax.protocols import TwoStage
from reference_model import Fed

SEED = 4
BEGINS, ENDS, STOP, SUMMARY, CLOSE, PAD = ((20, 3), (21,), (22, 4)), (16, 17, 18), 19, (14, 2, 9), 15, 13
CONFIG = dataclasses.replace(fuzz_programs.CONFIG, vocabulary=24)
SIZES = {
    "few rows": Sizes(problems=2, lanes=2, rows=3, feed_tiles=1, feed_chunk=4, feed_threshold=2, threads=4, slots=256, page_size=4,
                      log=256, log_page_size=4, queue=32, prompt=8, outbox=4, attention_block=64),
    "one row": Sizes(problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0, threads=4, slots=256, page_size=1,
                     log=256, log_page_size=1, queue=32, prompt=8, outbox=4, attention_block=64),
    "plenty": Sizes(problems=4, lanes=4, rows=16, feed_tiles=4, feed_chunk=16, feed_threshold=8, threads=6, slots=256, page_size=16,
                    log=256, log_page_size=16, queue=32, prompt=8, outbox=4, attention_block=128),
}  # fmt: skip
CHOICES = {
    "first": dict(enough=1),
    "two": dict(enough=2),
    "last": dict(enough=3),
    "padded": dict(enough=2, block=4, pad=PAD),
}


def protocol(name: str) -> TwoStage:
    return TwoStage(BEGINS, ENDS, SUMMARY, CLOSE, stops=(STOP,), **CHOICES[name])


@functools.cache
def model() -> Model:
    return fuzz_programs.random_model(CONFIG)


def problems(count: int) -> list[Problem]:
    rng = np.random.default_rng(3)
    return [
        Problem(
            i, rng.integers(0, 24, rng.integers(1, 8)).astype(np.int32), temperature=float(rng.choice([0.0, 1.0, 1.3])),
            top_k=int(rng.choice([0, 0, 8])), max_tokens=int(rng.integers(4, 24)), child_max_tokens=int(rng.choice([0, 6, 20])),
        )
        for i in range(count)
    ]  # fmt: skip


class Client:
    """The published engine's two stages, one token of every path at a time."""

    def __init__(self, forward, rule: TwoStage, problem: Problem, choose=None):
        self.forward, self.rule, self.problem = forward, rule, problem
        self.choose = choose or (lambda path, number, logits, uniform: reference_model.draw(logits, uniform, problem))
        self.key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)

    def feed(self, seen: list[Fed], token: int, position: int) -> None:
        seen.append(Fed(token, position))
        seen[-1].sees = list(seen)

    def draw(self, path, key, number, seen):
        logits = self.forward(seen[-1])
        token, logprob, _ = self.choose(path, number, logits, float(np.asarray(reference_model.uniforms(key))[number]))
        return token, logprob

    def run(self) -> tuple[list[list[int]], list[Stop], list[float], list[int]]:
        """Tokens of the root and of the paths, why they ended, log-probabilities in order, the position of each one's last."""
        rule, problem, scores = self.rule, self.problem, []
        prompt: list[Fed] = []
        padding = -(len(problem.prompt) + 1) % rule.block
        for token in [*problem.prompt.tolist(), *[rule.pad] * padding]:
            self.feed(prompt, token, len(prompt))
        paths = [list(prompt) for _ in rule.begins]
        told, stops, arrived = [[] for _ in paths], [Stop.RUNNING] * len(paths), []
        wanted = [[(token, "forced") for token in begin] for begin in rule.begins]  # what each is to be fed next
        drawn = [[] for _ in paths]
        keys = [jax.random.fold_in(self.key, 1 + i) for i in range(len(paths))]
        strays = (*(begin[0] for begin in rule.begins), rule.summary[0])

        def step(i: int) -> None:
            token = wanted[i].pop(0)[0]
            told[i].append(token)
            self.feed(paths[i], token, len(paths[i]))

        while len(arrived) < rule.enough:
            for i in range(len(paths)):  # one row of each
                if not wanted[i]:
                    continue
                step(i)
                if wanted[i] or stops[i] != Stop.RUNNING:
                    continue
                token, score = self.draw(i, keys[i], len(drawn[i]), paths[i])
                drawn[i].append(score)
                if token in (*rule.ends, *rule.stops, rule.close):
                    rest = -(len(told[i]) + 1) % rule.block
                    wanted[i], stops[i] = [(rule.ends[i], "drawn"), *[(rule.pad, "padding")] * rest], Stop.END
                else:
                    wanted[i] = [(rule.begins[0][0] if token in strays else token, "drawn")]
                    budget = problem.child_max_tokens or problem.max_tokens
                    stops[i] = Stop.LENGTH if len(drawn[i]) >= budget else stops[i]
            pads = [any(kind == "padding" for _, kind in each) for each in wanted]
            arrived = [i for i, stop in enumerate(stops) if stop != Stop.RUNNING and not pads[i]]
        for i in range(len(paths)):
            if [kind for _, kind in wanted[i]][:1] == [
                "drawn"
            ]:  # what was sampled last is fed, padding that was to follow is not
                step(i)
            stops[i] = Stop.CUT if stops[i] == Stop.RUNNING else stops[i]
        for i in range(len(paths)):
            scores += drawn[i]
        seen = [*prompt, *(fed for path in paths for fed in path[len(prompt) :])]
        position = max(map(len, paths))
        root, number, final = [*problem.prompt.tolist(), *[rule.pad] * padding], 0, []
        for token in rule.summary:
            self.feed(seen, token, position)
            root, position = [*root, token], position + 1
        while True:
            token, score = self.draw(None, self.key, number, seen)
            number, root = number + 1, [*root, token]
            final.append(score)
            if token == rule.close or number >= problem.max_tokens:
                stop = Stop.END if token == rule.close else Stop.LENGTH
                return [root, *told], [stop, *stops], [*final, *scores], position
            self.feed(seen, token, position)
            position += 1


def check(transcript, client: Client) -> collections.Counter:
    texts, stops, scores, _ = client.run()
    name = f"problem {transcript.problem}"
    assert [thread.stop for thread in transcript.threads] == stops, name
    assert [transcript.tokens(i).tolist() for i in range(len(stops))] == texts, name
    np.testing.assert_allclose(transcript.log.logprob[transcript.log.sampled], scores, atol=1e-4, err_msg=name)
    log = transcript.log
    fed = log.index >= 0
    paths = fed & (log.thread > 0)
    starts = [log.position[(log.thread == i) & (log.index == 0)][0] for i in range(1, len(stops))]
    assert (
        len(set(starts)) == 1
        and starts[0] == log.index[(log.thread == 0) & (log.clock < log.clock[paths].min())].max() + 1
    )
    first = np.flatnonzero((log.thread == 0) & fed & (log.clock > log.clock[paths].max()))[0]
    assert log.position[first] == log.position[paths].max() + 1 and log.token[first] == client.rule.summary[0]
    order = depths(causality(transcript), log.sampled)
    np.testing.assert_array_equal(order[log.sampled], log.depth[log.sampled], err_msg=name)
    found = collections.Counter(stop.name for stop in stops[1:])
    found["rewritten"] = int(np.sum(log.source == Source.REWRITTEN))
    return found


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", CHOICES)
def test_tokens_are_those_of_the_client(name, sizes):
    asked, found = problems(24), collections.Counter()
    forward = reference_model.transformer(model().params, model().config)
    engine = Engine(model(), protocol(name), SIZES[sizes])
    for transcript in engine.decode(asked, seed=SEED):
        found += check(transcript, Client(forward, protocol(name), asked[transcript.problem]))
    assert engine.traces == 1
    wanted = ["END", "LENGTH", "rewritten"] + ["CUT"] * (name in ("first", "two", "padded"))
    assert all(found[what] >= 4 for what in wanted), found


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (dict(ends=(16,)), "two_stage.ends has 1 words for 3 paths"),
        (dict(enough=4), "two_stage.enough is 4; it must be from 1 to the number of paths, 3"),
        (dict(block=0), "two_stage.block is 0; it must be at least 1"),
        (dict(summary=()), "need at least one forced token"),
    ],
)
def test_choices_that_make_no_sense_are_refused(fields, error):
    with pytest.raises(ValueError, match=error):
        TwoStage(**(dict(begins=BEGINS, ends=ENDS, summary=SUMMARY, close=CLOSE) | fields))
