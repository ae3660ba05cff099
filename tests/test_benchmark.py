"""The benchmark's parts: what is asked, who answers, and what is made of the answers; no peer is needed."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest

from apr_jax.model.config import ModelConfig
from apr_jax.pretrained import load_pretrained
from benchmarks.peers import report, weights, workloads
from benchmarks.peers.__main__ import fixed_batches
from benchmarks.peers.remote import Remote, Unavailable
from benchmarks.peers.rows import ENGINE, VLLM, Job, Row, Scale, rows
from benchmarks.peers.workers import vllm
from benchmarks.peers.workers.serve import Measured, Options
from benchmarks.peers.workloads import Attention, Bare, Events, Feed, ForkJoin, Samples, Script, Steps, Threads

THREADS = Threads(problems=1, threads=2, prefix=8, tokens_each=3, vocabulary=32)
SAMPLES = Samples(problems=2, samples=3, prompt=8, tokens_each=3, vocabulary=32)
STEPS = Steps(problems=2, beams=2, width=2, subtrees=1, steps=3, tokens_each=2, prompt=8, vocabulary=32)
OPTIONS = Options(cores=1, dtype="float32", temperature=0.0, quantisation="Q8_0", context=64, sequences=4)
SMALL = ModelConfig(vocabulary=32, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=48)


@pytest.mark.parametrize(
    "work",
    [ForkJoin(3, 2, 32), THREADS, Feed(8, 32), SAMPLES, STEPS, Bare(THREADS), Attention(THREADS), Events(8, 2, 32)],
)
def test_workloads_survive_the_line(work):
    assert workloads.from_json(json.loads(json.dumps(workloads.to_json(work)))) == work


def test_fork_join_is_the_workload_of_the_benchmark():
    work = ForkJoin(problems=64, in_flight=32, vocabulary=1024)
    assert work.scripts == dataclasses.replace(work, join="stitch").scripts, "joins are compared on the same problems"
    assert work.scripts != dataclasses.replace(work, seed=1).scripts
    for script in work.scripts:
        assert (len(script.prompt), script.alone, script.after) == (128, 64, 48)
        assert 2 <= len(script.lengths) <= 8
        assert all(32 <= length <= 160 for length in script.lengths)
    assert work.tokens == sum(64 + sum(script.lengths) + 48 for script in work.scripts)


def test_fork_join_refuses_an_unknown_join():
    with pytest.raises(ValueError, match="reencode or stitch"):
        ForkJoin(1, 1, 32, join="merge")


def test_client_asks_as_threadweaver_does():
    problem = vllm.Problem(Script(prompt=(7, 8), alone=2, lengths=(1, 3), after=4))
    assert problem.first() == [(0, [7, 8], 2)]
    assert problem.next(0, [20, 21]) == [(0, [7, 8, 20, 21, 0], 1), (1, [7, 8, 20, 21, 1], 3)]
    assert problem.next(1, [30, 31, 32]) == [], "the join waits for all threads"
    # In the order of the threads, not in that of their ends.
    assert problem.next(0, [40]) == [(0, [7, 8, 20, 21, 0, 40, 1, 30, 31, 32], 4)]
    assert problem.next(0, [50, 51, 52, 53]) is None


@pytest.mark.parametrize(
    ("subtrees", "kept", "then"),
    [
        # The best two stand behind the same beam; of its own subtree each is the best.
        (1, [[7, 8, 22, 23], [7, 8, 20, 21]], [[7, 8, 22, 23, 32, 33], [7, 8, 22, 23, 30, 31]]),
        (2, [[7, 8, 22, 23], [7, 8, 26, 27]], [[7, 8, 22, 23, 32, 33], [7, 8, 26, 27, 36, 37]]),
    ],
)
def test_client_asks_as_search_and_learn_does(subtrees, kept, then):
    search = vllm.Search(dataclasses.replace(STEPS, subtrees=subtrees, steps=2), (7, 8))
    assert search.contexts() == [[7, 8], [7, 8]]
    answers = lambda *sums, token: [vllm.Answer([token + 2 * i, token + 2 * i + 1], s) for i, s in enumerate(sums)]
    assert not search.next(1, answers(-4.0, -3.0, token=24)), "a round waits for all beams"
    assert search.next(0, answers(-2.0, -1.0, token=20))
    assert search.contexts() == kept
    assert not search.next(0, answers(-5.0, -4.0, token=30))
    # The better step does not save the worse beam: sums are those of whole beams.
    assert not search.next(1, answers(-4.5, -4.25, token=34)), "two rounds were asked for"
    assert search.contexts() == then


class Stand:
    """vLLM's engine for the worker: takes requests, and answers those of an even name a step later than the others."""

    def __init__(self):
        self.waiting, self.asked = {}, []

    def reset_prefix_cache(self):
        pass

    def add_request(self, name, prompt, parameters):
        self.asked.append((prompt["prompt_token_ids"], parameters))
        self.waiting[name] = parameters, int(name) % 2 == 0

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        ready = [name for name, (_, late) in self.waiting.items() if not late]
        answers = [self.answer(name, self.waiting.pop(name)[0]) for name in ready]
        self.waiting = {name: (parameters, False) for name, (parameters, _) in self.waiting.items()}
        return answers

    def answer(self, name, parameters):
        logprob = lambda sample: -1.0 - sample if "logprobs" in parameters else None
        outputs = [
            types.SimpleNamespace(token_ids=[sample] * parameters["max_tokens"], cumulative_logprob=logprob(sample))
            for sample in range(parameters.get("n", 1))
        ]
        return types.SimpleNamespace(request_id=name, finished=True, outputs=outputs)


