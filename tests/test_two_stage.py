"""ParaThinker's two stages against its client, written plainly: one full list of what each token sees, no pool and no clocks.

The models tell paths apart by an embedding.
"""

import collections
import dataclasses
import functools
import types
from collections.abc import Callable

import jax
import numpy as np
import pytest

import fuzz_programs
import reference_model
import replaying
import test_engine
import vocabularies
from apr_jax.decode import Engine, Problem, Sizes, Source, Stop, Transcript
from apr_jax.evaluate.causality import causality, depths
from apr_jax.methods import ParaThinker
from apr_jax.model.transformer import Model
from apr_jax.protocols import TwoStage
from reference_model import Fed

SEED = 4
BEGINS, ENDS, STOP, SUMMARY, CLOSE, PAD, STRAY = ((20, 3), (21,), (22, 4)), (16, 17, 18), 19, (14, 2, 9), 15, 13, 23
CONFIG = dataclasses.replace(fuzz_programs.CONFIG, vocabulary=24, branch_embedding=4)
SIZES = {
    "few rows": Sizes(problems=2, lanes=2, rows=3, feed_tiles=1, feed_chunk=4, feed_threshold=2, threads=4, slots=256, page_size=4,
                      log=256, log_page_size=4, queue=32, prompt=8, outbox=4, attention_block=64),
    "one row": Sizes(problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0, threads=4, slots=256, page_size=1,
                     log=256, log_page_size=1, queue=32, prompt=8, outbox=4, attention_block=64),
    "plenty": Sizes(problems=4, lanes=4, rows=16, feed_tiles=4, feed_chunk=16, feed_threshold=8, threads=6, slots=256, page_size=16,
                    log=256, log_page_size=16, queue=32, prompt=8, outbox=4, attention_block=128),
}  # fmt: skip
# Each with the sizes it runs on.
CHOICES = {
    "first": (dict(enough=1), "plenty"),
    "two": (dict(enough=2), "one row"),
    "last": (dict(enough=3), "few rows"),
    "padded": (dict(enough=2, block=4, pad=PAD), "few rows"),
}


def protocol(name: str) -> TwoStage:
    return TwoStage(BEGINS, ENDS, SUMMARY, CLOSE, stops=(STOP,), strays=(STRAY,), **CHOICES[name][0])


@functools.cache
def model(dtype: str = "float64") -> Model:
    kernels = dict(head_dim=16) if dtype == "float32" else {}
    return fuzz_programs.random_model(dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype, **kernels))


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

    def feed(self, seen: list[Fed], token: int, position: int, branch: int = 0) -> None:
        seen.append(Fed(token, position, branch))
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
        strays = (*(begin[0] for begin in rule.begins), *rule.strays, rule.summary[0])

        def step(i: int) -> None:
            token = wanted[i].pop(0)[0]
            told[i].append(token)
            self.feed(paths[i], token, len(paths[i]), 1 + i)

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
    assert [thread.branch for thread in transcript.threads] == list(range(len(stops))), name
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


@pytest.mark.parametrize("name", CHOICES)
def test_tokens_are_those_of_the_client(name):
    asked, found, sizes = problems(24), collections.Counter(), CHOICES[name][1]
    forward = reference_model.transformer(model().params, model().config)
    engine = Engine(model(), protocol(name), SIZES[sizes])
    for transcript in engine.decode(asked, seed=SEED):
        found += check(transcript, Client(forward, protocol(name), asked[transcript.problem]))
    assert engine.traces == 1
    wanted = ["END", "LENGTH", "rewritten"] + ["CUT"] * (name in ("first", "two", "padded"))
    assert all(found[what] >= 4 for what in wanted), found


@pytest.fixture(scope="module")
def on_kernels() -> list[Transcript]:
    """Decoded in float32 on the CPU kernels, in the order of `problems`."""
    engine = Engine(model("float32"), protocol("two"), SIZES["plenty"], kernel=True)
    return sorted(engine.decode(problems(16), seed=SEED), key=lambda transcript: transcript.problem)


