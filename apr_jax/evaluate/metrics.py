"""Counts of a transcript, defined alike for every method.

*Generated* tokens are sampled by the model; *fed* tokens are all other tokens that went through it (prompts, messages).
The *critical path* is the longest chain of generated tokens under fork and join: children start at their parent's
count, and a join takes the maximum over the awaited children. Definitions: ThreadWeaver and APR, unified.
"""

import collections
import heapq
import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from apr_jax.evaluate.causality import causality, depths, followers_of, topological
from apr_jax.evaluate.select import Candidate, Majority
from apr_jax.record import Source, Stop, Transcript


def generated_tokens(transcript: Transcript) -> int:
    """Tokens sampled by the model, in all threads, whether fed afterwards or not."""
    return int(transcript.log.sampled.sum())


def fed_tokens(transcript: Transcript) -> int:
    """Tokens of prompts, spawn and join messages and handed copies that went through the model."""
    log = transcript.log
    return int((np.isin(log.source, (Source.FED, Source.HANDED)) & (log.index >= 0)).sum())


def critical_path(transcript: Transcript) -> int:
    """Generated tokens on the longest chain, as the engine counted it.

    Killed threads and their descendants do not count, because no thread waited for them.
    """
    return int(transcript.log.depth[_last(transcript)].max(initial=0))


def recomputed_critical_path(transcript: Transcript) -> int:
    """The critical path, recomputed from clocks, visibility and parents without `log.depth`."""
    found = depths(causality(transcript), transcript.log.sampled)
    return int(found[_last(transcript)].max(initial=0))


def _last(transcript: Transcript) -> np.ndarray:
    """The generated tokens that the end of the problem waited for; all if no thread was killed, or all died with the problem."""
    killed = [
        line for line, thread in zip(transcript.lines, transcript.threads, strict=True) if thread.stop == Stop.KILLED
    ]
    if not killed or 0 in killed:
        return np.flatnonzero(transcript.log.sampled)
    return np.array(causality(transcript).end, int)


def makespans(transcript: Transcript, workers: Sequence[float]) -> list[int]:
    """Steps in which k workers generate the same tokens, one token per worker and step, for each k in `workers`.

    List scheduling: a free worker takes, among the tokens that are ready, the one with the longest chain of later
    tokens. `math.inf` workers give the critical path, one worker gives the number of generated tokens.

    Raises:
        ValueError: fewer than one worker.
    """
    for count in workers:
        if count < 1:
            raise ValueError(f"workers is {count}; at least 1 is needed")
    order, sampled = causality(transcript), transcript.log.sampled
    followers, line = followers_of(order, sampled), topological(order, sampled)
    tail = dict.fromkeys(line, 0)
    for entry in reversed(line):
        tail[entry] = 1 + max((tail[other] for other in followers[entry]), default=0)
    waits = {entry: len(order.waits_for[entry]) for entry in line}
    return [_schedule(followers, tail, dict(waits), count) for count in workers]


def _schedule(followers: list[list[int]], tail: dict[int, int], missing: dict[int, int], workers: float) -> int:
    """Steps of the list schedule; `missing`, the number of tokens that each token still waits for, is changed in place."""
    ready = [(-tail[entry], entry) for entry, count in missing.items() if count == 0]
    heapq.heapify(ready)
    steps = 0
    while ready:
        steps += 1
        taken = [heapq.heappop(ready)[1] for _ in range(int(min(workers, len(ready))))]
        for entry in taken:
            for other in followers[entry]:
                missing[other] -= 1
                if missing[other] == 0:
                    heapq.heappush(ready, (-tail[other], other))
    return steps


def acceleration_ratio(transcript: Transcript) -> float:
    """1 - critical path / generated tokens; 0 if no token was generated."""
    total = generated_tokens(transcript)
    return 1 - critical_path(transcript) / total if total else 0.0


def parallel_ratio(transcript: Transcript) -> float:
    """Share of the generated tokens in forked threads (all lines but the root's)."""
    sampled = transcript.log.sampled
    return (
        float((sampled & (transcript.lines[transcript.log.thread] > 0)).sum() / sampled.sum()) if sampled.any() else 0.0
    )


def threads(transcript: Transcript) -> int:
    """Number of lines that generated a token, the root's included; a root that only reads the prompt of samples does not count."""
    return len(np.unique(transcript.lines[transcript.log.thread[transcript.log.sampled]]))


def forked(transcript: Transcript) -> bool:
    """Whether the model forked: a thread with generated tokens has a child with generated tokens.

    Samples of a common prompt are not forked by the model. The mean over problems is the activation ratio.
    """
    line = transcript.lines
    active = set(line[transcript.log.thread[transcript.log.sampled]].tolist())
    return any(line[transcript.threads[thread].parent] in active for thread in active if thread)


def widths(transcript: Transcript) -> list[int]:
    """The widths of the root's forks, in order: how many children started at the same clock."""
    log, started = transcript.log, collections.Counter()
    for number, thread in enumerate(transcript.threads):
        clocks = log.clock[(log.thread == number) & (log.index == 0)]
        if len(thread.path) == 1 and not thread.segment and len(clocks):
            started[int(clocks[0])] += 1
    return [started[clock] for clock in sorted(started)]


def entropy(values: Iterable[Hashable]) -> float:
    """The entropy of the distribution of some values, nats; 0 without any."""
    counts = np.array(list(collections.Counter(values).values()), np.float64)
    share = counts / counts.sum() if len(counts) else counts
    return float(-(share * np.log(share)).sum()) + 0.0


def mean_logprob(transcript: Transcript, threads: int | Sequence[int] | None = None) -> float:
    """Mean log-probability of the generated tokens under the unmodified model, in nats; -inf where there are none.

    Args:
        transcript: of a problem.
        threads: look at these only.
    """
    log = transcript.log
    chosen = log.sampled if threads is None else log.sampled & np.isin(log.thread, threads)
    return float(log.logprob[chosen].mean(dtype=np.float64)) if chosen.any() else -math.inf


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that one of k samples is right, drawn without replacement from `samples` with `correct` right ones.

    The unbiased estimate of pass@k.

    Raises:
        ValueError: `k` or `correct` is out of range.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; between 1 and the {samples} samples that were drawn is possible")
    if not 0 <= correct <= samples:
        raise ValueError(f"correct is {correct}; between 0 and the {samples} samples that were drawn is possible")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def cons_at_k(samples: Sequence[Candidate], k: int) -> bool:
    """Whether the majority vote of the first k samples is right; samples without a valid answer do not vote (APR, 5.1).

    Raises:
        ValueError: `k` is out of range.
    """
    if not 1 <= k <= len(samples):
        raise ValueError(f"k is {k}; between 1 and the {len(samples)} samples that were drawn is possible")
    chosen = Majority().choose(samples[:k])
    return chosen is not None and samples[chosen].correct


def of_fewer(pools: Sequence[Sequence[Candidate]]) -> dict[str, list[float]]:
    """For 1, 2 ... samples, up to the smallest pool: `pass_at` and `cons_at`, means over the problems, from one pool each.

    Args:
        pools: the samples of each problem.
    """
    budgets = range(1, 1 + min((len(pool) for pool in pools), default=0))
    right = [sum(candidate.correct for candidate in pool) for pool in pools]
    passes = [np.mean([pass_at_k(len(pool), n, k) for pool, n in zip(pools, right, strict=True)]) for k in budgets]
    return {
        "pass_at": [float(mean) for mean in passes],
        "cons_at": [float(np.mean([cons_at_k(pool, k) for pool in pools])) for k in budgets],
    }
