"""Parallel-R1's agent loop written plainly, one full forward for each token: the same tokens and contexts for the same draws.

Requests are lists of tokens. Seen: a path joins the list, and has ordinary positions. Unseen: paths of one block do not see each
other, all begin at the position after `<Parallel>`, and what follows them stands behind the longest.
"""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import forking
import oracle
import reference_model
import test_outlined_malformed as malformed
from apr_jax.decode import Engine, Problem, Source, Stop
from apr_jax.methods import ParallelR1
from phrase_matcher import Table
from requesting import Line
from test_outlined import CONFIG, ONE_ROW, SEED, SIZES

WORDS = ("<Parallel>", "</Parallel>", "<Path>", "</Path>", "<Summary>", "</Summary>", "<|end|>")
CODEC = Table([b"a", b"b", b"\n", b"q"], WORDS)
FORK, PATHS_END, PATH, CLOSE, SUMMARY, RESUME, END = map(CODEC.id, WORDS)
MANY = dataclasses.replace(SIZES, lanes=8, rows=20, feed_chunk=2, feed_threshold=0)
METHODS = {
    "seen": ParallelR1(end="<|end|>", blocks=2, response=70),
    "unseen": ParallelR1(end="<|end|>", blocks=2, response=70, join="stitch", paths=3, path_temperature=0.75),
}


@functools.cache
def model():
    """Random weights under which problems fork a lot and mostly close what they open."""
    table = np.full((CONFIG.vocabulary, CONFIG.vocabulary), -8.0)
    likely = {
        (0, 1, 2): {0: -0.5, 1: -0.5, 2: -1.0, FORK: 1.5, RESUME: 0.5, END: 0.2, CLOSE: -2.0},
        (PATH, 3): {3: 0.5, 0: -1.5, CLOSE: 0.5, FORK: -1.0, RESUME: -2.0, END: 0.0},
        (SUMMARY,): {0: 1.0, 1: 0.5, RESUME: 0.0, END: 0.0, FORK: -1.0},
        (FORK, CLOSE, RESUME, PATHS_END, END): {0: 1.0, 1: 0.5, FORK: 0.5, END: -1.0},
    }
    for before, after in likely.items():
        for token, value in after.items():
            table[list(before), token] = value
    return forking.biased_model(CONFIG, 0, table, 0.8)


@dataclasses.dataclass(frozen=True)
class Seen:
    """A token of a context: its position, and the block and path that it belongs to, -1 for the main line."""

    token: int
    position: int
    block: int = -1
    path: int = -1


