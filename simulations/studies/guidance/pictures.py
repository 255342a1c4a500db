"""The study's chart, and panels of its counterfactuals."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes

from mediffusion_core.evaluation.counterfactual_panel import CounterfactualRow
from mediffusion_core.reporting.pictures import save_counterfactual_panel
from mediffusion_core.reporting.style import (
    BLUE,
    INK,
    MUTED,
    TERRACOTTA,
    house_type,
    new_figure,
    save_figure,
)
from simulations.studies.guidance.measure import Row
from simulations.studies.study_images import StudyImages

SHOWN = 10


def save_panel(
    row: Row, images: StudyImages, classes: tuple[str, ...], seed: int, path: Path
) -> None:
    """Draws the counterfactuals of up to ten images that the seed selects, flipped or not."""
    order = torch.randperm(len(images.images), generator=torch.Generator().manual_seed(seed))
    rows = []
    for at in sorted(order[:SHOWN].tolist()):
        truth = images.truth_shown[at]
        rows.append(
            CounterfactualRow(
                source=row.made.sources[at].numpy(),
                counterfactual=row.made.images[at].numpy(),
                target=images.panel.names[at],
                classes=classes,
                before=row.made.before[at].numpy(),
                after=row.made.after[at].numpy(),
                flipped=row.made.outcome(at),
                truth=truth.numpy() if bool(truth.isfinite().all()) else None,
            )
        )
    save_counterfactual_panel(rows, path)


def save_chart(grid: Sequence[Row], knee: str | None, path: Path) -> None:
    """Draws the share of flips against L1 for the points of the grid, and marks the knee.

    Points are numbered by their L1. Filled ones are flips of the model, hollow ones of the
    independent classifier.
    """
    with house_type():
        figure = new_figure(7.2, 4.0, layout="constrained")
        axes = figure.subplots()
        by_closeness = sorted(grid, key=lambda row: row.figures["l1"].value)
        for number, row in enumerate(by_closeness, 1):
            _draw_point(axes, row, number, row.method.name == knee)
            _write_legend(axes, row, number, row.method.name == knee, max(12, len(grid)))
        axes.set(xlabel="L1 to the source", ylim=(None, 1.08))
        axes.set_title("Share of images flipped: ● by the model, ○ by the independent classifier")
        axes.grid(axis="y")
        axes.margins(x=0.08)
        save_figure(figure, path)


def _draw_point(axes: Axes, row: Row, number: int, is_knee: bool) -> None:
    names = ("l1", "flipped", "independent_flipped")
    closeness, flips, independent_flips = (row.figures[name].value for name in names)
    colour = TERRACOTTA if is_knee else BLUE
    axes.plot([closeness, closeness], [flips, independent_flips], color=MUTED, lw=0.6)
    axes.plot(closeness, flips, "o", color=colour, ms=5)
    axes.plot(closeness, independent_flips, "o", mfc="white", mec=colour, ms=5)
    axes.annotate(
        str(number),
        (closeness, max(flips, independent_flips)),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        color=INK if is_knee else MUTED,
        size=6.5,
    )


def _write_legend(axes: Axes, row: Row, number: int, is_knee: bool, lines: int) -> None:
    """Writes one line of the legend, number and name, at the right of the axes."""
    axes.annotate(
        f"{number}  {row.method.name}{', the knee' if is_knee else ''}",
        (1.02, 1 - (number - 1) / lines),
        xycoords="axes fraction",
        va="top",
        color=INK if is_knee else MUTED,
        size=6.5,
    )
