"""Chooses the transcript to show first."""

from collections.abc import Sequence

from apr_jax.evaluate import metrics
from apr_jax.record import Stop, Transcript


def best(transcripts: Sequence[Transcript], correct: Sequence[bool]) -> int:
    """The number of the transcript that shows most: it forked, its answer is right, and all its threads ended.

    The first one among equals.
    """

    def merit(number: int) -> tuple[bool, bool, int]:
        transcript = transcripts[number]
        cut = sum(thread.stop != Stop.END for thread in transcript.threads)
        return not metrics.forked(transcript), not correct[number], cut

    return min(range(len(transcripts)), key=merit)
