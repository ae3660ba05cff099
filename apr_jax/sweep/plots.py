"""Plots of the results of a sweep."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from apr_jax.evaluate.show.plots import INK, PALETTE
from apr_jax.sweep import points, report


def draw(path: Path, found: Sequence[report.Group], x: str, y: str, by: str = "") -> None:
    """Draw a value over an axis (a line for each value of another axis), with intervals over seeds.

    Args:
        path: the PNG file.
        found: the aggregated runs.
        x: an axis, or a value.
        y: a value.
        by: an axis; empty: one line.

    Raises:
        ValueError: an axis or a value is in no run that is done.
    """
    fields = sorted({field for group in found for field in group.point})
    known = sorted({key for group in found for key in group.means})
    for what, name, allowed in (("x", x, fields + known), ("y", y, known), ("by", by, ["", *fields])):
        if name not in allowed:
            raise ValueError(f"{what} is {name!r}; it can be one of {', '.join(allowed)}")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    drawn = [group for group in found if y in group.means and (x in group.point or x in group.means)]
    at = lambda group: group.means[x].mean if x in group.means else group.point[x]
    numbers = all(isinstance(at(group), int | float) for group in drawn)
    names = list(dict.fromkeys(points.text(group.point.get(by, "")) for group in drawn))
    for number, name in enumerate(names):
        mine = [group for group in drawn if points.text(group.point.get(by, "")) == name]
        mine = sorted(mine, key=at) if numbers else mine
        places = [at(group) if numbers else points.text(at(group)) for group in mine]
        means = [group.means[y] for group in mine]
        errors = [[mean.mean - mean.low for mean in means], [mean.high - mean.mean for mean in means]]
        colour = PALETTE[number % len(PALETTE)]
        style = "-o" if x in fields else "o"
        axis.errorbar(places, [m.mean for m in means], errors, fmt=style, color=colour, capsize=3, label=name)
    names_of = report.short(fields)
    axis.set_xlabel(names_of.get(x, x), color=INK)
    axis.set_ylabel(y, color=INK)
    axis.grid(alpha=0.3)
    if by:
        axis.legend(title=names_of[by], fontsize=8)
    figure.savefig(path, dpi=150)
