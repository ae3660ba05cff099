"""Watching one problem while it is decoded: its threads as they stand after every few steps, in a terminal."""

from collections.abc import Callable, Iterator

import rich.box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from apr_jax.decode import Engine, Problem, Stop, Transcript
from apr_jax.tokenizer import Stream, TextCodec

STEPS = 8  # device steps between two pictures
NARROWEST = 30  # columns of a terminal that a thread of text needs

Draw = Callable[[Transcript], RenderableType]


def watch(engine: Engine, request: Problem, seed: int, console: Console, draw: Draw) -> Transcript:
    """Decode one problem before the user's eyes; what was drawn meanwhile is gone at the end."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for transcript in snapshots(engine, request, seed):
            if console.is_terminal:
                live.update(draw(transcript), refresh=True)
    return transcript


def snapshots(engine: Engine, request: Problem, seed: int) -> Iterator[Transcript]:
    """The problem as it stands after every few steps; the last one is the finished transcript."""
    state = engine.load(engine.create(seed), [request])
    while True:
        state = engine.run(state, STEPS)
        state, found = engine.drain(state)
        yield from found or engine.peek(state)
        if found:
            return


def lines(transcript: Transcript, words: TextCodec, width: int, found: str) -> Table:
    """One line a thread: its last words, green where `found` occurs among all of them, and how it ended."""
    table = Table(box=rich.box.SIMPLE, expand=True, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="crop")
    table.add_column(no_wrap=True, justify="right")
    room = max(width - 34, 20)
    for number, thread in enumerate(transcript.threads):
        text = _text(transcript, number, words)
        shown = text if len(text) <= room else "..." + text[3 - room :]
        indent = "  " * max(len(thread.path) - 1, 0)
        name = Text(indent + _name(transcript, number), "bold")
        table.add_row(name, Text(shown, "green" if found in text else ""), Text(_ended(transcript, number), "dim"))
    return table


def columns(transcript: Transcript, words: TextCodec, console: Console, prompt: int) -> Columns:
    """A panel a thread, side by side, as many beside each other as the terminal has room for: the last lines of each.

    Args:
        transcript: as it stands.
        words: its tokenizer.
        console: where it is shown.
        prompt: length of the root's prompt, which is left out.
    """
    said = _said(transcript, words, prompt)
    side = max(min(len(said), console.width // NARROWEST), 1)
    bands = -(-len(said) // side)
    width, height = console.width // side - 1, max((console.height - 2) // max(bands, 1) - 2, 1)
    panels = []
    for number, text in said.items():
        tail = Text("\n").join(Text(text).wrap(console, width - 4)[-height:])
        title, state = _name(transcript, number), _ended(transcript, number)
        panels.append(Panel(tail, title=title, subtitle=state or None, width=width, height=height + 2))
    return Columns(panels, padding=(0, 1, 0, 0))


def whole(transcript: Transcript, words: TextCodec, prompt: int) -> Group:
    """All that was said after the prompt, thread by thread; arguments as for `columns`."""
    parts: list[RenderableType] = []
    for number, text in _said(transcript, words, prompt).items():
        state = _ended(transcript, number)
        parts += [Rule(f"{_name(transcript, number)}{f' ({state})' if state else ''}", style="dim"), Text(text)]
    return Group(*parts)


def _said(transcript: Transcript, words: TextCodec, prompt: int) -> dict[int, str]:
    """What threads said or were told, by their numbers, without the prompt and without threads that are silent."""
    texts = {
        number: _text(transcript, number, words, 0 if number else prompt) for number in range(len(transcript.threads))
    }
    return {number: text.strip() for number, text in texts.items() if text.strip()}


def _text(transcript: Transcript, thread: int, words: TextCodec, start: int = 0) -> str:
    """The text of a thread from one of its tokens on, without the marks of turns; a character that is not whole yet waits for
    its last byte."""
    stream = Stream(words)
    text = "".join(stream.push(i) for i in transcript.tokens(thread)[start:] if i not in words.marks)
    return text if transcript.threads[thread].stop == Stop.RUNNING else text + stream.finish()


def _name(transcript: Transcript, thread: int) -> str:
    path = transcript.threads[thread].path
    return f"thread {'.'.join(map(str, path))}" if path else "root"


def _ended(transcript: Transcript, thread: int) -> str:
    stop = transcript.threads[thread].stop
    return "" if stop == Stop.RUNNING else stop.name.lower()