class Client:
    """The loop; `context` is what it would return."""

    def __init__(self, method, problem):
        self.method, self.problem, self.scores = method, problem, []
        self.params = jax.tree.map(np.asarray, model().params)

    def request(self, line, context, most, stop, temperature=None, block=-1, path=-1):
        """The context behind `context` and a first token, if the line is a path: sampled until a stop, or `most` tokens."""
        drawn_at = self.problem.temperature if temperature is None else temperature
        said, scores, problem = [], [], dataclasses.replace(self.problem, temperature=drawn_at)
        while len(said) < most:
            logits = self.logits([*context, *said])
            token, score, _ = reference_model.draw(logits, line.uniforms[len(line.tokens)], problem)
            scores.append(score)
            line.tokens.append(token)
            said.append(Seen(token, [*context, *said][-1].position + 1, block, path))
            if token in stop:
                break
        line.scores = [*getattr(line, "scores", []), *scores]
        return said

    def logits(self, context):
        place = np.array([(each.block, each.path) for each in context])
        apart = (place[:, None, 0] == place[:, 0]) & (place[:, None, 1] != place[:, 1]) & (place[:, 1] >= 0)
        sees = np.tri(len(context), dtype=bool) & ~(apart if self.method.join == "stitch" else np.zeros_like(apart))
        tokens, positions = (np.array([getattr(each, name) for each in context]) for name in ("token", "position"))
        return reference_model.all_logits(self.params, CONFIG, tokens, positions, sees)[-1]

    @property
    def used(self):
        return len(self.context) - len(self.problem.prompt)

    def left(self):
        return min(self.problem.max_tokens - len(self.root.tokens), self.method.response - self.used)

    def run(self):
        """Why the response ends; `unfed`: whether the last token of the context is not fed."""
        key = jax.random.fold_in(jax.random.key(SEED), self.problem.id)
        self.root = Line(jax.random.fold_in(key, self.problem.sample))
        self.context = [Seen(int(token), i) for i, token in enumerate(self.problem.prompt)]
        self.unfed = True
        for block in range(self.method.blocks):
            self.context += self.request(self.root, self.context, self.left(), {FORK, END})
            last = self.context[-1].token
            if last != FORK or self.method.response <= self.used:
                return Stop.END if last == END else Stop.LENGTH
            forked, summary, self.unfed = list(self.context), [PATHS_END, 2, SUMMARY], False
            self.paths(block)
            over = self.method.response - self.used <= len(summary) or self.problem.max_tokens <= len(self.root.tokens)
            if over and self.method.join == "stitch":  # nothing is fed that would see the paths
                self.context = forked
                return Stop.LENGTH
            after = max(each.position for each in self.context) + 1
            self.context += [Seen(token, after + i) for i, token in enumerate(summary)]
            if over:
                return Stop.LENGTH
            self.context += self.request(self.root, self.context, self.left(), {RESUME, END})
            self.unfed = True
            if self.context[-1].token not in (RESUME, END):
                return Stop.LENGTH
            self.replace(self.root, RESUME)
        return Stop.LENGTH

    def replace(self, line, token):
        """An end of the text becomes the end of a path or a summary."""
        self.context[-1] = dataclasses.replace(self.context[-1], token=token)
        line.tokens[-1] = token

    def paths(self, block):
        before, most = list(self.context), self.problem.child_max_tokens or self.problem.max_tokens
        stitched = self.method.join == "stitch"
        most = max(min(most, self.method.response - self.used - stitched), 1)
        for path in range(self.method.paths):
            line, place = self.root.child(), (block, path)
            begin = [*before, Seen(PATH, before[-1].position + 1, *place)]
            said = self.request(line, begin, most, {CLOSE, END}, self.method.path_temperature, *place)
            if said[-1].token == END:
                line.tokens[-1] = CLOSE
                said[-1] = dataclasses.replace(said[-1], token=CLOSE)
            said += [Seen(CLOSE, said[-1].position + 1, *place)] if said[-1].token != CLOSE else []
            text = [begin[-1], *said]
            first = self.context[-1].position + 1
            moved = text if stitched else [dataclasses.replace(each, position=first + i) for i, each in enumerate(text)]
            self.context += moved


def problems(count):
    rng = np.random.default_rng(3)
    return [
        Problem(
            i, np.array([*rng.integers(0, CODEC.size, rng.integers(0, 5)), rng.integers(0, 2)], np.int32),
            temperature=float(rng.choice([0.0, 0.5, 1.0])), top_k=int(rng.choice([0, 0, 5])),
            max_tokens=int(rng.integers(8, 40)), child_max_tokens=int(rng.choice([0, 6, 12])),
        )
        for i in range(count)
    ]  # fmt: skip


def same(found, client):
    """Assert that a transcript is what the client says; returns what happened."""
    stop, log = client.run(), found.log
    lines = [client.root, *client.root.children]
    assert found.stop == stop and len(found.threads) == len(lines)
    for number, line in enumerate(lines):
        assert found.generated(number).tolist() == line.tokens
        mine = log.sampled & (log.thread == number)
        np.testing.assert_allclose(log.logprob[mine], getattr(line, "scores", []), atol=1e-9)
    context = client.context[: len(client.context) - client.unfed]
    mine = np.flatnonzero((log.thread == 0) & (log.index >= 0))
    seen = np.flatnonzero(oracle.visible(log, found.sees)[mine[np.argmax(log.clock[mine])]])
    told = zip(log.position[seen].tolist(), log.token[seen].tolist(), strict=True)
    assert sorted(told) == sorted((each.position, each.token) for each in context)
    counts = collections.Counter(thread.stop.name for thread in found.threads[1:])
    counts[f"root {stop.name}"] += 1
    counts["again"] += len(lines) > 1 + client.method.paths
    counts["rewritten"] += int(np.sum(log.source == Source.REWRITTEN))
    return counts


