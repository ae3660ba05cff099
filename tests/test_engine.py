"""The compiled loop against the oracle, for every protocol, on random models that fork a lot."""

import collections
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import forking
import oracle
import reference_model
import replaying
from apr_jax.decode import Engine, Problem, Sizes, Stop, Transcript, decode
from apr_jax.model import transformer
from apr_jax.model.attention import packed_attend
from apr_jax.model.config import ModelConfig
from apr_jax.protocols import Samples, Sequential, SpawnJoin
from apr_jax.train.logs import only, rooted
from apr_jax.train.packing import pack

SEED = 3
WORDS = forking.Words()
CONFIG = ModelConfig(
    vocabulary=16, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48, qk_norm=True, tied=False,
    dtype="float64", param_dtype="float64",
)  # fmt: skip
SEQUENTIAL, SAMPLES = Sequential(end=WORDS.end), Samples(count=3, end=WORDS.end)
CONTROL = {name: getattr(WORDS, name) for name in ("spawn", "wait", "result", "join", "end", "go")}
SPAWN_JOIN = {depth: SpawnJoin(**CONTROL, max_depth=depth) for depth in (1, 2, 3)}
VARIANTS = [
    SpawnJoin(**CONTROL, max_depth=1 if context == "live" else 2, context=context, returns=returns)
    for context in ("isolated", "shared", "live")
    for returns in ("message", "stitch", "reencode")
    if (context, returns) != ("isolated", "message")
]
GROUPED = [
    SpawnJoin(**CONTROL, max_depth=2, samples=2),
    SpawnJoin(**CONTROL, context="live", returns="stitch", samples=3),
]
# No capacity stop can happen: every case is one that these sizes hold.
HOLD = dict(threads=40, slots=1024, log=1024, prompt=6)
SIZES = {
    "one row": Sizes(
        problems=1, lanes=1, rows=1, feed_tiles=1, feed_chunk=1, feed_threshold=0, page_size=1, log_page_size=1, queue=64,
        outbox=64, **HOLD,
    ),
    "scarce rows": Sizes(
        problems=3, lanes=3, rows=4, feed_tiles=2, feed_chunk=4, feed_threshold=2, page_size=4, log_page_size=4, queue=64,
        outbox=3, **HOLD,
    ),
    "plenty": Sizes(
        problems=4, lanes=6, rows=24, feed_tiles=5, feed_chunk=8, feed_threshold=0, page_size=8, log_page_size=8, queue=16,
        outbox=16, attention_block=256, **HOLD,
    ),
    "no feed steps": Sizes(
        problems=2, lanes=4, rows=7, feed_tiles=1, feed_chunk=2, feed_threshold=100, page_size=1, log_page_size=8, queue=5,
        outbox=64, attention_block=64, **HOLD,
    ),
}  # fmt: skip