@pytest.mark.parametrize("work", [THREADS, Feed(8, 32), SAMPLES, STEPS, ForkJoin(3, 2, 32, share=0.1)])
def test_the_worker_of_vllm_generates_what_is_scripted(work):
    worker = object.__new__(vllm.Vllm)  # without vLLM
    kinds = types.SimpleNamespace(RequestOutputKind=types.SimpleNamespace(FINAL_ONLY=2))
    worker.vllm = types.SimpleNamespace(SamplingParams=dict, sampling_params=kinds)
    worker.engine, worker.temperature, worker.asked = Stand(), 0.0, 0
    assert worker.run(work).tokens == work.tokens
    asked = worker.engine.asked
    assert all(parameters["max_tokens"] == parameters["min_tokens"] for _, parameters in asked)
    several = isinstance(work, Samples | Steps)
    # vLLM refuses several samples of a greedy request.
    assert all(
        (parameters.get("n", 1) > 1, parameters["temperature"]) == (several, 0.8 * several) for _, parameters in asked
    )
    if isinstance(work, Steps):
        lengths = [len(tokens) for tokens, _ in asked]
        assert sorted(lengths) == [8] * 4 + [10] * 4 + [12] * 4, (
            "a beam is asked for with its prompt and all of its steps"
        )


def test_searches_refuse_uneven_subtrees():
    with pytest.raises(ValueError, match="beams = 2: must be a multiple of steps.subtrees = 3"):
        dataclasses.replace(STEPS, subtrees=3)


def test_fixed_batches_wait_for_their_longest_problem():
    work = ForkJoin(problems=1, in_flight=1, vocabulary=32)
    (script,) = work.scripts
    assert fixed_batches(work) == script.tokens / (len(script.lengths) * script.longest)


def test_weights_are_written_once_and_read_as_they_are(tmp_path):
    weights.write(tmp_path, SMALL, seed=0)
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    model = load_pretrained(tmp_path, dtype="float32")
    assert dataclasses.replace(model.config, norm_eps=SMALL.norm_eps) == SMALL
    layer = model.params["layers"]["1"]
    assert layer["attention"]["k"].shape == (32, 2, 8)
    assert layer["ffn"]["down"].shape == (48, 32)
    assert 0.015 < float(np.std(layer["ffn"]["down"])) < 0.025
    weights.write(tmp_path, SMALL, seed=0)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written
    weights.write(tmp_path, SMALL, seed=1)
    assert not np.array_equal(load_pretrained(tmp_path, dtype="float32").params["embed"], model.params["embed"])


def test_llamacpp_is_given_the_same_weights(tmp_path):
    weights.write(tmp_path, SMALL, seed=0)
    weights.write_gguf(tmp_path, "F32")
    model, given = (load_pretrained(path, dtype="float32") for path in (tmp_path, tmp_path / "model.F32.gguf"))
    assert given.config == model.config
    jax.tree.map(np.testing.assert_array_equal, given.params, model.params)
    for unknown in ("Q5", "IQ1_S"):
        with pytest.raises(ValueError, match=f"quantisation is '{unknown}', which the package gguf cannot write"):
            weights.write_gguf(tmp_path, unknown)
    weights.write(tmp_path, SMALL, seed=1)
    assert not list(tmp_path.glob("*.gguf")), "those of other weights"


