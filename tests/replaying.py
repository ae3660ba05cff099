"""Records of models that compute in f32 or bfloat16, where near ties may fall either way: do they follow from their own tokens?

The interpreter is run with the tokens of the record in place of its own, on the same weights in float64. What a token was
drawn from must allow it within a tolerance, log-probabilities be equal within one, and all else be equal.

    interpret = lambda choose: oracle.run(forward, problem, protocol, seed, choose=choose)
    replaying.replay(transcript, interpret, replaying.F32)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

import oracle
from apr_jax.record import Stop, Transcript
from reference_model import kept, log_softmax


@dataclasses.dataclass(frozen=True)
class Differences:
    """The largest ones of a record, or those allowed.

    Attributes:
        greedy: by which the logit of a greedy token is below the best one.
        draw: by which a uniform draw is outside of its token's interval of the cumulative distribution.
        logprob: between log-probabilities; those of the distribution drawn from are at temperatures of 0.5 and more.
    """

    greedy: float = 0.0
    draw: float = 0.0
    logprob: float = 0.0

    def largest(self, other: "Differences") -> "Differences":
        return Differences(*map(max, dataclasses.astuple(self), dataclasses.astuple(other)))


F32 = Differences(greedy=1e-4, draw=1e-4, logprob=1e-4)


def lines(transcript: Transcript) -> dict[tuple[int, ...], list[int]]:
    """The entries of each line in the order in which it wrote them, whatever was split off since; by the line's path."""
    threads, line = transcript.threads, transcript.lines
    entries: dict[tuple[int, ...], list[int]] = {}
    cut = [thread.stop == Stop.SPLIT for thread in threads]
    segment = [threads[thread.parent if cut[i] else i].segment for i, thread in enumerate(threads)]
    for i in sorted(range(len(threads)), key=lambda i: (segment[i], cut[i])):
        entries.setdefault(threads[line[i]].path, []).extend(np.flatnonzero(transcript.log.thread == i))
    return entries


def replay(
    transcript: Transcript, interpret: Callable[[oracle.Choose], Transcript], allowed: Differences
) -> Differences:
    """Assert that a record follows from its own tokens; returns the differences that it has.

    Args:
        transcript: of a problem that fitted the sizes.
        interpret: what is right if the tokens of a thread are chosen so.
        allowed: what a difference may not exceed.
    """
    log, found = transcript.log, Differences()
    sampled = {path: [i for i in entries if log.sampled[i]] for path, entries in lines(transcript).items()}

    def choose(thread: Any, logits: np.ndarray, uniform: float, problem: Any) -> tuple[int, float, float]:
        nonlocal found
        where = f"problem {problem.id}.{problem.sample}, thread {thread.path}, draw {thread.generated}"
        assert thread.generated < len(sampled.get(thread.path, ())), f"{where}: the transcript has no such token"
        token = int(log.drawn[sampled[thread.path][thread.generated]])
        plain = log_softmax(logits)[token]
        if problem.temperature == 0:
            below = float(logits.max() - logits[token])
            assert below <= allowed.greedy, f"{where}: the logit of {token} is {below} below the best"
            found = found.largest(Differences(greedy=below))
            return token, plain, 0.0
        recorded = float(log.behaviour_logprob[sampled[thread.path][thread.generated]])
        fitting = []
        for slack in (0.0, -allowed.draw, allowed.draw):  # at the edge of a truncation a token may be in or out
            probability = kept(logits, problem, slack)
            upto = np.cumsum(probability)
            low, high = upto[token] - probability[token], upto[token]
            outside = float(max(low - uniform, uniform - high, 0.0))
            if probability[token] and outside <= allowed.draw:
                fitting.append((abs(np.log(probability[token]) - recorded), outside, np.log(probability[token])))
        if fitting:
            _, outside, behaviour = min(fitting)
            found = found.largest(Differences(draw=outside))
            return token, plain, behaviour
        raise AssertionError(f"{where}: {token} has the interval [{low}, {high}], the draw is {uniform}")

    right = interpret(choose)
    oracle.compare(transcript, right, allowed.logprob)
    for name in ("logprob", "behaviour_logprob"):
        difference = np.abs(getattr(log, name) - getattr(right.log, name))[log.sampled]
        found = found.largest(Differences(logprob=float(difference.max(initial=0.0))))
    return found
