"""Threads of single problems on a timeline, of one method or of two side by side: one self-contained HTML page."""

import html
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from apr_jax.evaluate import metrics, report
from apr_jax.evaluate.causality import causality, depths
from apr_jax.evaluate.show.choose import best
from apr_jax.record import Log, Source, Stop, Transcript

TEMPLATE, STYLE, SCRIPT = (Path(__file__).with_name(f"timeline.{suffix}") for suffix in ("html", "css", "js"))
Shown = tuple[str, Transcript, Mapping]  # method, transcript, {"question", "answer", "correct"} and "machine" if known


def write_page(
    path: Path, items: Iterable[Shown], text: Callable[[str, int], str], heading: str = "Threads on a timeline"
) -> None:
    """Writes the page, which needs only a browser. It opens with a run that forked, if there is one (`show.choose`).

    Runs with the same question and number of the problem are shown side by side.

    Args:
        path: the HTML file.
        items: method name, transcript and a mapping with `question`, `answer` (None: no valid answer), `correct` and optionally
            `machine`, a line about the run, such as the machine that decoded it.
        text: function from method name and token id to the text shown, which is never read as HTML.
        heading: title of the page.

    Raises:
        KeyError: a mapping of `items` lacks `question`, `answer` or `correct`.
    """
    path.write_text(page(items, text, heading), encoding="utf-8")


def page(items: Iterable[Shown], text: Callable[[str, int], str], heading: str = "Threads on a timeline") -> str:
    """The page as text; arguments as for `write_page`."""
    items, strings = list(items), {}
    runs = [_run(method, transcript, extra, text, strings) for method, transcript, extra in items]
    first = best([transcript for _, transcript, _ in items], [run["correct"] for run in runs]) if runs else None
    sources = [source.name.lower() for source in Source]
    data = {"strings": list(strings), "sources": sources, "open": first, "runs": runs}
    # Inside a script element only "<" can end or open an element; in JSON, "<" occurs only in strings.
    encoded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    template, style, script = (file.read_text(encoding="utf-8").strip() for file in (TEMPLATE, STYLE, SCRIPT))
    title = html.escape(heading)
    filled = {"__TITLE__": title, "__HEADING__": title, "__STYLE__": style, "__SCRIPT__": script, "__DATA__": encoded}
    return re.sub("|".join(filled), lambda found: filled[found.group()], template) + "\n"


def places(transcript: Transcript) -> tuple[np.ndarray, np.ndarray]:
    """The place of each log entry on the two axes: causal clock Int [E] and critical-path count Int [E].

    A generated token stands one clock after the row that it was sampled from, even if it was fed later (after a join) or
    never. On the axis of counts a generated token fills the unit that ends at its count; a fed token stands at its count and
    has no width.
    """
    log = transcript.log
    clock = np.where(log.predictor >= 0, log.clock[log.predictor] + 1, log.clock)
    for entry in np.flatnonzero(clock < 0):  # queued, but the problem ended before the token was fed
        follows = entry > 0 and log.thread[entry] == log.thread[entry - 1]
        clock[entry] = clock[entry - 1] + 1 if follows else 0
    return clock, depths(causality(transcript), log.sampled) - log.sampled


def links(transcript: Transcript) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Forks (parent's last entry before the fork, child's first entry) and joins (child's last entry, first message entry)."""
    log, order = transcript.log, causality(transcript)
    first = {thread: int(np.flatnonzero(log.thread == thread)[0]) for _, thread in order.forks}
    starts = [(entry if entry >= 0 else _before(transcript, child), first[child]) for entry, child in order.forks]
    last = {child: int(np.flatnonzero(log.thread == child)[-1]) for child, _ in order.joins}
    forks = [pair for pair in starts if pair[0] >= 0]
    return forks, [(last[child], _message(log, entry)) for child, entry in order.joins]


def _message(log: Log, entry: int) -> int:
    """The first entry from `entry` on that was not generated, if its thread has one: the start of the join message."""
    later = np.flatnonzero((log.thread == log.thread[entry]) & ~log.sampled)
    later = later[later >= entry]
    return int(later[0]) if len(later) else entry


def _before(transcript: Transcript, child: int) -> int:
    """The last entry that the parent was fed before a child forked without a generated token, -1 if there is none."""
    log, parent = transcript.log, transcript.threads[child].parent
    born = log.clock[(log.thread == child) & (log.clock >= 0)].min()
    fed = np.flatnonzero((log.thread == parent) & (log.clock >= 0) & (log.clock < born))
    return int(fed[-1]) if len(fed) else -1


def _run(method: str, transcript: Transcript, extra: Mapping, text: Callable, strings: dict[str, int]) -> dict:
    log = transcript.log
    clock, count = places(transcript)
    forks, joins = links(transcript)
    tokens = [strings.setdefault(text(method, token), len(strings)) for token in log.token.tolist()]
    chance = [
        round(p, 3) if s and np.isfinite(p) else None for p, s in zip(log.logprob.tolist(), log.sampled, strict=True)
    ]
    ran = sorted(set(log.thread.tolist()), key=lambda thread: transcript.threads[thread].path)
    lanes = []
    for thread in ran:  # sorted by path: every thread stands below its parent and elder siblings
        entries = np.flatnonzero(log.thread == thread)
        record = transcript.threads[thread]
        name = ".".join(map(str, record.path)) if record.path else "root"
        span = [int(entries[0]), int(entries[-1]) + 1]
        lanes.append({"name": name, "level": len(record.path), "stop": record.stop.name.lower(), "span": span})
    return {
        "method": report.title(method),
        "number": transcript.problem,
        "sample": transcript.sample,
        "question": str(extra["question"]),
        "answer": None if extra["answer"] is None else str(extra["answer"]),
        "correct": bool(extra["correct"]),
        "forked": metrics.forked(transcript),
        "machine": str(extra.get("machine", "")),
        "stop": transcript.stop.name.lower() if transcript.stop != Stop.END else "",
        "counts": {
            "critical path": metrics.critical_path(transcript),
            "generated": metrics.generated_tokens(transcript),
            "fed": metrics.fed_tokens(transcript),
            "threads": metrics.threads(transcript),
            "peak context": int(transcript.peak_context),
        },
        "lanes": lanes,
        "token": tokens,
        "source": log.source.tolist(),
        "logprob": chance,
        "clock": clock.tolist(),
        "count": count.tolist(),
        "forks": forks,
        "joins": joins,
    }
