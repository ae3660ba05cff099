"""Plots of a comparison: accuracy against the critical path and against peak context.

A method has the same colour in every plot.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from apr_jax.evaluate.outcomes import BUDGETS, Outcome
from apr_jax.evaluate.report import TITLES, title

# Okabe and Ito's palette, distinguishable with every kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E")
INK, FAINT = "#222222", "#D9D9D9"
LABELS = {
    "critical_path": "critical path W (generated tokens on the longest chain)",
    "peak_context": "peak context W (most tokens one thread sees at once)",
}


def colour(method: str, methods: Sequence[str]) -> str:
    """The colour of a method: fixed for known methods, for others in the order of `methods`."""
    known = {name: PALETTE[i] for i, name in enumerate(TITLES)}
    if method in known:
        return known[method]
    others = [name for name in methods if name not in known]
    return PALETTE[(len(known) + others.index(method)) % len(PALETTE)]


def curve(outcomes: Sequence[Outcome], field: str = "critical_path") -> tuple[np.ndarray, np.ndarray]:
    """The budgets at which accuracy within a budget rises, ascending, and the accuracy reached there: both [S]."""
    budgets, solved = np.unique([getattr(o, field) for o in outcomes if o.correct], return_counts=True)
    return budgets, np.cumsum(solved) / len(outcomes)


def plot_accuracy(path: Path, outcomes: Mapping[str, Sequence[Outcome]], field: str = "critical_path") -> None:
    """Draws accuracy within a budget W for every W (line) and the accuracy at full budget over the mean (dot).

    Args:
        path: the PNG file.
        outcomes: per method one outcome per problem.
        field: `critical_path` or `peak_context`.

    Raises:
        ValueError: another field, or no problem to draw.
    """
    if field not in BUDGETS:
        raise ValueError(f"field is {field!r}; accuracy can be drawn against {' or '.join(BUDGETS)}")
    if not outcomes or not all(outcomes.values()):
        raise ValueError("outcomes is empty, or a method of it is; every method needs at least one problem")
    names = list(outcomes)
    figure, axes = _axes()
    used = np.concatenate([[getattr(o, field) for o in rows] for rows in outcomes.values()])
    low, high = max(1.0, float(used.min())), float(max(used.max(), 2))
    logarithmic = high / low > 12
    left = low / 1.15 if logarithmic else 0.0
    right = high * 1.06 if logarithmic else high * 1.03
    for name in names:
        budgets, within = curve(outcomes[name], field)
        x, y = [left, *budgets, right], [0, *within, within[-1] if len(within) else 0]
        tint = colour(name, names)
        mean = np.mean([(getattr(o, field), o.correct) for o in outcomes[name]], axis=0)
        axes.plot(x, y, drawstyle="steps-post", color=tint, linewidth=2, label=title(name), zorder=3)
        axes.plot(*mean, "o", color=tint, markersize=9, markeredgecolor="white", zorder=5)
    top = max(sum(o.correct for o in rows) / len(rows) for rows in outcomes.values())
    _budget_axis(axes, left, right, logarithmic)
    _finish(axes, LABELS[field], "accuracy within W", top)
    axes.plot([], [], "o", color="#888888", markersize=8, label="full budget, at the mean W")
    _legend(axes, len(names) + 1)
    _save(figure, path)


def plot_summary(path: Path, methods: Mapping[str, Mapping], field: str = "critical_path") -> None:
    """Draws accuracy over the mean of `field`, one dot per method, from the means that `report.compare` read.

    Args:
        path: the PNG file.
        methods: entries of `summary.json` by name.
        field: `critical_path` or `peak_context`.

    Raises:
        ValueError: `field` is another name, or there is no method to draw.
    """
    if field not in BUDGETS:
        raise ValueError(f"field is {field!r}; accuracy can be drawn against {' or '.join(BUDGETS)}")
    if not methods:
        raise ValueError("methods is empty; at least one is needed")
    figure, axes = _axes()
    names = list(methods)
    base = [name.rpartition("/")[2] for name in names]
    folders = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
    for name, method in zip(names, base, strict=True):
        marker = "osD^vP"[folders.index(name.rpartition("/")[0]) % 6]
        x, y = methods[name][field], methods[name]["accuracy"]
        axes.plot(
            x, y, marker, color=colour(method, list(dict.fromkeys(base))), markersize=10, label=title(name), zorder=4
        )
    top = max(entry["accuracy"] for entry in methods.values())
    axes.set_xlim(0, 1.1 * max(entry[field] for entry in methods.values()))
    _finish(axes, f"mean {LABELS[field].replace(' W', '')}", "accuracy", top)
    _legend(axes, len(names))
    _save(figure, path)


def plot_front(path: Path, methods: Mapping[str, Mapping], cost: str, label: str) -> None:
    """Draws accuracy over a cost: a line through the budgets of each method, the front through all of them, intervals as bars.

    Args:
        path: the PNG file.
        methods: by name, with accuracy, cost, and what `comparison.compared` adds.
        cost: the key of the cost.
        label: the name of the cost on its axis.

    Raises:
        ValueError: there is no method to draw.
    """
    if not methods:
        raise ValueError("methods is empty; at least one is needed")
    figure, axes = _axes()
    families = list(dict.fromkeys(entry["family"] for entry in methods.values()))
    costs = [entry[cost] for entry in methods.values()]
    for name in families:
        mine = sorted((e for e in methods.values() if e["family"] == name), key=lambda e: e["budget"])
        x, y = [e[cost] for e in mine], np.array([e["accuracy"] for e in mine])
        bars = np.abs(np.transpose([e["accuracy_interval"] for e in mine]) - y)
        style = dict(color=colour(name, families), linewidth=1.4, markersize=6, label=title(name), zorder=4)
        axes.errorbar(
            x, y, yerr=bars, marker="osD^vP"[families.index(name) // len(PALETTE) % 6], elinewidth=0.6, **style
        )
    best = sorted((e[cost], e["accuracy"]) for e in methods.values() if cost in e["fronts"])
    axes.plot(*zip(*best, strict=True), color=INK, linewidth=6, alpha=0.12, zorder=2, label="front")
    low, high = max(min(costs), 1e-3), max(costs)
    logarithmic = high / low > 12
    _budget_axis(axes, low / 1.15 if logarithmic else 0.0, high * 1.1, logarithmic)
    _finish(axes, f"mean {label}", "accuracy", max(e["accuracy_interval"][1] for e in methods.values()))
    _legend(axes, len(families) + 1)
    _save(figure, path)


def curves(lines: Sequence[Mapping[str, float]], names: Sequence[str]) -> Figure:
    """Numbers of a training run over its steps, one plot each, side by side.

    Args:
        lines: of `metrics.jsonl`, or those that there are by now; not every line has every number.
        names: of the numbers.
    """
    figure = Figure(figsize=(3.4 * len(names), 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*np.reshape(points, (-1, 2)).T, color=PALETTE[0], linewidth=1.6, marker=".", zorder=3)
        axes.set_title(name, color=INK, fontsize=10)
        axes.set_xlabel("step", color=INK)
        axes.grid(color=FAINT, linewidth=0.7, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _budget_axis(axes: Axes, left: float, right: float, logarithmic: bool) -> None:
    """Limits and, on a logarithmic axis, plain numbers (1, 2, 5 times powers of ten) as ticks."""
    if logarithmic:
        axes.set_xscale("log")
        ticks = [m * 10**e for e in range(7) for m in (1, 2, 5) if left <= m * 10**e <= right]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(left, right)


def _finish(axes: Axes, x_label: str, y_label: str, top: float) -> None:
    axes.set_ylim(0, min(1.02, max(0.1, 1.12 * top)))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.grid(color=FAINT, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(color=FAINT, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")


def _legend(axes: Axes, entries: int) -> None:
    """The legend above the axes, where it hides nothing."""
    columns = min(entries, 3)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, frameon=False, borderaxespad=0.2, handlelength=1.6
    )


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=160, facecolor="white")
