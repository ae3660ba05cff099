"""Workers on one memory against their client, written plainly: blocks of tokens, laid out and rotated anew in every step.

The client keeps keys as they are before the rotation. What a worker sees is a list of tokens, and their places in this list are
their positions: it knows no threads, no clocks and no queries that are turned.
"""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest

import fuzz_programs
import reference_model
import vocabularies
from apr_jax.decode import Engine, Problem, Sizes, Stop, Transcript
from apr_jax.decode.protocol import Drawn
from apr_jax.decode.recogniser import Phrase, Recogniser
from apr_jax.methods import Hogwild as Method
from apr_jax.model.rope import RopeScaling, frequencies
from apr_jax.model.transformer import Model
from apr_jax.protocols import Hogwild
from apr_jax.protocols.phrases import Phrases
from phrase_matcher import Plain, Table

SEED = 4
CODEC = Table(
    [b"a", b"b", b"c", b"d", b".", b"!", b"\n\n", b".\n\n", b"a.\n\n", b"!\n\nb", b"\n", b"<", b"c<", b">", b"1>",
     b"e<", b"<", b"2>", b"3>", b"d>", b"e", b"f", b"g"],
    ["<|end|>"],
)  # fmt: skip
LOOKS_FOR = (Phrase("answer", "<", ">"), Phrase("after .", ".\n\n"), Phrase("after !", "!\n\n"))
END, BANNED, STEPS = CODEC.id("<|end|>"), (0, 3, 5, 10, 21), 3
HEADERS, QUESTION, PIVOT, FINISH = ((10, 20, 6), (21, 22)), (16, 17), (18, 6), (19, 2, 11)
OPENINGS = ((0, 20), (1, 21, 16), (2, 22))
CONFIG = dataclasses.replace(
    fuzz_programs.CONFIG, vocabulary=24, rope=RopeScaling("yarn", factor=2.0, original=16, attention=1.2)
)
HOLD = dict(slots=512, log=768, queue=32, prompt=8, outbox=4, attention_block=128)
SIZES = {
    2: Sizes(problems=1, lanes=2, rows=2, feed_tiles=1, feed_chunk=1, feed_threshold=0, threads=9, page_size=1,
             log_page_size=1, **HOLD),
    3: Sizes(problems=2, lanes=3, rows=6, feed_tiles=2, feed_chunk=4, feed_threshold=2, threads=16, page_size=8,
             log_page_size=8, **HOLD),
}  # fmt: skip


def prefix(worker: int, step: int) -> tuple[int, ...]:
    """Of a worker's further steps, from 1 on."""
    return (OPENINGS[worker][0], 16 + step, *[20] * (worker == 1))


@functools.cache
def protocol(workers: int) -> Hogwild:
    phrases = Phrases.of_ids(
        headers=HEADERS, openings=OPENINGS[:workers], question=(QUESTION,), pivot=(PIVOT,), finish=(FINISH,),
        prefix=[prefix(worker, step) for worker in range(workers) for step in range(1, 1 + STEPS)],
    )  # fmt: skip
    return Hogwild(Recogniser.of(CODEC, LOOKS_FOR), phrases, workers, END, every=12, banned=BANNED)


@functools.cache
def model() -> Model:
    return fuzz_programs.random_model(CONFIG)


def problems(count: int) -> list[Problem]:
    rng = np.random.default_rng(3)
    return [
        Problem(
            i, rng.integers(0, 23, rng.integers(1, 8)).astype(np.int32), temperature=float(rng.choice([0.5, 1.0, 1.25])),
            top_k=int(rng.choice([0, 0, 8])), max_tokens=int(rng.integers(2, 8)), child_max_tokens=int(rng.choice([6, 12, 24])),
        )
        for i in range(count)
    ]  # fmt: skip


@dataclasses.dataclass(eq=False)
class Row:
    """A token and what a model keeps of it; keys are not rotated."""

    token: int
    keys: list = dataclasses.field(default_factory=list)
    values: list = dataclasses.field(default_factory=list)
    logits: np.ndarray | None = None


