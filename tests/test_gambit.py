"""Gambit: the compiled loop against the published rule, token by token over full forwards, and what branches cost."""

import collections
import dataclasses

import numpy as np
import pytest

import allocating
from allocating import Client, mean, units
from apr_jax import methods, protocols
from apr_jax.decode import Engine, Source, Stop
from apr_jax.evaluate import metrics
from apr_jax.evaluate.causality import causality, depths
from apr_jax.evaluate.outcomes import outcome
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown import SHIPPED
from test_engine import SIZES, check_packed
from test_native import need_kernel

CHOICES = dict(count=4, every=2, warmup=3, threshold=0.61, replace=1, branches=8, hidden=allocating.HIDDEN)
RULES = {
    "scorer": protocols.Gambit(end=allocating.END, thought_ends=allocating.THOUGHTS, **CHOICES),
    "logprob": protocols.Gambit(
        end=allocating.END,
        thought_ends=allocating.THOUGHTS,
        **(CHOICES | dict(score="logprob", threshold=0.12, replace=2)),
    ),
}


@dataclasses.dataclass(eq=False)
class Trace:
    """A trace: all that it says, that of the traces that it branched from included, and the draws of its own."""

    number: int
    said: tuple[int, ...] = ()
    logprobs: list[float] = dataclasses.field(default_factory=list)
    own: int = 0
    thought: tuple[int, int] = (0, 0)
    over: bool = False
    total: int = 0
    scored: int = 0
    stop: Stop = Stop.RUNNING
    ends: Stop = Stop.RUNNING  # with which it would end after this token

    @property
    def score(self) -> np.float32:
        return mean(self.total, self.scored)


