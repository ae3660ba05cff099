"""One transcript a method as Markdown, to be read: the prompt, what every thread said and how it ended, and the answer."""

import collections
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apr_jax.evaluate import report
from apr_jax.evaluate.methods import Result
from apr_jax.record import Stop, Transcript
from apr_jax.tokenizer import TextCodec

WIDTH = 120


def choose(result: Result) -> int:
    """The number of the question that shows a method best: one that forked, answered right, with threads that all ended."""

    def merit(number: int) -> tuple[bool, bool, int]:
        outcome, transcript = result.outcomes[number], result.rollout.transcripts[number]
        cut = sum(thread.stop != Stop.END for thread in transcript.threads)
        return not outcome.forked, not outcome.correct, cut

    return min(range(len(result.outcomes)), key=merit)


def markdown(results: Mapping[str, Result], about: Sequence[Mapping[str, Any]]) -> str:
    """The table of the methods, and of each one transcript, chosen by `choose`: its best, not its usual one.

    A prompt is shown where a method puts its questions in another way than the one before it.

    Args:
        results: by name of the method.
        about: of each question what `Task.about` says.
    """
    entries = {name: result.entry for name, result in results.items()}
    parts, before = [report.markdown(entries, len(about))], None
    for name, result in results.items():
        number, words = choose(result), result.rollout.words
        transcript, outcome = result.rollout.transcripts[number], result.outcomes[number]
        asked = _prompt(result.rollout.transcripts[0], words)
        parts.append(f"## {report.title(name)}\n\n{_sums(result)}\n")
        if asked != before:
            parts.append(f"The prompt of question 0:\n\n{_block(asked)}")
        before = asked
        facts = {**about[number], "answer": outcome.answer, "correct": outcome.correct}
        parts.append(
            f"Question {number}: " + ", ".join(f"{k}: {v}" for k, v in facts.items() if k != "question") + "\n"
        )
        parts.append(_block(f"{facts['question']}\n\n{_threads(transcript, words)}"))
    return "\n".join(parts)


def _sums(result: Result) -> str:
    threads = [thread for transcript in result.rollout.transcripts for thread in transcript.threads]
    stops = collections.Counter(thread.stop.name.lower() for thread in threads)
    answered = sum(outcome.answer is not None for outcome in result.outcomes)
    correct = sum(outcome.correct for outcome in result.outcomes)
    forked = sum(outcome.forked for outcome in result.outcomes)
    ended = ", ".join(f"{count} {stop}" for stop, count in stops.most_common())
    return (
        f"Of {len(result.outcomes)} questions {answered} got an answer, {correct} the right one; {forked} forked. "
        f"How threads ended: {ended}."
    )


def _prompt(transcript: Transcript, words: TextCodec) -> str:
    """What the root was fed before it, or any child, said something; the marks of turns are shown."""
    root = transcript.log.thread == 0
    said = np.flatnonzero(transcript.log.sampled[root])
    return words.decode(transcript.log.token[root][: said[0] if len(said) else None])


def _threads(transcript: Transcript, words: TextCodec) -> str:
    """What threads said or were told after the prompt, each under its parent, without the marks of turns."""
    shown = []
    for number, thread in enumerate(transcript.threads):
        mine = transcript.log.thread == number
        ids = transcript.log.token[mine]
        if number == 0:
            said = np.flatnonzero(transcript.log.sampled[mine])
            ids = ids[said[0] if len(said) else len(ids) :]
        text = words.decode([i for i in ids if i not in words.marks]).strip()
        if text:
            name = f"thread {'.'.join(map(str, thread.path))}" if thread.path else "root"
            shown.append(textwrap.indent(f"{name} ({thread.stop.name.lower()}): {text}", "    " * len(thread.path)))
    return "\n".join(shown)


def _block(text: str) -> str:
    """A block of code whose lines are wrapped; no text can end it."""
    lines = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(line, WIDTH, subsequent_indent=indent, drop_whitespace=True) or [""]
    fence = "````"
    return f"{fence}text\n" + "\n".join(lines).replace(fence, "'" * len(fence)) + f"\n{fence}\n"