def test_on_the_kernels_records_follow_from_their_own_tokens(on_kernels):
    forward = reference_model.transformer(model("float32").params, model("float32").config)
    for problem, transcript in zip(problems(16), on_kernels, strict=True):

        def interpret(choose: Callable, problem=problem, transcript=transcript) -> Transcript:
            def told(path, number, logits, uniform):
                thread = types.SimpleNamespace(path=() if path is None else (path,), generated=number)
                return choose(thread, logits, uniform, problem)

            check(transcript, Client(forward, protocol("two"), problem, told))
            return transcript

        replaying.replay(transcript, interpret, replaying.F32)


def published(transcript: Transcript) -> tuple[np.ndarray, ...]:
    """Entries, positions, segments and the mask of the published training: prompt, paths and summary as one sequence.

    A token sees those before it that are of its own segment or of the prompt; one of the summary sees all before it.
    """
    log, paths = transcript.log, len(transcript.threads) - 1
    of = lambda thread: np.flatnonzero((log.thread == thread) & (log.index >= 0))
    root = of(0)
    prompt = root[log.clock[root] < log.clock[of(1)[0]]]
    parts = [prompt, *map(of, range(1, 1 + paths)), root[len(prompt) :]]
    label = np.repeat(np.arange(len(parts)), list(map(len, parts)))
    lengths = list(map(len, parts))
    starts = [0, *[len(prompt)] * paths, len(prompt) + max(lengths[1:-1])]
    position = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    sees = (label[:, None] == label) | (label == 0) | (label[:, None] == 1 + paths)
    return np.concatenate(parts), position, label % (1 + paths), sees & np.tri(len(label), dtype=bool)


def test_the_published_mask_positions_and_embeddings_give_the_same_logprobs(on_kernels):
    params, compared = jax.tree.map(np.asarray, model("float32").params), 0
    for transcript in on_kernels:
        log, (entries, position, segment, sees) = transcript.log, published(transcript)
        np.testing.assert_array_equal(log.position[entries], position)
        logits = reference_model.all_logits(
            params, model("float32").config, log.token[entries], position, sees, segment
        )
        for sampled in np.flatnonzero(log.sampled):
            row = logits[entries.tolist().index(log.predictor[sampled])]
            assert abs(reference_model.log_softmax(row)[log.drawn[sampled]] - log.logprob[sampled]) < 1e-4
            compared += 1
    assert compared > 300


def test_training_on_the_packed_log_gives_the_rollout_again(on_kernels):
    test_engine.check_packed(on_kernels, model("float32"), 1e-4)


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


@pytest.mark.parametrize("codec", [vocabularies.byte_level(), vocabularies.sentence()])
def test_the_method_names_words_and_choices(codec):
    method = ParaThinker(paths=3, enough="half", openings=("Okay", "So"), block=16)
    spoken = codec.with_control_words(method.words)
    made = method.protocol(spoken)
    assert [begin[0] for begin in made.begins] == [spoken.id(f"<think{i}>") for i in (1, 2, 3)]
    assert [spoken.decode(begin[1:]).strip() for begin in made.begins] == ["Okay", "So", "Okay"]
    assert made.ends == tuple(spoken.id(f"</think{i}>") for i in (1, 2, 3))
    assert set(made.stops) >= {spoken.id(f"</think{i}>") for i in range(4, 9)}
    assert made.strays == tuple(spoken.id(f"<think{i}>") for i in range(4, 9))
    assert made.summary[0] == spoken.id("<summary>") and method.phrase in spoken.decode(made.summary)
    assert (made.close, made.pad) == (spoken.id("</summary>"), spoken.id("<vllm_pad>"))
    assert (made.enough, made.block) == (2, 16)
    enough = {name: ParaThinker(paths=8, enough=name).protocol(spoken).enough for name in ("first", "half", "last")}
    assert enough == {"first": 1, "half": 4, "last": 8}
    assert len(method.words) == 19 and [spoken.id(word) for word in method.words] == sorted(
        map(spoken.id, method.words)
    )


@pytest.mark.parametrize(
    ("choices", "error"),
    [
        (dict(paths=9), "para_thinker.paths is 9; it must be a whole number of 1 .. 8"),
        (dict(block=0), "para_thinker.block is 0"),
        (dict(enough="most"), "para_thinker.enough is 'most'; allowed are first, half, last"),
    ],
)
def test_choices_of_the_method_that_make_no_sense_are_refused(choices, error):
    with pytest.raises(ValueError, match=error):
        ParaThinker(**choices)
