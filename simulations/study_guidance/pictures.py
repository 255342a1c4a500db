"""The study's chart, and panels of its counterfactuals."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mediffusion_core.artifacts.pictures import CounterfactualRow, save_counterfactual_panel
from mediffusion_core.artifacts.style import (
    BLUE,
    INK,
    MUTED,
    TERRACOTTA,
    house_type,
    new_figure,
    save_figure,
)
from simulations.study_guidance.images import StudyImages
from simulations.study_guidance.measure import Row

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
    """Flips against L1 for the grid's points, the knee marked.

    Filled points are by the model, hollow ones by the independent classifier.
    """
    with house_type():
        figure = new_figure(6.4, 4.0, layout="constrained")
        axes = figure.subplots()
        for row in grid:
            closeness = row.figures["l1"].value
            colour = TERRACOTTA if row.method.name == knee else BLUE
            flips = row.figures["flipped"].value
            axes.plot(closeness, flips, "o", color=colour, ms=5)
            axes.plot(
                closeness, row.figures["independent_flipped"].value, "o", mfc="none", mec=colour
            )
            label = {"xytext": (5, 3), "textcoords": "offset points", "size": 6.5}
            colour = INK if row.method.name == knee else MUTED
            axes.annotate(row.method.name, (closeness, flips), color=colour, **label)
        axes.set(xlabel="L1 to the source", ylim=(-0.05, 1.08))
        axes.set_title("Share of images flipped: ● by the model, ○ by the independent classifier")
        axes.grid(axis="y")
        # From the source itself, which is at 0, and with room for the names; one point is enough.
        widest = max((row.figures["l1"].value for row in grid), default=0.0)
        axes.set_xlim(0, 1.3 * widest if widest > 0 else 1.0)
        save_figure(figure, path)
