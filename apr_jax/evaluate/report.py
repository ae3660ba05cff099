"""One table of all methods, for the terminal and as Markdown, and the comparison of several runs."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from apr_jax.evaluate.machine import Machine
from apr_jax.evaluate.outcomes import Outcome, accuracy_within, read_summary

# Names of methods in tables, plots and pages; other methods are shown under their own names.
TITLES = {
    "apr": "APR (spawn and join)",
    "self_consistency": "self-consistency",
    "best_of_n": "best-of-N",
}
COLUMNS = (  # what fits a terminal of 80 characters
    ("accuracy", "accuracy"),
    ("critical_path", "critical path"),
    ("generated_tokens", "generated"),
    ("fed_tokens", "fed"),
    ("threads", "threads"),
    ("activation", "forks"),
    ("peak_context", "peak context"),
    ("wall_s", "wall s"),
)
RATIOS = (("acceleration_ratio", "acceleration ratio"), ("parallel_ratio", "parallel ratio"))
FAILURES = ("judge_failures", "judge failed")  # a column where there are any
REASONS = 3  # most reasons of judges' failures in one line
_SHARES = ("accuracy", "activation", "acceleration_ratio", "parallel_ratio")
_NAME = 17  # characters of a method's name, at least; longer ones are folded
_PREFIX, _MAKESPAN = "accuracy_", "makespan_"

BUDGETS = (64, 128, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048)  # tokens


def title(method: str) -> str:
    """The name of a method for readers; `folder/method` keeps its folder, `method@budget` its budget."""
    folder, _, name = method.rpartition("/")
    name, at, budget = name.partition("@")
    return (
        (f"{folder}: " if folder else "") + TITLES.get(name, name.replace("_", " ")) + (f" {at}{budget}" if at else "")
    )


def rows(methods: Mapping[str, Mapping], shown: Sequence[tuple[str, str]] = COLUMNS) -> list[tuple[str, ...]]:
    """The cells of the table, one row per method and one more per further selector of the method.

    A key `accuracy_RULE` of a method gives a row that differs in accuracy only; oracles are marked. Missing values give empty
    cells.
    """
    cells = lambda label, entry: (label, *(_cell(key, entry.get(key)) for key, _ in shown))
    made = []
    for name, entry in methods.items():
        entry = {FAILURES[0]: 0, "oracles": ["verifier"], **entry}  # earlier summaries lack these keys
        made.append(cells(title(name), entry))
        for key in entry:
            if key.startswith(_PREFIX):
                rule = key.removeprefix(_PREFIX)
                kind = " (oracle)" if rule in entry["oracles"] else ""
                label = f"{title(name)}, by {rule.replace('_', ' ')}{kind}"
                made.append(cells(label, entry | {"accuracy": entry[key]}))
    return made


def columns(methods: Mapping[str, Mapping], wide: bool) -> tuple[tuple[str, str], ...]:
    """Keys and headings of the table's columns: `COLUMNS`, and the failures of judges if there are any.

    A wide table also has the computed makespans, from the most workers to the fewest, and `RATIOS`. (The critical path is the
    makespan of any number of workers, the generated tokens are the makespan of one.)
    """
    keys = {key for entry in methods.values() for key in entry if key.startswith(_MAKESPAN)}
    workers = sorted((int(key.removeprefix(_MAKESPAN)) for key in keys), reverse=True)
    spans = [(f"{_MAKESPAN}{k}", f"makespan ({k})") for k in workers]
    after = {"critical_path": spans, "generated_tokens": RATIOS} if wide else {}
    shown = tuple(column for first in COLUMNS for column in (first, *after.get(first[0], ())))
    failed = any(entry.get(FAILURES[0]) for entry in methods.values())
    return (*shown, FAILURES) if failed else shown


def judge_failures(methods: Mapping[str, Mapping]) -> list[str]:
    """A line for each method whose judge failed on answers: the number of failures, and the most frequent reasons."""
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
    """A text, which may quote model output, made safe as a part of a line for a terminal."""
    return textwrap.shorten("".join(c if c.isprintable() else " " for c in text), 120)


def table(methods: Mapping[str, Mapping], problems: int | None = None, width: int = 80) -> Table:
    """The table for the terminal: the wide table if it fits, else the table for 80 characters, which names what it leaves out.

    Args:
        methods: entries of `summary.json` by name.
        problems: number of problems, for the caption.
        width: width of the terminal, in characters.
    """
    shown, needed = columns(methods, wide=True), _width(methods)
    captions = (
        [f"{problems:,} problems; counts are means per problem, wall time is for all, without compiling"]
        if problems
        else []
    )
    if needed > width:
        shown = columns(methods, wide=False)
        captions.append(f"makespans and ratios: in report.md, or in a terminal of {needed} characters")
    made = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        show_edge=False,
        caption="\n".join(captions) or None,
        caption_justify="left",
        header_style="bold",
    )
    made.add_column("method", min_width=_NAME - 5 * (FAILURES in shown))  # within 80 characters
    for _, heading in shown:
        made.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    best = max((entry["accuracy"] for entry in methods.values()), default=0.0)
    named = {title(name): entry for name, entry in methods.items()}
    for label, *cells in rows(methods, shown):
        style = (
            "bold" if label in named and named[label]["accuracy"] == best else ("dim" if label not in named else None)
        )
        made.add_row(label, *cells, style=style)
    return made


def _width(methods: Mapping[str, Mapping]) -> int:
    """The least number of characters that the wide table needs."""
    shown = columns(methods, wide=True)
    table = [("", *(heading for _, heading in shown)), *rows(methods, shown)]
    words = [[word for row in table for word in row[i].split()] for i in range(1, len(table[0]))]
    return _NAME + sum(1 + max(map(len, column)) for column in words)


def markdown(methods: Mapping[str, Mapping], problems: int | None = None, wide: bool = True) -> str:
    """The table as Markdown, with a line about the units below it."""
    shown = columns(methods, wide)
    lines = [
        "| " + " | ".join(["method", *(heading for _, heading in shown)]) + " |",
        "| --- |" + " ---: |" * len(shown),
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(methods, shown)]
    if problems:
        lines += [
            "",
            f"{problems:,} problems; counts are means per problem, wall time is for all of them, without compiling.",
        ]
    return "\n".join(lines) + "\n"


def machines(methods: Mapping[str, Mapping]) -> list[str]:
    """A line for each machine that decoded methods; with several machines, each line names its methods."""
    users: dict[str, list[str]] = {}
    for name, entry in methods.items():
        for machine in entry.get("machines", []):  # absent in earlier summaries
            users.setdefault(str(Machine.of_entry(machine)), []).append(title(name))
    return [f"{', '.join(names)}: {text}" if len(users) > 1 else text for text, names in users.items()]


def budget_markdown(outcomes: Mapping[str, Sequence[Outcome]], field: str) -> str:
    """Accuracy of each method within budgets of `field`, up to a budget that no problem exceeds, as Markdown."""
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
        FileNotFoundError: a folder has no `summary.json`.
        ValueError: a file has another shape, or two folders have the same name.
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


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key in _SHARES:
        return f"{100 * value:.1f}%"
    if key == FAILURES[0]:
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
