"""Parallel-Probe: the compiled loop against the published rule over full forwards, and the answers that its probes give."""

import collections
import dataclasses

import numpy as np
import pytest

import allocating
from allocating import Client
from apr_jax import methods, protocols
from apr_jax.decode import Engine, Source, Stop
from apr_jax.evaluate import metrics
from apr_jax.pretrained.tokenizer import load
from apr_jax.tasks.countdown import SHIPPED
from test_engine import SIZES, check_packed
from test_native import need_kernel

CHOICES = dict(count=5, every=3, answer_tokens=5, warmup=1, share=0.3, patience=2, least=3, stable=3)
RULE = protocols.ParallelProbe(end=allocating.END, answer=allocating.ANSWER, close=(2, allocating.ANSWER), **CHOICES)

Vote = tuple[int, ...] | None


@dataclasses.dataclass
class Branch:
    """What a branch has said, what each of its probes said, and how often in a row it has disagreed."""

    path: tuple[int, ...]
    said: list[int] = dataclasses.field(default_factory=list)
    probes: list[list[int]] = dataclasses.field(default_factory=list)
    stop: Stop = Stop.RUNNING
    vote: Vote = None
    against: int = 0


def named(said: list[int]) -> Vote:
    """What stands after the last answer word and before the end; None if there is no answer, or no end."""
    if said[-1] != RULE.end or RULE.answer not in said:
        return None
    return tuple(said[len(said) - said[::-1].index(RULE.answer) : -1])


def write(client: Client, branch: Branch, upto: int) -> None:
    """Let a branch write up to so many tokens."""
    while branch.stop == Stop.RUNNING and len(branch.said) < upto:
        branch.said.append(client.draw(branch.path, len(branch.said), tuple(branch.said)).token)
        if branch.said[-1] == RULE.end:
            branch.stop, branch.vote = Stop.END, named(branch.said)
        elif len(branch.said) == client.problem.max_tokens and len(branch.said) % RULE.every:
            branch.stop = Stop.LENGTH


def probe(client: Client, branch: Branch) -> None:
    said: list[int] = []
    path = (*branch.path, len(branch.probes))
    while len(said) < RULE.answer_tokens and RULE.end not in said:
        said.append(client.draw(path, len(said), (*branch.said, *RULE.close, *said)).token)
    branch.probes.append(said)
    branch.vote = named([*RULE.close, *said])


def client_of(client: Client) -> tuple[list[Branch], int]:
    """The published loop: all branches, and the number of rounds."""
    branches, past, rounds = [Branch((i,)) for i in range(RULE.count)], [], 0
    while True:
        rounds += 1
        for branch in branches:
            write(client, branch, rounds * RULE.every)
        going = [branch for branch in branches if branch.stop == Stop.RUNNING]
        if not going:
            return branches, rounds - 1
        for branch in going:
            probe(client, branch)
        live = [branch for branch in branches if branch.stop != Stop.PRUNED]
        counts = collections.Counter(branch.vote for branch in live if branch.vote is not None)
        leader = max(counts, key=counts.get) if counts else None  # of equally frequent ones the first by path
        past.append(leader)
        for branch in going:
            branch.against = branch.against + 1 if leader is not None and branch.vote != leader else 0
        if leader is not None and past[-RULE.stable :] == [leader] * RULE.stable:
            for branch in going:
                branch.stop = Stop.CUT
            return branches, rounds
        if leader is not None and rounds > RULE.warmup and counts[leader] >= RULE.share * len(live):
            doubted = sorted((b for b in going if b.against >= RULE.patience), key=lambda b: (-b.against, b.path))
            for branch in doubted[: max(len(live) - RULE.least, 0)]:
                branch.stop = Stop.PRUNED
        for branch in going:
            if branch.stop == Stop.RUNNING and len(branch.said) == client.problem.max_tokens:
                branch.stop = Stop.LENGTH


