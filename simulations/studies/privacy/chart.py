"""The figure of the page: utility and leakage against ε."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mediffusion_core.evaluation.bootstrap import Estimate
from mediffusion_core.evaluation.membership_inference import FALSE_POSITIVE_RATE
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
from simulations.studies.privacy.cells import epsilon_text
from simulations.studies.privacy.summary import Point
from simulations.studies.privacy.table import AUC, ECE, LOWER_BOUND, TPR, Row

CHART = "tradeoff.png"
STAGES = (BLUE, OCHRE)
"""Colours of the stages that were audited."""


def save_tradeoff(points: Sequence[Point], rows: Sequence[Row], path: Path) -> None:
    """Draws AUC, ECE, audited ε and TPR against ε; each dot is one run."""
    with house_type():
        figure = new_figure(8.0, 5.6, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr,call-arg]
        (auc, ece), (audit, attack) = figure.subplots(2, 2)
        _draw_mean(auc, points, rows, "Macro AUC", AUC, [one.auc for one in points])
        _draw_mean(ece, points, rows, "Calibration error (ECE)", ECE, [one.ece for one in points])
        ece.set_ylim(0, max(0.05, 1.2 * max((_top(one.ece) for one in points), default=0.0)))
        _draw_audits(audit, points, rows)
        _draw_attacks(attack, points, rows)
        for axes in (auc, ece, audit, attack):
            axes.set_xticks(range(len(points)), [epsilon_text(one.epsilon) for one in points])
            axes.set_xlim(-0.4, len(points) - 0.6)
            axes.set_xlabel("promised ε")
            axes.grid(axis="y")
        save_figure(figure, path)


def _draw_mean(
    axes: Axes,
    points: Sequence[Point],
    rows: Sequence[Row],
    title: str,
    figure: str,
    means: Sequence[Estimate],
) -> None:
    axes.set_title(title)
    _draw_runs(axes, points, [row for row in rows if row.figure == figure])
    places = range(len(points))
    _draw_line(axes, points, [one.value for one in means])
    for place, one in zip(places, means, strict=True):
        axes.plot([place, place], [one.low, one.high], color=BLUE, lw=1.4)


def _draw_audits(axes: Axes, points: Sequence[Point], rows: Sequence[Row]) -> None:
    axes.set_title("Lower bound of ε by audit")
    stages = dict.fromkeys(audit.stage for point in points for audit in point.audits)
    for stage, colour in zip(stages, STAGES, strict=False):
        found = [row for row in rows if (row.figure, row.of) == (LOWER_BOUND, stage)]
        _draw_runs(axes, points, found, colour, f"{stage} stage")
    promised = [one.epsilon if math.isfinite(one.epsilon) else math.nan for one in points]
    _draw_line(axes, points, promised, TERRACOTTA, "_", "promised")
    provable = [audit.provable for point in points for audit in point.audits]
    if provable:
        axes.axhline(max(provable), color=MUTED, lw=1, ls=":", label="most that can be proven")
    axes.set_ylim(bottom=-0.2)
    axes.legend(fontsize=7.5)


def _draw_attacks(axes: Axes, points: Sequence[Point], rows: Sequence[Row]) -> None:
    axes.set_title(f"Members found at {FALSE_POSITIVE_RATE:.0%} false positives")
    found = [row for row in rows if row.figure == TPR]
    _draw_runs(axes, points, found, label="an attack on a run")
    best = [one.best.value if one.best else math.nan for one in points]
    _draw_line(axes, points, best, label="best attack")
    allowed = [one.largest_tpr for one in points]
    _draw_line(axes, points, allowed, TERRACOTTA, "_", "allowed by the promise")
    axes.axhline(FALSE_POSITIVE_RATE, color=MUTED, lw=1, ls=":", label="guessing")
    # Linear up to the share that guessing finds, so that 0 has a place.
    axes.set_yscale("symlog", linthresh=FALSE_POSITIVE_RATE)
    axes.set_ylim(0, 1.2)
    axes.set_yticks([0, 0.01, 0.03, 0.1, 0.3, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(fontsize=7.5)


def _draw_runs(
    axes: Axes,
    points: Sequence[Point],
    rows: Sequence[Row],
    colour: str = FAINT,
    label: str | None = None,
) -> None:
    places = {point.epsilon: place for place, point in enumerate(points)}
    at = [places[row.epsilon] for row in rows]
    axes.plot(at, [row.value for row in rows], "o", color=colour, ms=4, label=label, alpha=0.8)


def _draw_line(
    axes: Axes,
    points: Sequence[Point],
    values: Sequence[float],
    colour: str = BLUE,
    marker: str = "o",
    label: str | None = None,
) -> None:
    """Values against ε; no line leads to an infinite ε."""
    finite = sum(math.isfinite(one.epsilon) for one in points)
    style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4 if marker == "o" else 12}
    axes.plot(range(finite), values[:finite], lw=1.4, label=label, **style)
    axes.plot(range(finite, len(points)), values[finite:], ls="", **style)


def _top(one: Estimate) -> float:
    """The upper end, or the value where it has no interval; 0 where it is missing."""
    return max((number for number in (one.value, one.high) if math.isfinite(number)), default=0.0)
