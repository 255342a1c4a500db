"""The chart of a study of labels: AUC against the labelled fraction."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, PercentFormatter

from mediffusion_core.reporting.charts import spread
from mediffusion_core.reporting.style import (
    BLUE,
    FAINT,
    MUTED,
    OCHRE,
    TERRACOTTA,
    house_type,
    new_figure,
    save_figure,
)

COLOURS = (BLUE, TERRACOTTA, OCHRE, MUTED)

Points = Mapping[float, Mapping[str, Any]]
"""Rows of one method by labelled fraction."""


class LineEnd(NamedTuple):
    """The last point of a method's line, with the method's title and colour."""

    fraction: float
    auc: float
    title: str
    colour: str


def save_label_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws AUC against the labelled fraction; a method at one fraction alone is a point.

    Writes nothing if no AUC was measured.
    """
    series: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in rows:
        if row["auc_macro"] is not None:
            series.setdefault(row["title"], {})[row["fraction"]] = row
    if not series:
        return
    with house_type():
        figure = new_figure(6.4, 4.0, layout="constrained")
        axes = figure.subplots()
        ends = _draw_methods(axes, series)
        fractions = sorted({fraction for points in series.values() for fraction in points})
        axes.set_xscale("log")
        axes.set_xticks(fractions)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("labelled fraction of the training images")
        axes.set_title("Macro AUC on held-out lesions or patients, mean ± deviation of seeds")
        axes.grid(axis="y")
        axes.margins(x=0.35, y=0.1)
        if len(fractions) == 1:
            axes.set_xlim(fractions[0] / 1.7, fractions[0] * 1.7)
        label_ends(axes, ends)
        save_figure(figure, path)


def _draw_methods(axes: Axes, series: Mapping[str, Points]) -> list[LineEnd]:
    """Draws a line or a point for each method; lines have colours, and points if all are points."""
    colours = iter(COLOURS)
    single = [title for title, points in series.items() if len(points) == 1]
    ends = []
    for title, points in series.items():
        fractions = sorted(points)
        aucs = [points[fraction]["auc_macro"] for fraction in fractions]
        errors = [points[fraction]["auc_deviation"] or 0.0 for fraction in fractions]
        is_line = title not in single
        is_coloured = is_line or len(single) == len(series)
        colour = next(colours, FAINT) if is_coloured else FAINT
        # Points at one fraction are moved apart, so that no error bar hides another.
        offset = 1.0 if is_line else 1.05 ** -single.index(title)
        places = [fraction * offset for fraction in fractions]
        style = "o-" if is_line else "s"
        axes.errorbar(places, aucs, errors, fmt=style, color=colour, ms=4, lw=1.6, capsize=2)
        ends.append(LineEnd(fractions[-1], aucs[-1], title, colour if is_coloured else MUTED))
    return ends


def label_ends(axes: Axes, ends: Sequence[LineEnd]) -> None:
    """Writes each method's title beside its last point, moved apart where titles would overlap."""
    low, high = axes.get_ylim()
    for fraction in {end.fraction for end in ends}:
        column = sorted((end for end in ends if end.fraction == fraction), key=lambda end: end.auc)
        heights = spread([(end.auc - low) / (high - low) for end in column], 0.045)
        for height, end in zip(heights, column, strict=True):
            axes.annotate(
                end.title,
                (fraction, low + height * (high - low)),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=end.colour,
                size=7.5,
            )