def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    speed = frequencies(CONFIG.rope_theta, CONFIG.head_dim, CONFIG.rope)
    return reference_model._rotate(x, positions[:, None] * speed) * CONFIG.rope.magnitude


def feed(params, rows: list[Row], views: list[list[Row]]) -> None:
    """Tokens of one forward pass; each sees its view, in that order, and is the last in it."""
    x, still = params["embed"][[row.token for row in rows]], np.zeros((len(rows), CONFIG.head_dim // 2))
    for number in range(CONFIG.layers):
        layer = params["layers"][str(number)]
        inputs = reference_model._norm(x, layer["attention_norm"], CONFIG)
        query, key, value = reference_model._project(
            layer["attention"], CONFIG, inputs, still, np.zeros(len(rows), int)
        )
        for place, row in enumerate(rows):
            row.keys.append(key[place])
            row.values.append(value[place])
        for place, view in enumerate(views):
            at, one, every = np.arange(len(view)), slice(place, place + 1), np.ones((1, len(view)), bool)
            keys = turned(np.stack([seen.keys[number] for seen in view]), at)
            values = np.stack([seen.values[number] for seen in view])
            x[one] += reference_model._attend(
                layer["attention"], CONFIG, turned(query[one], at[-1:]), keys, values, every
            )
        x = x + reference_model._ffn(layer, CONFIG, x)
    for row, logits in zip(rows, reference_model._head(params, CONFIG, x), strict=True):
        row.logits = logits


class Worker:
    """Its block of tokens, what it said in each step, and what it is to be fed next, with whether it has said that already."""

    def __init__(self, key, opening):
        self.block: list[Row] = []
        self.said: list[list[int]] = [[]]
        self.wanted = [(token, False) for token in opening]
        self.uniforms, self.drawn = np.asarray(reference_model.uniforms(key)), 0
        self.matcher, self.answers, self.stop = Plain(CODEC, LOOKS_FOR), False, Stop.RUNNING
        self.scores, self.past = [], False  # of what it drew; whether its last step is history

    def text(self) -> list[int]:
        """Of its last step, without the token that the step before it ended with."""
        return self.said[-1][len(self.said) > 1 :]


class Client:
    """The published loop, in which every worker is fed one token a step."""

    def __init__(self, rule: Hogwild, problem: Problem):
        self.rule, self.problem, self.params = rule, problem, jax.tree.map(np.asarray, model().params)
        self.key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), problem.id), problem.sample)
        keys = [jax.random.fold_in(self.key, 3 + place) for place in range(rule.workers)]
        self.workers = [Worker(key, opening) for key, opening in zip(keys, OPENINGS, strict=False)]
        self.history: list[int] = []
        self.scores: list[float] = []
        self.fed, self.asked = 0, sum(len(opening) for opening in OPENINGS[: rule.workers])
        self.found, self.answered = collections.Counter(), False

    def read(self, tokens, before: list[Row]) -> list[Row]:
        rows = list(before)
        for token in tokens:
            rows.append(Row(int(token)))
            feed(self.params, rows[-1:], [list(rows)])
        return rows

    def run(self) -> tuple[list[int], Stop]:
        """Returns what the root was fed and said, and why it ended."""
        prompt = self.read(self.problem.prompt, [])
        self.common, self.others, self.own = list(prompt), self.read(HEADERS[0], []), self.read(HEADERS[1], [])
        while any(worker.stop == Stop.RUNNING for worker in self.workers):
            self.step([worker for worker in self.workers if worker.stop == Stop.RUNNING])
        said, stop = ([], Stop.END) if self.answered else self.conclude(prompt)
        return [*self.problem.prompt.tolist(), *said], stop

    def step(self, going: list[Worker]) -> None:
        for worker in going:
            token, told = worker.wanted.pop(0)
            worker.block.append(Row(token))
            worker.said[-1] += [] if told else [token]
        self.fed += len(going)
        views = []
        for worker in going:
            others = [row for other in self.workers if other is not worker for row in other.block]
            views.append([*self.common, *self.others, *others, *self.own, *worker.block])
        feed(self.params, [worker.block[-1] for worker in going], views)
        ended = [worker for worker in going if not worker.wanted and self.draw(worker)]
        for number, worker in enumerate(ended):
            self.end_step(worker, ended[number:])

    def draw(self, worker: Worker) -> bool:
        """Whether its step ends."""
        logits = worker.block[-1].logits
        allowed = np.where(np.isin(np.arange(len(logits)), self.rule.banned), -np.inf, logits)
        token, _, _ = reference_model.draw(allowed, worker.uniforms[worker.drawn], self.problem)
        self.found["banned"] += bool(np.argmax(logits) in self.rule.banned)
        worker.scores.append(reference_model.log_softmax(logits)[token])
        worker.drawn, event = worker.drawn + 1, worker.matcher.step(token)
        worker.said[-1].append(token)
        worker.answers |= event == "answer captured" and worker.matcher.tokens > 0
        if event.startswith("after"):
            return True
        worker.wanted = [(token, True)]
        worker.stop = Stop.LENGTH if self.spent(worker) else Stop.RUNNING
        return False

    def spent(self, worker: Worker) -> bool:
        return worker.drawn >= self.problem.child_max_tokens

    def end_step(self, worker: Worker, left: list[Worker]) -> None:
        """`left`: it and those who have ended a step, too, and come after it."""
        place = self.workers.index(worker)
        self.answered |= worker.answers
        self.history += worker.text()
        self.common, worker.block = [*self.common, *worker.block], []
        if self.answered:
            worker.stop = Stop.END
            for other in self.workers:
                other.stop = Stop.CUT if other.stop == Stop.RUNNING and other not in left else other.stop
        elif len(worker.said) > self.rule.steps:
            worker.stop, worker.past = Stop.LENGTH, True
        else:
            asks = self.fed - self.asked > self.rule.every
            self.asked = self.fed if asks else self.asked
            self.found["asked"] += asks
            says = (worker.said[-1][-1], *prefix(place, len(worker.said)), *(QUESTION if asks else ()))
            worker.wanted = [(token, False) for token in says]
            worker.said.append([])
            worker.matcher, worker.answers = Plain(CODEC, LOOKS_FOR), False
            worker.stop = Stop.LENGTH if self.spent(worker) else Stop.RUNNING

    def conclude(self, prompt: list[Row]) -> tuple[list[int], Stop]:
        """All the text in one order, after the prompt, and the answer that a model gives to it."""
        present = [worker for worker in self.workers if not worker.past]
        text = [*self.history, *(HEADERS[0] if present else ())]
        for worker in present:
            text += [*worker.text(), *PIVOT]
        text, rows, number = [*text, *FINISH], prompt, 0
        rows = self.read(text, rows)
        while True:
            token = int(np.argmax(rows[-1].logits))
            self.scores.append(reference_model.log_softmax(rows[-1].logits)[token])
            number, text = number + 1, [*text, token]
            if token == END or number >= self.problem.max_tokens:
                return text, Stop.END if token == END else Stop.LENGTH
            rows = self.read([token], rows)


