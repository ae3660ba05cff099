"""Whether what the engine left of a program of threads is right, also where a size was too small for it.

Then `check` says whether the engine had to stop the problem, or might, and that what it left is the beginning of what is right.
"""

import numpy as np

import oracle
import thread_programs as programs
from apr_jax.decode import Sizes, Stop, Transcript
from apr_jax.decode.needs import Needs
from program_oracle import Expected, Kept
from replaying import lines
from thread_programs import Action, Body, Context, Join


def check(transcript: Transcript, expected: Expected, sizes: Sizes) -> None:
    """Assert that a transcript is right: the whole of it, or as far as the sizes let it come."""
    right, reasons = expected.transcript, lacking(expected, sizes)
    if transcript.stop in (Stop.POOL_FULL, Stop.LOG_FULL, Stop.THREADS_FULL, Stop.MESSAGES_FULL):
        if transcript.stop == Stop.POOL_FULL:
            check_pool(transcript, expected, sizes)
        else:
            assert transcript.stop in reasons, f"problem {transcript.problem}: {transcript.stop.name}, but it fits"
        check_beginning(transcript, right)
    else:
        assert not reasons, (
            f"problem {transcript.problem} does not fit, {reasons}, and ended with {transcript.stop.name}"
        )
        oracle.compare(transcript, right)


def lacking(expected: Expected, sizes: Sizes) -> set[Stop]:
    """Of what a problem never gives back, that which the sizes do not have."""
    log = expected.transcript.log
    entries = np.bincount(log.thread, minlength=len(expected.transcript.threads))
    needs = {
        Stop.THREADS_FULL: len(expected.transcript.threads) > sizes.threads,
        Stop.LOG_FULL: _pages(entries, sizes.log_page_size).sum() > sizes.log_pages,
        Stop.MESSAGES_FULL: expected.pieces > Needs().room(sizes.threads),
    }
    return {stop for stop, lacks in needs.items() if lacks}


def check_pool(transcript: Transcript, expected: Expected, sizes: Sizes) -> None:
    """Assert that the pages held when the pool was full, and those that the next step could ask for, are more than there are."""
    threads, right = transcript.threads, expected.transcript
    fed = _fed(transcript)
    finished = np.array([thread.stop not in (Stop.KILLED, Stop.RUNNING) for thread in threads])
    ended = finished & [thread.stop != Stop.CONTINUED for thread in threads]
    kept = [expected.kept.get(thread.path, Kept()) for thread in threads]
    joined = np.array(
        [k.joined and not transcript.sees[t.parent, i] for i, (k, t) in enumerate(zip(kept, threads, strict=True))]
    )
    always = np.array([k.always and not (k.ended and ended[t.parent]) for k, t in zip(kept, threads, strict=True)])
    released = finished & ~joined & ~always
    held = ~released | transcript.sees[~released].any(axis=0)
    whole = dict(zip((thread.path for thread in right.threads), _fed(right), strict=True))
    left = np.array([whole[thread.path] for thread in threads]) - fed
    parents = {thread.parent for i, thread in enumerate(threads) if not finished[i]}
    running = np.array([not finished[i] and i not in parents for i in range(len(threads))])
    step = np.minimum(left, sizes.feed_chunk)
    wants = np.where(running, _pages(fed + step, sizes.page_size) - _pages(fed, sizes.page_size), 0)
    total = _pages(fed, sizes.page_size)[held].sum() + wants.sum()
    assert total > sizes.pages, f"problem {transcript.problem}: POOL_FULL at {total} of {sizes.pages} runs"


def check_beginning(transcript: Transcript, right: Transcript) -> None:
    """Assert that every line of a problem that was stopped is a beginning of what it should have become."""
    stops = {(thread.path, thread.segment): thread.stop for thread in right.threads}
    got, log, where = transcript.log, right.log, f"problem {transcript.problem}"
    for thread in transcript.threads:
        stop = stops[thread.path, thread.segment]
        assert thread.stop in (Stop.KILLED, Stop.DROPPED, stop), (
            f"{where}, thread {thread.path}: {thread.stop.name}, right is {stop.name}"
        )
    same, whole = np.full(len(got), -1), lines(right)
    for path, begun in lines(transcript).items():
        assert len(begun) <= len(whole[path]), f"{where}, line {path}: longer than it should become"
        same[begun] = whole[path][: len(begun)]
    fed = got.clock >= 0
    for name in ("token", "source"):
        np.testing.assert_array_equal(getattr(got, name), getattr(log, name)[same], err_msg=f"{name}, {where}")
    for name in ("index", "position", "clock"):
        np.testing.assert_array_equal(
            getattr(got, name)[fed], getattr(log, name)[same][fed], err_msg=f"{name}, {where}"
        )
    drawn = got.sampled
    np.testing.assert_array_equal(same[got.predictor[drawn]], log.predictor[same][drawn], err_msg=f"predictor, {where}")
    for name in ("logprob", "behaviour_logprob"):
        np.testing.assert_allclose(getattr(got, name), getattr(log, name)[same], rtol=0, atol=1e-9, err_msg=where)
    saw, should = (
        oracle.visible(got, transcript.sees, right.together)[fed],
        oracle.visible(log, right.sees, right.together)[same[fed]],
    )
    np.testing.assert_array_equal(saw, should[:, same], err_msg=f"what was seen, problem {transcript.problem}")
    assert (saw.sum(axis=1) == should.sum(axis=1)).all(), f"problem {transcript.problem}: a row saw less than it should"


def _fed(transcript: Transcript) -> np.ndarray:
    return np.bincount(transcript.log.thread[transcript.log.clock >= 0], minlength=len(transcript.threads))


def _pages(count: np.ndarray, page_size: int) -> np.ndarray:
    return -(-count // page_size)


def features(body: Body, expected: Expected) -> list[str]:
    """What a problem is an example of, for counting."""
    transcript = expected.transcript
    found = [f"stop {thread.stop.name}" for thread in transcript.threads]
    found += expected.events
    found += [f"depth {max(len(t.path) for t in transcript.threads if t.stop != Stop.DROPPED)}"]
    if len(transcript.threads) > 1:
        for each in programs.bodies(body):
            for now in each:
                if now.action == Action.FORK:
                    flush = "" if now.flush else ", not flushed"
                    found.append(f"{Context(now.context).name} {Join(now.join).name}{flush}".lower())
    return found