@pytest.mark.parametrize(("name", "sizes"), [("seen", ONE_ROW), ("unseen", MANY)])
def test_the_loop_says_the_same(name, sizes):
    count = 16
    engine = Engine(model(), METHODS[name].protocol(CODEC), sizes, kernel=False)
    happened = collections.Counter()
    for found in engine.decode(problems(count), seed=SEED):
        happened += same(found, Client(METHODS[name], problems(count)[found.problem]))
    print(name, dict(happened))
    wanted = ("END", "LENGTH", "root END", "root LENGTH", "again", "rewritten")
    assert engine.traces == 1 and all(happened[what] > 0 for what in wanted), happened


# The texts of the root and of its paths, how the root ends, how its paths end, errors of the format.
P, X, C, R, E = "<Parallel>", "</Path>", "</Parallel>", "</Summary>", "<|end|>"
CASES = {
    "good": ({"": f"a{P}b{R}a{E}", "1": f"q{X}", "2": f"qq{X}"}, "END", ["END", "END"], {}),
    "no path ever": ({"": f"ab{E}"}, "END", [], {}),
    "ends inside paths": ({"": f"{P}b{R}{E}", "1": f"q{E}", "2": E}, "END", ["END", "END"], dict(broken_off=2)),
    "a path that never ends": ({"": f"{P}b{R}{E}", "1": "q", "2": X}, "END", ["LENGTH", "END"], dict(broken_off=1)),
    "a fork inside a path": ({"": f"{P}b{R}{E}", "1": f"{P}q{X}", "2": X}, "END", ["END", "END"], dict(too_deep=1)),
    "a fork inside a summary": ({"": f"{P}b{P}{R}{E}", "1": X, "2": X}, "END", ["END", "END"], dict(misplaced=1)),
    "an end inside a summary": ({"": f"{P}b{E}a{E}", "1": X, "2": X}, "END", ["END", "END"], dict(unclosed=1)),
    "words outside": ({"": f"a{X}{C}{R}b{E}"}, "END", [], dict(misplaced=2)),
    "one block more": ({"": 3 * f"{P}b{R}", "1": X, "2": X}, "LENGTH", 4 * ["END"], {}),
    "a summary that never ends": ({"": f"{P}b", "1": X, "2": X}, "LENGTH", ["END", "END"], {}),
    "the budget, plain": ({"": "a"}, "LENGTH", [], {}),
    "the budget, with the fork": ({"": f"{'a' * 29}{P}", "1": X, "2": X}, "LENGTH", ["END", "END"], {}),
}  # fmt: skip


@functools.cache
def scripted():
    method = ParallelR1(end=E, blocks=2, join="stitch")
    protocol = malformed.scripted(method, CODEC, [texts for texts, *_ in CASES.values()])
    return method, malformed.played(protocol, len(CASES))


@pytest.mark.parametrize("case", CASES)
def test_every_breach_ends_by_a_name(case):
    _, stop, paths, errors = CASES[case]
    method, played = scripted()
    first, again = (played[list(CASES).index(case), sample] for sample in (0, 1))
    assert first.stop.name == stop and [thread.stop.name for thread in first.threads[1:]] == paths
    assert first.threads == again.threads and first.log.token.tolist() == again.log.token.tolist()
    assert method.format_errors(first) == errors


def told(case, thread):
    return b"".join(map(CODEC.token_bytes, scripted()[1][list(CASES).index(case), 0].tokens(thread))).decode()


def test_what_stands_where_a_path_broke_off():
    assert told("good", 0) == f"aba{P}{C}\n<Summary>b{R}a{E}" and told("good", 1) == f"<Path>q{X}"
    assert told("ends inside paths", 1) == f"<Path>q{X}" and told("ends inside paths", 2) == f"<Path>{X}"
    assert told("a path that never ends", 1) == f"<Path>q{'a' * 15}{X}", "behind its last token"
    assert told("an end inside a summary", 0) == f"ab{P}{C}\n<Summary>b{R}a{E}"


def test_what_makes_no_sense_is_refused():
    for fields, message in (
        (dict(paths=0), "parallel_r1.paths is 0"),
        (dict(join="both"), "parallel_r1.join is 'both'; allowed are reencode, stitch"),
        (dict(path_temperature=-1.0), "parallel_r1.path_temperature is -1.0"),
        (dict(blocks=0), "parallel_r1.blocks is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ParallelR1(**fields)
    with pytest.raises(ValueError, match=r"paths.phrases: close has 3 tokens; it must be one token"):
        ParallelR1(end=E).protocol(Table([b"a", b"\n", b"</", b"Path", b">", b"<", b"Parallel", b"Summary"], [E]))