class Pool:
    """All traces of a problem; each round of `run` is one token of each that runs."""

    def __init__(self, client: Client, rule: protocols.Gambit):
        self.client, self.rule = client, rule
        self.traces = [Trace(i) for i in range(rule.count)]
        self.rounds = self.completed = self.branches = 0
        self.seen = collections.Counter()

    def run(self) -> list[Trace]:
        while running := [trace for trace in self.traces if trace.stop == Stop.RUNNING]:
            scored = [trace for trace in running if self.write(trace) and trace.ends != Stop.END]
            fresh = True
            for trace in running:
                if trace.stop == Stop.RUNNING and trace in scored and fresh:
                    self.rounds, fresh = self.rounds + 1, False
                    if self.rounds % self.rule.every == 0:
                        ending = [
                            t for t in running if t.ends == Stop.END or (t.ends == Stop.LENGTH and t not in scored)
                        ]
                        self.decide([t for t in self.traces if t.stop == Stop.RUNNING and t not in ending])
                if trace.stop == Stop.RUNNING and trace.ends != Stop.RUNNING:
                    trace.stop, self.completed = trace.ends, self.completed + 1
                    if self.completed == self.rule.count:
                        for other in self.traces:
                            other.stop = Stop.KILLED if other.stop == Stop.RUNNING else other.stop
        return self.traces

    def write(self, trace: Trace) -> bool:
        """Write one token; returns whether a thought was scored before it."""
        rule, scores = self.rule, trace.over
        drawn = self.client.draw((trace.number,), trace.own, trace.said)
        total, count = trace.thought
        if scores:
            score = drawn.chance if rule.score == "scorer" else np.exp(mean(total, count))
            trace.total, trace.scored, total, count = trace.total + units(score), trace.scored + 1, 0, 0
        trace.said, trace.own = (*trace.said, drawn.token), trace.own + 1
        trace.logprobs = [*trace.logprobs, drawn.logprob]
        trace.thought, trace.over = (total + units(drawn.logprob), count + 1), drawn.token in rule.thought_ends
        spent = Stop.LENGTH if len(trace.said) == self.client.problem.max_tokens else Stop.RUNNING
        trace.ends = Stop.END if drawn.token == rule.end else spent
        return scores

    def decide(self, running: list[Trace]) -> None:
        rule = self.rule
        for trace in [t for t in running if t.scored and t.score < rule.threshold]:
            trace.stop = Stop.PRUNED
            self.seen["below the threshold"] += 1
        running = [t for t in running if t.stop == Stop.RUNNING]
        able = [t for t in running if t.scored]
        order = sorted(able, key=lambda t: (-t.score, t.number))
        may = [t for t in order if len(t.said) >= rule.warmup and len(t.said) < self.client.problem.max_tokens]
        free, room = rule.count - len(running), rule.branches - self.branches
        if free:
            chosen = [may[i % len(may)] for i in range(min(free, room))] if may else []
            self.seen["filled twice from one"] += len(chosen) > len(may) > 0
        else:
            swaps = min(rule.replace, len(able) // 2, len(may), room)
            chosen = may[:swaps]
            for trace in [t for t in order if t not in chosen][::-1][:swaps]:
                trace.stop = Stop.PRUNED
                self.seen["replaced"] += 1
        for source in chosen:
            branch = dataclasses.replace(source, number=len(self.traces), own=0, ends=Stop.RUNNING)
            self.traces.append(branch)
        self.branches += len(chosen)
        self.seen["branches"] += len(chosen)
        self.seen["no room"] += free > 0 and room == 0


def check(found, rule: protocols.Gambit) -> collections.Counter:
    pool = Pool(Client(allocating.problems()[found.problem]), rule)
    traces, method = pool.run(), methods.Gambit()
    lines = {}
    for i, thread in enumerate(found.threads[1:], start=1):
        lines[thread.path] = i  # the last thread of each line
    assert sorted(lines) == [(trace.number,) for trace in traces], f"problem {found.problem}"
    for trace in traces:
        i, where = lines[trace.number,], f"problem {found.problem}, trace {trace.number}"
        chain = method.chain(found, i)
        assert tuple(method.said(found, i, None).tolist()) == trace.said, where
        assert found.threads[i].stop == trace.stop, where
        assert (found.own["total"][i], found.own["scored"][i]) == (trace.total, trace.scored), where
        np.testing.assert_allclose(
            np.concatenate([found.log.logprob[(found.log.thread == one) & found.log.sampled] for one in chain]),
            trace.logprobs, atol=1e-9, err_msg=where,
        )  # fmt: skip
        assert all(found.threads[one].stop == Stop.CONTINUED for one in chain[:-1]), where
    voices = [lines[t.number,] for t in traces if t.stop in (Stop.END, Stop.LENGTH)]
    assert sorted(method.voices(found)) == sorted(voices)
    scores = [float(t.score) for t in traces if lines[t.number,] in voices]
    assert [method.weight(found, i) for i in voices] == pytest.approx(scores)
    assert found.shared["rounds"] == pool.rounds and found.shared["branches"] == pool.branches
    assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
    order = depths(causality(found), found.log.sampled)
    np.testing.assert_array_equal(order[found.log.sampled], found.log.depth[found.log.sampled])
    # What traces share is stored, and counted, once: only the tokens that branches and their sources are handed are fed twice.
    assert metrics.generated_tokens(found) == sum(trace.own for trace in traces)
    handed = (found.log.source == Source.HANDED) & (found.log.index >= 0)
    assert handed.sum() <= 2 * pool.branches
    assert outcome(found, None, False).stop != "continued"
    stops = collections.Counter(trace.stop.name for trace in traces)
    return pool.seen + stops + collections.Counter({"killed": stops["KILLED"], "branch of a branch": _deep(found)})


def _deep(found) -> int:
    """Branches of branches."""
    follows = [thread.follows for thread in found.threads if thread.follows >= 0 and not thread.segment]
    return sum(found.threads[source].path[0] >= CHOICES["count"] for source in follows)


@pytest.mark.parametrize(("score", "sizes"), [("scorer", "one row"), ("logprob", "scarce rows")])
def test_traces_are_pruned_branch_and_end_as_the_rule_says(score, sizes):
    weights = allocating.WEIGHTS if score == "scorer" else None
    engine = Engine(allocating.model("float64"), RULES[score], SIZES[sizes], scorer=weights)
    seen = collections.Counter()
    for found in engine.decode(allocating.problems(), seed=allocating.SEED):
        assert found.stop == Stop.END
        seen += check(found, RULES[score])
    assert engine.traces == 1
    few, many = (
        ("below the threshold", "filled twice from one"),
        ("replaced", "branch of a branch", "END", "LENGTH", "KILLED"),
    )
    assert min(seen[what] for what in few) >= 2 and min(seen[what] for what in many) >= 10, seen


def test_the_kernels_see_what_the_record_says():
    need_kernel()
    engine = Engine(allocating.model("float32"), RULES["logprob"], SIZES["scarce rows"], kernel=True)
    found = list(engine.decode(allocating.problems()[:12], seed=allocating.SEED))
    assert sum(transcript.shared["branches"] for transcript in found) > 10
    check_packed(found, allocating.model("float32"), 1e-4)


def test_too_few_threads_are_refused():
    sizes = dataclasses.replace(SIZES["scarce rows"], threads=20)
    with pytest.raises(ValueError, match=r"sizes.threads = 20: Gambit opens 21 threads"):
        Engine(allocating.model("float64"), RULES["logprob"], sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(every=0), "gambit.every is 0"),
        (dict(branches=-1), "gambit.branches is -1"),
        (dict(score="luck"), "gambit.score is 'luck'; allowed are scorer, logprob"),
        (dict(threshold=float("nan")), "gambit.threshold is nan; scores are from 0 to 1"),
    ],
)
def test_choices_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        methods.Gambit(**(CHOICES | change))


def test_every_choice_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    made = methods.Gambit(thought_ends=("<node>", "<sub>"), **CHOICES).protocol(words)
    ends = tuple(sorted((words.id("<node>"), words.id("<sub>"))))
    assert made == protocols.Gambit(end=words.id("<end>"), thought_ends=ends, **CHOICES)
    with pytest.raises(ValueError, match="gambit.thought_ends: no token of this tokenizer holds"):
        methods.Gambit().protocol(words)
    with pytest.raises(ValueError, match="may not hold end, 6"):
        protocols.Gambit(2, 6, thought_ends=(6,))
