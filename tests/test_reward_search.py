"""Searches whose steps are scored by Python: against the interpreter, with scores that many beams share."""

import collections
import functools
import types
import zlib

import oracle
from apr_jax.decode import Engine
from apr_jax.methods import RewardSearch as Method
from apr_jax.methods.reward_search import Reward, Scorer
from apr_jax.protocols import RewardSearch
from searching import STEP_ENDS, WORDS, forward, model, problems, searching
from test_engine import SIZES

SEED = 5


def score(beam):
    """One of a few numbers, so that beams tie."""
    return zlib.crc32(repr(list(map(int, beam))).encode()) % 5 / 3


class Checksum(Reward):
    def __init__(self):
        self.batches = []

    def scores(self, beams, codec):
        self.batches.append(len(beams))
        return [score(beam) for beam in beams]


def test_f64_equals_the_oracle():
    reward, seen = Checksum(), collections.Counter()
    method = Method(reward=reward)
    protocol = RewardSearch(end=WORDS.end, step_ends=STEP_ENDS, beams=2, width=2, steps=4, distinct=True)
    engine = Engine(model("float64"), protocol, SIZES["scarce rows"], host=Scorer(reward, None, protocol.candidates))
    for found in engine.decode(problems(), seed=SEED):
        problem, last = problems()[found.problem], []
        rule = types.SimpleNamespace(
            **vars(protocol), reward=lambda said, problem=problem: score([*problem.prompt, *said])
        )
        program = functools.partial(searching, last=last)
        oracle.compare(found, oracle.run(forward("float64"), problem, rule, SEED, program=program))
        kept = [found.threads[voice].path for voice in method.voices(found)]
        assert kept == [
            beam.thread.path for beam in sorted(last, key=lambda beam: (-beam.merit(rule), beam.thread.path))
        ]
        seen["rounds"] = max(seen["rounds"], len(found.threads) // 4)
        seen["follows"] += sum(thread.follows >= 0 for thread in found.threads)
    assert engine.traces == 1 and seen["rounds"] > 2 and seen["follows"] > 60, seen
    assert max(reward.batches) > 4, "several searches are scored at once"