def named(value) -> str:
    """The name of a parametrised test's argument."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    facts = (type(value).__name__, *(getattr(value, name, "") for name in ("max_depth", "context", "returns")))
    return " ".join(filter(None, map(str, facts)))


@functools.cache
def model(dtype: str) -> transformer.Model:
    """In f32 with heads that the CPU kernels serve."""
    size = CONFIG.head_dim if dtype == "float64" else 16
    config = dataclasses.replace(CONFIG, dtype=dtype, param_dtype=dtype, head_dim=size)
    biased = forking.biased_model(config, 0, WORDS.bias(), 1.5)
    return transformer.Model(biased.graph, jax.tree.map(lambda leaf: leaf.astype(dtype), biased.params))


@functools.cache
def forward(dtype: str) -> reference_model.Forward:
    return reference_model.transformer(model(dtype).params, model(dtype).config)


@functools.cache
def cases(protocol, count: int) -> tuple[tuple[Problem, ...], tuple[Transcript, ...]]:
    """Random problems that fit `HOLD` with waste, and what the oracle makes of them."""
    rng = np.random.default_rng(7)
    problems, expected = [], []
    while len(problems) < count:
        case = forking.random_case(rng, len(problems), max_tokens=16 if protocol == SPAWN_JOIN[3] else 24)
        problem = Problem(**{field.name: getattr(case, field.name) for field in dataclasses.fields(case)})
        transcript = oracle.run(forward("float64"), problem, protocol, SEED)
        if len(transcript.threads) <= 40 and len(transcript.log) <= 600:
            problems.append(problem)
            expected.append(transcript)
    return tuple(problems), tuple(expected)


@functools.lru_cache(maxsize=12)  # a program takes up to 2,700 memory mappings, see `conftest.let_programs_go`
def engine(dtype: str, protocol, sizes: Sizes, kernel: bool = False) -> Engine:
    return Engine(model(dtype), protocol, sizes, kernel=kernel)


def decoded(
    dtype: str, protocol, sizes: Sizes, problems: Sequence[Problem], kernel: bool = False, **options
) -> list[Transcript]:
    """Transcripts in the order of `problems`, by an engine that all tests share."""
    program = engine(dtype, protocol, sizes, kernel)
    assert program.program.kernel is kernel
    done = {t.problem: t for t in program.decode(problems, seed=SEED, **options)}
    assert sorted(done) == sorted(problem.id for problem in problems)
    return [done[problem.id] for problem in problems]


@pytest.mark.parametrize(
    ("protocol", "count", "sizes"),
    [
        (SEQUENTIAL, 50, "scarce rows"),
        (SAMPLES, 50, "one row"),
        (SAMPLES, 50, "no feed steps"),
        (SPAWN_JOIN[1], 80, "plenty"),
        (SPAWN_JOIN[2], 80, "one row"),
        (SPAWN_JOIN[2], 80, "scarce rows"),
        (SPAWN_JOIN[2], 80, "plenty"),
        (SPAWN_JOIN[2], 80, "no feed steps"),
        (SPAWN_JOIN[3], 60, "scarce rows"),
    ],
    ids=named,
)
def test_f64_equals_the_oracle(protocol, count, sizes):
    """Whatever the sizes: so tokens do not depend on lanes, rows, chunks, runs, neighbours or the queue."""
    problems, expected = cases(protocol, count)
    transcripts = decoded("float64", protocol, SIZES[sizes], problems)
    for transcript, right in zip(transcripts, expected, strict=True):
        oracle.compare(transcript, right)


@pytest.mark.parametrize("protocol", VARIANTS, ids=named)
def test_contexts_and_joins_equal_the_oracle(protocol):
    """In turn on each of the sizes; live threads find fewer lanes than they are, or just enough."""
    sizes = list(SIZES.values())[VARIANTS.index(protocol) % len(SIZES)]
    problems, expected = cases(protocol, 60)
    assert sum(len(transcript.threads) > 2 for transcript in expected) > 15
    for transcript, right in zip(decoded("float64", protocol, sizes, problems), expected, strict=True):
        oracle.compare(transcript, right)


@pytest.mark.parametrize("protocol", GROUPED, ids=named)
def test_answers_of_one_problem_equal_the_oracle(protocol):
    sizes = ["scarce rows", "plenty"][GROUPED.index(protocol)]
    problems, expected = cases(protocol, 40)
    assert sum(len(transcript.threads) > 2 + protocol.samples for transcript in expected) > 15
    for transcript, right in zip(decoded("float64", protocol, SIZES[sizes], problems), expected, strict=True):
        oracle.compare(transcript, right)


def test_an_answer_is_what_it_is_alone():
    """Without chance each answer of a problem, read as a root, equals the problem with one answer, clocks and counts too."""
    rng, sizes = np.random.default_rng(11), SIZES["scarce rows"]
    cases = [dataclasses.replace(forking.random_case(rng, n, max_tokens=16), temperature=0.0) for n in range(20)]
    problems = [Problem(**{f.name: getattr(case, f.name) for f in dataclasses.fields(case)}) for case in cases]
    plain = decoded("float64", SPAWN_JOIN[2], sizes, problems)
    pairs = zip(decoded("float64", GROUPED[0], sizes, problems), plain, strict=True)
    fit = [(found, right) for found, right in pairs if len(right.threads) < HOLD["threads"] / 2]
    assert sum(len(right.threads) > 2 for _, right in fit) > 5
    for found, right in fit:
        for answer in [number for number, thread in enumerate(found.threads) if len(thread.path) == 1]:
            oracle.compare(rooted(only(found, [answer], "one")), right)


@pytest.mark.parametrize("protocol", [VARIANTS[0], VARIANTS[3], VARIANTS[-1]], ids=named)
def test_training_under_contexts_and_joins(protocol):
    check_training("float64", protocol, list(SIZES)[VARIANTS.index(protocol) % len(SIZES)], 1e-9)


def test_the_cases_are_worth_it():
    """The random problems have the events that the comparison is about."""
    events = collections.Counter()
    for protocol in SPAWN_JOIN.values():
        for transcript in cases(protocol, 60 if protocol.max_depth == 3 else 80)[1]:
            threads = [t for t in transcript.threads if t.stop != Stop.DROPPED]
            events["forked"] += len(threads) > 1
            events["forked twice"] += any(len(t.path) > 1 for t in threads)
            events["many"] += len(threads) > 8
            log = transcript.log
            after_result = (log.token[:-1] == WORDS.result) & ~log.sampled[:-1] & (log.token[1:] != WORDS.go)
            events["message"] += bool((after_result & (log.token[1:] != WORDS.result)).any())
            events.update(t.stop.name for t in transcript.threads)
    print(dict(events))
    assert min(events.values()) >= 15, events


def test_order_and_neighbours_do_not_matter():
    problems, expected = cases(SPAWN_JOIN[2], 80)
    sizes = SIZES["scarce rows"]
    order = np.random.default_rng(0).permutation(len(problems))
    shuffled = decoded("float64", SPAWN_JOIN[2], sizes, [problems[i] for i in order], slice_steps=37)
    for transcript, i in zip(shuffled, order, strict=True):
        oracle.compare(transcript, expected[i])
    for i in range(3):
        oracle.compare(*decoded("float64", SPAWN_JOIN[2], sizes, [problems[i]]), expected[i])


def test_one_trace():
    problems, _ = cases(SPAWN_JOIN[2], 80)
    program = engine("float64", SPAWN_JOIN[2], SIZES["scarce rows"])
    for part in (problems[:1], problems[5:20], problems[:40]):
        list(program.decode(part, seed=SEED + len(part)))
    assert program.traces == 1


F32 = pytest.mark.parametrize(
    ("protocol", "sizes", "kernel"),
    [(SPAWN_JOIN[2], "plenty", True), (SPAWN_JOIN[2], "plenty", False), (SAMPLES, "scarce rows", True)],
    ids=("SpawnJoin, kernels", "SpawnJoin, XLA", "Samples, kernels"),
)


@F32
def test_f32_follows_from_its_own_tokens(protocol, sizes, kernel):
    problems, _ = cases(protocol, 50)
    transcripts = decoded("float32", protocol, SIZES[sizes], problems, kernel)
    for problem, transcript in zip(problems, transcripts, strict=True):
        again = functools.partial(oracle.run, forward("float32"), problem, protocol, SEED, None)
        replaying.replay(transcript, again, replaying.F32)


def check_training(dtype: str, protocol, sizes: str, tolerance: float, kernel: bool = False) -> None:
    """The training forward on the packed log gives the recorded log-prob of every sampled token, fed or not."""
    problems, _ = cases(protocol, 50)
    check_packed(decoded(dtype, protocol, SIZES[sizes], problems, kernel), model(dtype), tolerance)


def check_packed(transcripts: Sequence[Transcript], model: transformer.Model, tolerance: float) -> None:
    rows, origin, count = pack(transcripts, length=640, threads=40)
    assert count.labels == (rows.label >= 0).sum() == sum(t.log.sampled.sum() for t in transcripts)
    attend = packed_attend(jnp.asarray(rows.owner), jnp.asarray(rows.clock), jnp.asarray(rows.sees), chunk=64)
    graph, params = model.graph, model.params
    token, position, branch = map(jnp.asarray, (rows.token, rows.position, rows.branch))
    cache = (None,) * model.config.layers
    x, _ = transformer.hidden(graph, params, token, position, attend, cache, branches=branch)
    logprob = np.asarray(jax.nn.log_softmax(transformer.logits(graph, params, x)))
    b, s = np.nonzero(rows.label >= 0)
    recorded = [
        transcripts[t].log.logprob[e] for t, e in zip(origin.transcript[b, s], origin.label_entry[b, s], strict=True)
    ]
    np.testing.assert_allclose(logprob[b, s, rows.label[b, s]], recorded, rtol=0, atol=tolerance)


@F32
def test_training_on_the_packed_log_gives_the_rollout_again(protocol, sizes, kernel):
    check_training("float32", protocol, sizes, 1e-4, kernel)


def test_training_in_f64():
    check_training("float64", SPAWN_JOIN[2], "plenty", 1e-9)


def fits(transcript: Transcript, sizes: Sizes) -> dict[Stop, bool]:
    """Whether a problem fits the sizes in the end, by the stop that says that it does not."""
    threads = np.arange(len(transcript.threads))[:, None]
    entries = (transcript.log.thread == threads).sum(axis=1)
    slots = ((transcript.log.thread == threads) & (transcript.log.index >= 0)).sum(axis=1)
    return {
        Stop.THREADS_FULL: len(threads) <= sizes.threads,
        Stop.POOL_FULL: (-(-slots // sizes.page_size)).sum() <= sizes.pages,
        Stop.LOG_FULL: (-(-entries // sizes.log_page_size)).sum() <= sizes.log_pages,
    }


@pytest.mark.parametrize(
    ("stop", "small"),
    [
        (Stop.THREADS_FULL, dict(threads=8)),
        (Stop.POOL_FULL, dict(slots=64, page_size=8, attention_block=64)),
        (Stop.LOG_FULL, dict(log=80)),
    ],
    ids=lambda value: value.name if isinstance(value, Stop) else "",
)
def test_capacity_stops_are_named_and_stay_in_their_problem(stop, small):
    """A problem that does not fit ends with the reason and what it had so far; the others do not notice."""
    problems, expected = cases(SPAWN_JOIN[2], 80)
    sizes = dataclasses.replace(SIZES["scarce rows"], **small)
    stopped = 0
    for transcript, right in zip(decoded("float64", SPAWN_JOIN[2], sizes, problems), expected, strict=True):
        if transcript.stop != stop:  # slots of finished threads were used again, and sufficed
            oracle.compare(transcript, right)
            continue
        stopped += 1
        assert not fits(right, sizes)[stop], f"problem {right.problem} fits"
        assert Stop.RUNNING not in {t.stop for t in transcript.threads}
        place = {t.path: i for i, t in enumerate(right.threads)}
        for number, thread in enumerate(transcript.threads):
            begun, whole = transcript.tokens(number), right.tokens(place[thread.path])
            assert (begun == whole[: len(begun)]).all()
    assert 3 <= stopped < len(problems)


@pytest.mark.parametrize("length", [0, 7])
def test_a_prompt_that_does_not_fit_is_refused(length):
    with pytest.raises(ValueError, match="prompt"):
        decode(model("float64"), [Problem(0, np.arange(length, dtype=np.int32))], SEQUENTIAL, SIZES["plenty"])
