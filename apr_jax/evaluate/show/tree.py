"""The threads of a problem as text, finished or while a run is stepped by hand.

state = engine.load(engine.create(seed=0), [problem])
state = engine.run(state, steps=1)                  # as often as one likes
print(tree(engine.peek(state)[0], codec.decode))
"""

from collections.abc import Callable

import numpy as np

from apr_jax.record import Stop, Transcript


def tree(transcript: Transcript, text: Callable[[np.ndarray], str] | None = None, width: int = 40) -> str:
    """The threads of a problem, finished or in flight, one line per thread, under their parents.

    A line has the thread's path (`root`, `0`, `0.2` ...), its state, its numbers of tokens (fed and sampled) and of generated
    tokens, the clock of its last fed token (0 before the first) and its last words. The state is the stop reason, or `opened`
    (no token yet), `running`, or `waiting` (for running children). The first line is a summary; its slots count all tokens with
    keys and values over the problem's life, without the unused rest of a thread's last page.

    Args:
        transcript: a transcript of `Engine.peek`, `Engine.drain` or `Engine.decode`.
        text: function from token ids to text (`Tokenizer.decode`); without it token ids are shown.
        width: characters of the last words.
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
    """The state or stop reason of each thread."""
    fed = np.bincount(transcript.log.thread, minlength=len(transcript.threads)) > 0
    # A child with tokens was started, and its parent waits for it; while its message is written, a child has no tokens.
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