def check(found) -> collections.Counter:
    branches, rounds = client_of(Client(allocating.problems()[found.problem]))
    at = {thread.path: i for i, thread in enumerate(found.threads)}
    assert len(at) == 1 + len(branches) + sum(len(branch.probes) for branch in branches)
    method, voices, seen = methods.ParallelProbe(), [], collections.Counter(rounds=rounds)
    for branch in branches:
        i = at[branch.path]
        where = f"problem {found.problem}, branch {branch.path}"
        assert (found.generated(i).tolist(), found.threads[i].stop) == (branch.said, branch.stop), where
        for number, said in enumerate(branch.probes):
            one = at[*branch.path, number]
            fed = [branch.said[RULE.every * (number + 1) - 1], *RULE.close]
            assert found.tokens(one).tolist() == [*fed, *said], where
            sources = found.log.source[found.log.thread == one]
            assert sources.tolist() == [Source.HANDED] + [Source.FED] * 2 + [Source.SAMPLED] * len(said), where
            assert method.said(found, one, None).tolist() == [*RULE.close, *said], where
        seen[branch.stop.name] += 1
        seen["no answer"] += any(RULE.end not in said for said in branch.probes)
        if branch.stop != Stop.PRUNED:
            ended = branch.stop == Stop.END or not branch.probes
            voices.append(i if ended else at[*branch.path, len(branch.probes) - 1])
    assert list(method.voices(found)) == voices
    assert metrics.critical_path(found) == metrics.recomputed_critical_path(found)
    return seen


def check_beginning(found) -> None:
    """Assert that what was said of a problem that did not fit is the beginning of what is right."""
    branches, _ = client_of(Client(allocating.problems()[found.problem]))
    for branch, i in zip(branches, np.flatnonzero([thread.parent == 0 for thread in found.threads]), strict=True):
        said = found.generated(i).tolist()
        assert said == branch.said[: len(said)]


@pytest.mark.parametrize(("sizes", "threads"), [("one row", 40), ("scarce rows", 24)])
def test_branches_are_probed_pruned_and_cut(sizes, threads):
    """Probes are rows of the table of threads: one that is full ends the problem."""
    engine = Engine(allocating.model("float64"), RULE, dataclasses.replace(SIZES[sizes], threads=threads))
    seen = collections.Counter()
    for found in engine.decode(allocating.problems(), seed=allocating.SEED):
        if found.stop == Stop.END:
            seen += check(found)
        else:
            assert found.stop == Stop.THREADS_FULL
            seen[found.stop.name] += 1
            check_beginning(found)
    assert engine.traces == 1
    events = ("END", "LENGTH", "CUT", "PRUNED", "no answer")
    assert min(seen[what] for what in events) >= 3 and seen["rounds"] > 40, seen
    assert (seen["THREADS_FULL"] > 3) == (threads == 24), seen


def test_the_kernels_see_what_the_record_says():
    need_kernel()
    engine = Engine(allocating.model("float32"), RULE, SIZES["scarce rows"], kernel=True)
    found = list(engine.decode(allocating.problems()[:12], seed=allocating.SEED))
    check_packed(found, allocating.model("float32"), 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(every=0), "parallel_probe.every is 0"),
        (dict(warmup=-1), "parallel_probe.warmup is -1"),
        (dict(share=1.5), "parallel_probe.share is 1.5; it must be from 0 to 1"),
        (dict(close=""), "parallel_probe.close is empty; a probe is fed at least 1 token"),
    ],
)
def test_choices_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        methods.ParallelProbe(**(CHOICES | change))


def test_every_choice_can_be_configured():
    words = load(str(SHIPPED / "compact.model"))
    made = methods.ParallelProbe(**CHOICES, close="<exit><goal>").protocol(words)
    goal, exits = words.id("<goal>"), words.id("<exit>")
    assert made == protocols.ParallelProbe(end=words.id("<end>"), answer=goal, close=(exits, goal), **CHOICES)
