"""A run in slices: looked at step by step, watched, and ended early."""

import functools
import re
import time

import jax
import numpy as np
import pytest

import fuzz_programs
import thread_programs
from apr_jax.decode import Problem, Stop, decode
from apr_jax.evaluate.show import tree
from apr_jax.record import Log, ThreadRecord, Transcript
from thread_programs import Action, Context, Instruction

END = Instruction(1, Action.END)
FORKS = (Instruction(1, Action.OPEN, ((END,),)), Instruction(2, Action.FORK, ((END,), (END,)), Context.SHARED), END)


@functools.cache
def problems() -> tuple[Problem, ...]:
    prompt, program = np.array([1, 2, 3]), thread_programs.encode(FORKS)
    return tuple(Problem(i, prompt, arguments=program, temperature=1.0, max_tokens=40 if i else 1) for i in range(20))


def test_a_tree_by_hand():
    fields = dict.fromkeys(
        ("position", "source", "logprob", "behaviour_logprob", "predictor", "depth"), np.zeros(7, int)
    )
    log = Log(
        token=np.array([65, 66, 10, 67, 68, 69, 70]),
        thread=np.array([0, 0, 0, 1, 2, 2, 2]),
        index=np.array([0, 1, -1, 0, 0, 1, -1]),
        clock=np.array([1, 2, -1, 4, 4, 5, -1]),
        **fields | {"source": np.array([1, 0, 0, 1, 1, 0, 0])},
    )
    records = [ThreadRecord((), -1, Stop.RUNNING)]
    records += [ThreadRecord((i,), 0, stop) for i, stop in enumerate((Stop.RUNNING, Stop.POOL_FULL, Stop.RUNNING))]
    transcript = Transcript(7, 1, Stop.RUNNING, tuple(records), np.eye(4, dtype=bool), log, 3)
    assert tree(transcript, lambda tokens: "".join(map(chr, tokens)), width=4).splitlines() == [
        "problem 7.1: running, 4 threads, 4 tokens generated, 5 slots",
        "thread  state      tokens  generated  clock  last words",
        "root    waiting         3          2      2  AB\\n",
        "  0     running         1          0      4  C",
        "  1     pool full       3          2      5  DEF",
        "  2     opened          0          0      0",
    ]
    assert tree(transcript, width=5).splitlines()[2].endswith("...10")


def test_a_run_by_hand_shows_its_threads_at_any_step():
    """Each step adds tokens, and the last picture is that of the transcript; in slices of one step as in one."""
    engine = fuzz_programs.engine("scarce rows")
    state, found, tokens, states = engine.load(engine.create(0), problems()[1:2]), [], [], set()
    while not found:
        state = engine.run(state, 1)
        state, found = engine.drain(state)
        shown = tree((found or engine.peek(state))[0])
        tokens.append(sum(int(line.split()[2]) for line in shown.splitlines()[2:]))
        states.update(line.split()[1] for line in shown.splitlines()[2:])
    assert tokens == sorted(tokens) and tokens[0] <= 9 and tokens[-1] == len(found[0].log)
    assert {"running", "waiting", "opened", "end"} <= states
    (whole,) = engine.decode(problems()[1:2], seed=0)
    assert tree(whole) == shown and whole.stop == Stop.END
    assert re.match(r"problem 1.0: end, 4 threads, \d+ tokens generated, \d+ slots\n", shown)


def test_progress_tells_what_a_run_does():
    seen = []
    engine = fuzz_programs.engine("scarce rows")
    transcripts = list(engine.decode(problems(), slice_steps=7, watch=seen.append))
    assert [progress.finished for progress in seen] == sorted(progress.finished for progress in seen)
    last = seen[-1]
    assert len(seen) > 3 and last.finished == last.problems == len(transcripts) == 20
    assert last.sampled == sum(int(transcript.log.sampled.sum()) for transcript in transcripts)
    assert last.stops == {Stop.END: 19, Stop.LENGTH: 1} and sum(seen[-2].stops.values()) == seen[-2].finished
    assert 0 < last.occupancy <= 1 and last.seconds > 0


def test_the_seconds_of_a_run_are_those_of_its_last_slice_too():
    """A slice is dispatched and runs on: whoever looks at the clock before the counters sees next to nothing of it."""
    engine = fuzz_programs.engine("scarce rows")
    list(engine.decode(problems()[:4]))  # compiles
    state = jax.block_until_ready(engine.load(engine.create(0), problems()[:4]))
    start = time.monotonic()
    progress = engine._progress(engine.run(state, 10_000), 4, start)
    assert 0.5 * (time.monotonic() - start) < progress.seconds < time.monotonic() - start


def test_a_run_that_is_ended_keeps_what_is_finished():
    engine, looks = fuzz_programs.engine("scarce rows"), []
    whole = {transcript.problem: transcript for transcript in engine.decode(problems())}
    some = list(engine.decode(problems(), slice_steps=20, watch=looks.append, stop=lambda: looks[-1].finished >= 5))
    assert 5 <= len(some) == looks[-1].finished < 20
    for transcript in some:
        np.testing.assert_array_equal(transcript.log.token, whole[transcript.problem].log.token)


def test_problems_named_alike_are_refused():
    engine = fuzz_programs.engine("scarce rows")
    with pytest.raises(ValueError, match="same id and sample"):
        decode(engine.model, [problems()[1]] * 2, engine.program.protocol, engine.sizes)
