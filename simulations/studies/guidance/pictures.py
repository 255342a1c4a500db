"""The study's chart, and panels of its counterfactuals."""

from collections.abc import Sequence
from pathlib import Path

import torch

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
from simulations.studies.guidance.images import StudyImages
from simulations.studies.guidance.measure import Row

SHOWN = 10


def save_panel(
    row: Row, images: StudyImages, classes: tuple[str, ...], seed: int, path: Path
) -> None:
    """Counterfactuals of up to ten images that the seed draws, whether they flipped or not."""
    order = torch.randperm(len(images.images), generator=torch.Generator().manual_seed(seed))
    rows = []
    for at in sorted(order[:SHOWN].tolist()):
        truth = images.shown[at]
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
    """Flips against L1 for the grid's points, numbered from the nearest on, the knee marked.

    Filled points are by the model, hollow ones by the independent classifier.
    """
    with house_type():
        figure = new_figure(7.2, 4.0, layout="constrained")
        axes = figure.subplots()
        nearest_first = sorted(grid, key=lambda row: row.figures["l1"].value)
        for number, row in enumerate(nearest_first, 1):
            names = ("l1", "flipped", "independent_flipped")
            closeness, flips, agreed = (row.figures[name].value for name in names)
            chosen = row.method.name == knee
            colour = TERRACOTTA if chosen else BLUE
            axes.plot([closeness, closeness], [flips, agreed], color=MUTED, lw=0.6)
            axes.plot(closeness, flips, "o", color=colour, ms=5)
            axes.plot(closeness, agreed, "o", mfc="white", mec=colour, ms=5)
            ink = {"color": INK if chosen else MUTED, "size": 6.5}
            above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axes.annotate(str(number), (closeness, max(flips, agreed)), **above, **ink)
            place = {"xycoords": "axes fraction", "va": "top"}
            line = f"{number}  {row.method.name}{', the knee' if chosen else ''}"
            axes.annotate(line, (1.02, 1 - (number - 1) / max(12, len(grid))), **place, **ink)
        axes.set(xlabel="L1 to the source", ylim=(None, 1.08))
        axes.set_title("Share of images flipped: ● by the model, ○ by the independent classifier")
        axes.grid(axis="y")
        axes.margins(x=0.08)
        save_figure(figure, path)
