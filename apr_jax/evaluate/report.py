"""One table of all methods, for the terminal and as Markdown, and the comparison of several runs."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from apr_jax.evaluate.outcomes import Outcome, accuracy_within, read_summary

# Names of methods in tables, plots and pages; a method that is not listed is shown under its own name.
TITLES = {
    "apr": "APR (spawn and join)",
    "self_consistency": "self-consistency",
    "best_of_n": "best-of-N",
}
COLUMNS = (
    ("accuracy", "accuracy"),
    ("critical_path", "critical path"),
    ("generated_tokens", "generated"),
    ("fed_tokens", "fed"),
    ("threads", "threads"),
    ("activation", "forks"),
    ("peak_context", "peak context"),
    ("wall_s", "wall s"),
)
FAILURES = ("judge_failures", "judge failed")  # a column where there are any
REASONS = 3  # why judges failed, in one line
_SHARES = ("accuracy", "activation")
_PREFIX = "accuracy_"


BUDGETS = (64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048)  # tokens


def title(method: str) -> str:
    """The name of a method as readers see it; `folder/method` keeps its folder."""
    folder, _, name = method.rpartition("/")
    return (f"{folder}: " if folder else "") + TITLES.get(name, name.replace("_", " "))


def rows(methods: Mapping[str, Mapping]) -> list[tuple[str, ...]]:
    """The cells of the table, one row per method and one more per further selection rule of it.

    A key `accuracy_RULE` of a method gives a row that differs in accuracy only; an oracle is named as such.
    """
    cells, shown_columns = [], columns(methods)
    for name, entry in methods.items():
        entry = {FAILURES[0]: 0, "oracles": ["verifier"], **entry}  # earlier summaries do not say
        cells.append((title(name), *(_cell(key, entry[key]) for key, _ in shown_columns)))
        for key in entry:
            if key.startswith(_PREFIX):
                rule = key.removeprefix(_PREFIX)
                kind = " (oracle)" if rule in entry["oracles"] else ""
                shown = entry | {"accuracy": entry[key]}
                label = f"{title(name)}, by {rule.replace('_', ' ')}{kind}"
                cells.append((label, *(_cell(key, shown[key]) for key, _ in shown_columns)))
    return cells


def columns(methods: Mapping[str, Mapping]) -> tuple[tuple[str, str], ...]:
    """Keys and headings of the table's columns: `COLUMNS`, and the failures of judges if there are any."""
    failed = any(entry.get(FAILURES[0]) for entry in methods.values())
    return (*COLUMNS, FAILURES) if failed else COLUMNS


def judge_failures(methods: Mapping[str, Mapping]) -> list[str]:
    """A line for each method with answers on which its judge failed: how many, and the most frequent reasons."""
    lines = []
    for name, entry in methods.items():
        if not entry.get(FAILURES[0]):
            continue
        reasons = [f"{count:,} x {_line(reason)}" for reason, count in entry["judge_failure_reasons"].items()]
        others = [f"{len(reasons) - REASONS:,} other reasons, see summary.json"] if len(reasons) > REASONS else []
        told = "; ".join(reasons[:REASONS] + others)
        lines.append(f"{title(name)}: the judge failed on {entry[FAILURES[0]]:,} answers, which count as wrong: {told}")
    return lines


def _line(text: str) -> str:
    """A text that may quote what a model wrote, as a part of a line for a terminal."""
    return textwrap.shorten("".join(c if c.isprintable() else " " for c in text), 120)


def table(methods: Mapping[str, Mapping], problems: int | None = None) -> Table:
    """The table for the terminal.

    Args:
        methods: entries of `summary.json` by name.
        problems: number of problems, for the caption.
    """
    caption = f"{problems:,} problems; counts are means per problem, wall time is for all" if problems else None
    made = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        caption=caption,
        caption_justify="left",
        header_style="bold",
    )
    shown = columns(methods)
    made.add_column("method", min_width=17 if shown == COLUMNS else 12)  # within 80 letters
    for _, heading in shown:
        made.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    best = max((entry["accuracy"] for entry in methods.values()), default=0.0)
    named = {title(name): entry for name, entry in methods.items()}
    for label, *cells in rows(methods):
        style = (
            "bold" if label in named and named[label]["accuracy"] == best else ("dim" if label not in named else None)
        )
        made.add_row(label, *cells, style=style)
    return made


def markdown(methods: Mapping[str, Mapping], problems: int | None = None) -> str:
    """The same table as Markdown, with a line about the units below it."""
    lines = [
        "| " + " | ".join(["method", *(heading for _, heading in columns(methods))]) + " |",
        "| --- |" + " ---: |" * len(columns(methods)),
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(methods)]
    if problems:
        lines += ["", f"{problems:,} problems; counts are means per problem, wall time is for all of them."]
    return "\n".join(lines) + "\n"


def budget_markdown(outcomes: Mapping[str, Sequence[Outcome]], field: str) -> str:
    """Accuracy of each method within budgets of `field`, from the smallest to one that nothing exceeds, as Markdown."""
    largest = max(getattr(o, field) for found in outcomes.values() for o in found)
    budgets = [budget for budget in BUDGETS if budget < largest] + [largest]
    lines = [f"| {field.replace('_', ' ')} at most | " + " | ".join(f"{b:,}" for b in budgets) + " |"]
    lines.append("|---" * (len(budgets) + 1) + "|")
    for name, found in outcomes.items():
        cells = [f"{accuracy_within(found, budget, field):.1%}" for budget in budgets]
        lines.append(f"| {title(name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def compare(folders: Iterable[Path]) -> dict[str, dict]:
    """Reads `summary.json` of several result folders (or the files themselves).

    Returns:
        Entries by `folder/method`, in the order given, ready for `table`, `markdown` and `plots.plot_summary`.

    Raises:
        FileNotFoundError: a folder without `summary.json`.
        ValueError: a file of another shape, or two folders of the same name.
    """
    found: dict[str, dict] = {}
    for folder in map(Path, folders):
        path = folder / "summary.json" if folder.is_dir() else folder
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; an evaluation writes summary.json into its result folder")
        for method, entry in read_summary(path)["methods"].items():
            name = f"{path.parent.resolve().name}/{method}"
            if name in found:
                raise ValueError(
                    f"{path}: {name!r} was read already; results to compare need folders of different names"
                )
            found[name] = entry
    return found


def _cell(key: str, value: float) -> str:
    if key in _SHARES:
        return f"{100 * value:.1f}%"
    if key == FAILURES[0]:
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