def check(transcript: Transcript, client: Client) -> None:
    root, stop = client.run()
    name = f"problem {transcript.problem}"
    lines = collections.defaultdict(list)
    for number, thread in enumerate(transcript.threads):
        lines[thread.path].append(number)
    assert transcript.tokens(0).tolist() == root and transcript.stop == stop, name
    for place, header in enumerate(HEADERS):
        assert transcript.tokens(lines[(place,)][0]).tolist() == list(header), name
    scores = list(client.scores)
    for place, worker in enumerate(client.workers):
        steps = lines[(2 + place,)]
        assert [transcript.tokens(step).tolist() for step in steps] == worker.said, name
        stops = [transcript.threads[step].stop for step in steps]
        assert stops == [*[Stop.CONTINUED] * (len(steps) - 1), worker.stop], name
        scores += worker.scores
    np.testing.assert_allclose(transcript.log.logprob[transcript.log.sampled], scores, atol=1e-7, err_msg=name)
    fed = transcript.log.index >= 0
    np.testing.assert_array_equal(transcript.log.position[fed], transcript.log.index[fed], err_msg=name)


@pytest.mark.parametrize("workers", SIZES)
def test_tokens_are_those_of_the_client(workers):
    asked, found, full = problems(32), collections.Counter(), 0
    engine = Engine(model(), protocol(workers), SIZES[workers])
    for transcript in engine.decode(asked, seed=SEED):
        client = Client(protocol(workers), asked[transcript.problem])
        if transcript.stop == Stop.THREADS_FULL:
            client.run()
            assert 3 + sum(len(worker.said) for worker in client.workers) > SIZES[workers].threads
            full += 1
            continue
        check(transcript, client)
        found += client.found
        found.update(worker.stop.name for worker in client.workers)
        found["steps"] += sum(len(worker.said) - 1 for worker in client.workers)
        found["answered"] += client.answered
    assert engine.traces == 1
    wanted = {"END": 2, "CUT": 2, "LENGTH": 8, "asked": 4, "steps": 20, "banned": 8, "answered": 2}
    assert all(found[what] >= least for what, least in wanted.items()), (found, full)


