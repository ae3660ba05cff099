"""The threads of a problem as text: to look at while a run is stepped by hand, and afterwards.

state = engine.load(engine.create(seed=0), [problem])
state = engine.run(state, steps=1)                  # as often as one likes
print(tree(engine.peek(state)[0], codec.decode))
"""

from collections.abc import Callable

import numpy as np

from apr_jax.record import Stop, Transcript


def tree(transcript: Transcript, text: Callable[[np.ndarray], str] | None = None, width: int = 40) -> str:
    """The threads of a problem, finished or in flight, a line each, under their parents.

    A line tells the thread's path (`root`, `0`, `0.2` ...), its state, how many tokens it has (fed and sampled) and has
    generated, its clock (of its last fed token, 0 before) and how it ends. The state is the reason why it ended, or
    `opened` (it has no token yet), `running`, or `waiting` (for children that run). The first line sums up; slots are those
    of tokens with keys and values in the pool over the problem's life, before a thread's last page is rounded up.

    Args:
        transcript: from `Engine.peek`, `Engine.drain` or `Engine.decode`.
        text: from token ids to text (`Tokenizer.decode`); token ids are shown without it.
        width: characters of the last words that are shown.
    """
    log, state = transcript.log, _state_names(transcript)
    rows = [("thread", "state", "tokens", "generated", "clock", "last words")]
    for number, thread in enumerate(transcript.threads):
        mine = log.thread == number
        name = "  " * len(thread.path) + (".".join(map(str, thread.path)) or "root")
        counts = mine.sum(), (mine & log.sampled).sum(), log.clock[mine].max(initial=0)
        rows.append((name, state[number], *map(str, counts), _last_words(log.token[mine], text, width)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    align = (str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
    lines = [
        "  ".join([*(put(cell, size) for put, cell, size in zip(align, row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
    slots, generated = int((log.index >= 0).sum()), int(log.sampled.sum())
    summary = f"{len(transcript.threads)} threads, {generated} tokens generated, {slots} slots"
    return "\n".join([f"problem {transcript.problem}.{transcript.sample}: {_name(transcript.stop)}, {summary}", *lines])


def _state_names(transcript: Transcript) -> list[str]:
    """What each thread is doing, or why it ended."""
    fed = np.bincount(transcript.log.thread, minlength=len(transcript.threads)) > 0
    # A child that has tokens was started, and its parent waits for it; while its message is written it has none.
    awaited = {t.parent for i, t in enumerate(transcript.threads) if t.stop == Stop.RUNNING and fed[i]}
    names = []
    for number, thread in enumerate(transcript.threads):
        going = "waiting" if number in awaited else "running" if fed[number] else "opened"
        names.append(going if thread.stop == Stop.RUNNING else _name(thread.stop))
    return names


def _name(stop: Stop) -> str:
    return stop.name.lower().replace("_", " ")


def _last_words(tokens: np.ndarray, text: Callable[[np.ndarray], str] | None, width: int) -> str:
    words = (text(tokens) if text else " ".join(map(str, tokens))).replace("\n", "\\n")
    return words if len(words) <= width else "..." + words[3 - width :]
