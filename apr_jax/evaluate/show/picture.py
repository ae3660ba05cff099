"""A still picture of one problem's threads, for documents."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from apr_jax.evaluate import metrics
from apr_jax.evaluate.show.timeline import links, places
from apr_jax.record import Source, Transcript

COLOURS = {Source.SAMPLED: "#3B82C4", Source.FED: "#B9C2CB", Source.HANDED: "#9B8AC4", Source.REWRITTEN: "#52A884"}
NAMES = {Source.SAMPLED: "generated", Source.FED: "fed", Source.HANDED: "handed over", Source.REWRITTEN: "rewritten"}
INK, LINE = "#222222", "#7A8794"
BAR, GLYPHS = 0.36, 118  # height of a bar in lanes; number of small letters that fit across the picture
LANE, CROWD = 0.48, 24  # inches per lane; number of threads from which lanes are squeezed and carry no text


def draw_timeline(
    transcript: Transcript, path: Path, text: Callable[[int], str] | None = None, heading: str | None = None
) -> None:
    """Draws the threads of one problem over the causal clock.

    Args:
        transcript: the transcript of the problem.
        path: the PNG file.
        text: function from a token id to text; if given, each thread shows its first message and its last words (up to 24
            threads).
        heading: a line above the picture; a line with the counts follows in any case.

    Raises:
        ValueError: the log is empty.
    """
    log = transcript.log
    if not len(log):
        raise ValueError(f"the log of problem {transcript.problem} is empty; there is nothing to draw")
    clock, _ = places(transcript)
    order = sorted(set(log.thread.tolist()), key=lambda thread: transcript.threads[thread].path)
    lane = {thread: number for number, thread in enumerate(order)}
    height = LANE if len(order) <= CROWD else LANE * CROWD / len(order)
    figure = Figure(figsize=(9.6, 1.2 + height * len(order)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    span = int(clock.max()) + 1
    for thread in order:
        _bars(axes, transcript, clock, thread, lane[thread])
        if text is not None and len(order) <= CROWD:
            _words(axes, transcript, clock, thread, lane[thread], text, span)
    for kind, pairs in zip(("-", "--"), links(transcript), strict=True):
        for start, end in pairs:
            _connect(axes, kind, clock, lane, log.thread, start, end)
    _frame(axes, transcript, order, span, heading)
    figure.savefig(path, dpi=160, facecolor="white")


def _bars(axes: Axes, transcript: Transcript, clock: np.ndarray, thread: int, y: int) -> None:
    """One bar for every run of tokens of one source without a gap."""
    log = transcript.log
    entries = np.flatnonzero(log.thread == thread)
    cut = (np.diff(log.source[entries]) != 0) | (np.diff(clock[entries]) != 1)
    for part in np.split(entries, np.flatnonzero(cut) + 1):
        colour = COLOURS[Source(log.source[part[0]])]
        axes.broken_barh([(clock[part[0]], len(part))], (y - BAR / 2, BAR), color=colour, linewidth=0, zorder=3)


def _words(
    axes: Axes, transcript: Transcript, clock: np.ndarray, thread: int, y: int, text: Callable, span: int
) -> None:
    """Writes a thread's first message above the start of its lane and its last words above the end, as far as they fit."""
    log = transcript.log
    entries = np.flatnonzero(log.thread == thread)
    later = np.flatnonzero(log.sampled[entries])
    first = entries[: later[0]] if len(later) else entries
    final = entries[np.flatnonzero(~log.sampled[entries])[-1] + 1 :]
    left, right = int(clock[entries[0]]), int(clock[entries[-1]]) + 1
    room = int((right - left) / span * GLYPHS)
    options = {"fontsize": 6.5, "family": "monospace", "va": "bottom", "zorder": 5}
    head = "".join(text(int(token)) for token in log.token[first])
    fits = max(room, min(int((span - left) / span * GLYPHS), 30))
    head = head if len(head) <= fits else head[: fits - 1] + "…"
    axes.text(left, y - BAR / 2 - 0.04, head, color="#66717C", ha="left", **options)
    tail = "".join(text(int(token)) for token in log.token[final])
    free = min(room - len(head) - 2, 48)
    if free >= 12 and tail:
        tail = tail if len(tail) <= free else "…" + tail[1 - free :]
        axes.text(right, y - BAR / 2 - 0.04, tail, color="#1F5C92", ha="right", **options)


def _connect(axes: Axes, style: str, clock: np.ndarray, lane: dict, thread: np.ndarray, start: int, end: int) -> None:
    """Draws a fork downwards at the child's first clock, or a join upwards at the clock of the message."""
    x, y1, y2 = clock[end], lane[thread[start]], lane[thread[end]]
    leaves = min(clock[start] + 1, x)
    axes.plot([leaves, x], [y1, y1], style, color=LINE, linewidth=0.9, zorder=2)
    axes.plot([x, x], [y1, y2], "-", color=LINE, linewidth=0.9, zorder=2)


def _frame(axes: Axes, transcript: Transcript, order: list[int], span: int, heading: str | None) -> None:
    counts = (
        f"{metrics.generated_tokens(transcript):,} tokens generated, {metrics.critical_path(transcript):,} on the "
        f"critical path, {metrics.fed_tokens(transcript):,} fed, {metrics.threads(transcript)} threads"
    )
    axes.set_title(f"{heading}\n{counts}" if heading else counts, loc="left", fontsize=10, color=INK)
    axes.set_xlim(-0.005 * span, span * 1.005)
    axes.set_ylim(len(order) - 0.5, -0.75)
    names = [".".join(map(str, transcript.threads[t].path)) or "root" for t in order]
    axes.set_yticks(range(len(order)), names, color=INK, fontsize=10 * min(1, CROWD / len(order)))
    axes.set_xlabel("causal clock", color=INK)
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(axis="x", color="#E6E9EC", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    present = [source for source in Source if (transcript.log.source == source).any()]
    patches = [Patch(color=COLOURS[source], label=NAMES[source]) for source in present]
    axes.legend(
        handles=patches, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=9, borderaxespad=0.2
    )