def test_weights_of_somebody_else_are_not_replaced(tmp_path):
    contents = {"config.json": '{"model_type": "llama"}', "mine.gguf": "x"}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="output: .* holds no random weights of the benchmark"):
        weights.write(tmp_path, SMALL, seed=0)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == contents


def row(name="vs_vllm", **options) -> Row:
    return Row(name, "tiny", Job(ENGINE, THREADS), Job(VLLM, THREADS), **{"target": 1.5, **options})


def timings(ours, theirs):
    measured = lambda seconds: [Measured(s, 6) for s in seconds]
    return {("tiny", Job(ENGINE, THREADS)): measured(ours), ("tiny", Job(VLLM, THREADS)): measured(theirs)}


def test_ratios_are_taken_within_turns():
    (result,) = report.results([row()], timings([1.0, 10.0, 1.0], [2.0, 20.0, 1.0]), {})
    assert result.values == (2.0, 2.0, 1.0)
    assert (result.ratio, result.met) == (2.0, True)
    (cost,) = report.results([row(target=0.05, cost=True)], timings([1.1], [1.0]), {})
    assert cost.ratio == pytest.approx(0.1)
    assert cost.met is False


def test_a_missing_peer_says_so_in_its_rows():
    (result,) = report.results([row()], timings([1.0], []), {("tiny", VLLM): "No module named 'vllm'"})
    assert result.to_dict() == {"ratio": None, "target": 1.5, "missing": "vllm: No module named 'vllm'"}
    assert report.worst([result], "vs_") is None


def test_names_of_rows_are_distinct_and_complete():
    names = [row.name for row in rows(Scale(), {"tiny": 1024, "smollm2": 49152})]
    assert len(set(names)) == len(names)
    assert {"workload_tiny_vs_vllm", "workload_smollm2_stitched_vs_vllm", "vs_vllm_32", "vs_llamacpp_8"} <= set(names)
    assert {"beam_search_tiny_vs_vllm", "dvts_smollm2_vs_vllm", "self_consistency_tiny_vs_vllm"} <= set(names)
    assert {"tiny_vs_vllm_256", "feed_vs_transformers", "capacity_cost"} <= set(names)


def test_a_peer_that_is_not_installed_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="No such file"):
        Remote("vllm", str(tmp_path / "python"), 1, tmp_path / "log")
    # A package of that name that cannot be imported, whatever is installed here.
    remote = Remote("no_such_engine", sys.executable, 1, tmp_path / "log")
    with pytest.raises(Unavailable, match="no_such_engine"):
        remote.load(tmp_path, OPTIONS)


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ("kill -SEGV $$", r"^killed by SIGSEGV; the last line of log: sched_reserve: reserving ...$"),
        ("exit 3", r"^ended with code 3; the last line of log: sched_reserve: reserving ...$"),
    ],
)
def test_a_peer_that_dies_is_reported_by_signal_or_code(tmp_path, ends, reason):
    """Its last line alone says nothing where it was a line of its log."""
    peer = tmp_path / "python"
    peer.write_text(f"#!/bin/sh\nread request\necho 'sched_reserve: reserving ...' >&2\n{ends}\n")
    peer.chmod(0o755)
    remote = Remote("llamacpp", str(peer), 1, tmp_path / "log")
    with pytest.raises(Unavailable, match=reason):
        remote.load(tmp_path, OPTIONS)


def test_a_worker_of_an_earlier_commit_gets_no_setting_that_it_does_not_know(tmp_path):
    peer = tmp_path / "python"
    peer.write_text(f'#!/bin/sh\nread request\necho "$request" > {tmp_path}/request\n')
    peer.chmod(0o755)
    for block_size, told in ((0, False), (16, True)):
        remote = Remote("engine", str(peer), 1, tmp_path / "log")
        with pytest.raises(Unavailable, match="ended with code 0"):
            remote.load(tmp_path, dataclasses.replace(OPTIONS, block_size=block_size))
        assert ("block_size" in json.loads((tmp_path / "request").read_text())["options"]) == told


def test_the_project_answers_as_a_worker(tmp_path):
    weights.write(tmp_path / "weights", SMALL, seed=0)
    remote = Remote("engine", sys.executable, 1, tmp_path / "log")
    assert "jax" in remote.load(tmp_path / "weights", OPTIONS)
    for work in (dataclasses.replace(THREADS, prefix=10), SAMPLES, STEPS):
        measured = remote.run(work)  # which fails if other tokens were sampled than are scripted
        assert (measured.tokens, measured.seconds > 0) == (work.tokens, True)
    remote.close()
    assert remote.process.returncode == 0