def test_kernels_refuse_views_by_name():
    config = dataclasses.replace(CONFIG, head_dim=16, dtype="float32", param_dtype="float32")
    with pytest.raises(ValueError, match="the CPU kernels cannot be used: needs.views = True: they turn no queries"):
        Engine(fuzz_programs.random_model(config), protocol(2), SIZES[2], kernel=True)
    with pytest.raises(ValueError, match="attention_block = 20 must be a multiple of sizes.page_size = 8"):
        Engine(model(), protocol(3), dataclasses.replace(SIZES[3], attention_block=20, slots=520))


def test_the_method_says_what_the_released_code_says():
    codec = vocabularies.byte_level()
    method = Method(workers=("Alice", "Bob", "Cy"), steps=2)
    made = method.protocol(codec)
    texts = method.says()
    assert texts["prefix"] == [f"**{name} [{number}]:** " for name in ("Alice", "Bob", "Cy") for number in (2, 3)]
    assert (
        texts["openings"][0].startswith("**Alice [1]:** Hi, I'm Alice.") and len(texts["openings"]) == made.workers == 3
    )
    for name, said in texts.items():
        place = made.phrases.names.index(name)
        spans = zip(made.phrases.starts[place], made.phrases.lengths[place], strict=True)
        tokens = [made.templates[start : start + length] for start, length in spans]
        assert [codec.decode(each) for each in tokens] == ([said] if isinstance(said, str) else said)
    assert made.end == codec.eos and codec.eos in made.banned and codec.encode("#", True)[0] in made.banned
    own = made.own_state()
    for token in codec.encode("So it is \\boxed{42}.\n\n", True):
        own, _, event = made.observe(None, dataclasses.replace(own, role=own.role * 0 + 3), _drawn(token))
    assert own.answers and event == 1


def _drawn(token: int):
    zero = jax.numpy.float32(0)
    return Drawn(jax.numpy.int32(token), zero, zero, jax.numpy.zeros(0))


@pytest.mark.parametrize(
    ("choices", "error"),
    [
        (dict(workers=("Alice",)), "at least two workers"),
        (dict(every=-1), "hogwild.every is -1"),
        (dict(steps=0), "hogwild.steps is 0"),
    ],
)
def test_choices_that_make_no_sense_are_refused(choices, error):
    with pytest.raises(ValueError, match=error):
        Method(**choices)
