"""The study's pictures: maps of some images side by side, and the mean curves."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mediffusion_core.reporting.style import (
    BLUE,
    FAINT,
    HEAT,
    INK,
    MUTED,
    OCHRE,
    RULE,
    TERRACOTTA,
    house_type,
    new_figure,
    save_figure,
)
from simulations.studies.explanations.measure import Row
from simulations.studies.explanations.methods import CHANCE, EXTERNAL, OURS, Case

SHOWN = 8
TILE, LABEL, HEAD, ROW = 1.35, 1.65, 0.4, 1.62
"""Inches: side of a tile, width of the names, height above the tiles, height of a row."""

COLOURS = {
    "Grad-CAM": OCHRE,
    "integrated gradients": MUTED,
    "SHAP": INK,
    EXTERNAL: TERRACOTTA,
    OURS: BLUE,
    CHANCE: FAINT,
}


def save_maps(
    case: Case, rows: Sequence[Row], names: Sequence[str], masks: Tensor, path: Path
) -> None:
    """Draws the maps of up to eight images that the seed selects.

    Each map is shown from 0 to its 99.5th percentile; negative values are white. A line marks the
    mask. The text below a map says whether its highest pixel is in the mask, and for
    counterfactuals whether they flip the prediction.

    Args:
        case: The images and the model.
        rows: One for each method.
        names: The target of each of the n images, as text.
        masks: (n, H, W), all false if unknown.
        path: The PNG to write.
    """
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(case.seed))
    chosen = sorted(order[:SHOWN].tolist())
    shown = [row for row in rows if row.explanation.name != CHANCE]
    width, height = LABEL + (len(shown) + 1) * TILE + 0.15, HEAD + len(chosen) * ROW
    with house_type():
        figure = new_figure(width, height)
        for line, at in enumerate(chosen):
            top = HEAD + line * ROW
            probability = f"p = {float(case.probabilities[at, case.index[at]]):.2f}"
            left = 0.1 / width
            figure.text(left, 1 - (top + 0.1) / height, names[at], weight="bold", size=7.5)
            figure.text(left, 1 - (top + 0.28) / height, probability, color=MUTED, size=7.5)
            for column in range(len(shown) + 1):
                axes = _tile(figure, LABEL + column * TILE, top)
                if column:
                    _map(axes, shown[column - 1], at)
                else:
                    _image(axes, case.sources[at])
                if bool(masks[at].any()):
                    axes.contour(masks[at].numpy(), levels=[0.5], colors=[INK], linewidths=0.7)
                if not line:
                    title = shown[column - 1].explanation.name if column else "image"
                    axes.set_title(title, size=7.5)
        save_figure(figure, path)


def _tile(figure: Figure, left: float, top: float) -> Axes:
    """Axes of a tile without ticks, at inches from the upper left corner."""
    width, height = figure.get_size_inches()
    side = TILE - 0.06
    axes = figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=RULE)
    return axes


def _image(axes: Axes, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels.squeeze(-1) if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)


def _map(axes: Axes, row: Row, at: int) -> None:
    values = row.explanation.maps[at].clamp(min=0)
    top = max(float(values.flatten().quantile(0.995)), 1e-12)
    axes.imshow(values.numpy(), cmap=HEAT, vmin=0, vmax=top)
    words = []
    pointed, flipped = row.columns["pointing"][at], row.explanation.flipped
    if bool(pointed.isfinite()):
        words.append("hit" if bool(pointed) else "miss")
    if flipped is not None:
        words.append("flipped" if bool(flipped[at]) else "did not flip")
    failed = "miss" in words or "did not flip" in words
    axes.set_xlabel(", ".join(words), color=TERRACOTTA if failed else MUTED, size=7, labelpad=2)


def save_curves(rows: Sequence[Row], path: Path) -> None:
    """Draws the mean probability of the class along deletion and insertion for each method."""
    with house_type():
        figure = new_figure(8.2, 3.4, layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for row in rows:
            name = row.explanation.name
            look = {"color": COLOURS[name], "lw": 2.0 if name == OURS else 1.3, "label": name}
            share = torch.linspace(0, 1, len(row.deletion))
            left.plot(share, row.deletion, **look)
            right.plot(share, row.insertion, **look)
        left.set(xlabel="share of pixels replaced", ylabel="probability of the class")
        left.set_title("Deletion: lower is better")
        right.set(xlabel="share of pixels inserted", ylim=(0, 1))
        right.set_title("Insertion: higher is better")
        for axes in (left, right):
            axes.grid(axis="y")
        right.legend(loc="lower right", fontsize=7)
        save_figure(figure, path)
