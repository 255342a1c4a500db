"""The study's picture: images with a mark, and counterfactuals by each model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from mediffusion_core.data import marks
from mediffusion_core.evaluation.counterfactual_panel import Counterfactuals
from mediffusion_core.reporting.style import (
    DIFFERENCE,
    OCHRE,
    RULE,
    house_type,
    new_figure,
    save_figure,
)
from mediffusion_core.settings import MarkKind

TILE = 1.5
"""Inches of a tile's side."""


def save_panel(
    made: Mapping[str, Counterfactuals],
    names: Sequence[str],
    kinds: Sequence[MarkKind],
    path: Path,
) -> None:
    """Draws a row for each image: the image, and each model's counterfactual and difference.

    One symmetric scale serves all differences. A box marks the place of the row's mark.

    Args:
        made: Counterfactuals of the same m images by each model, by its name.
        names: Of each row, for example `site-1, remove Effusion`.
        kinds: The mark of each row.
        path: The PNG to write.
    """
    differences = {name: (one.images - one.sources).mean(dim=1) for name, one in made.items()}
    limit = max(0.01, *(float(one.abs().max()) for one in differences.values()))
    columns = 1 + 2 * len(made)
    with house_type():
        figure = new_figure(columns * TILE, len(names) * (TILE + 0.2), layout="constrained")
        grid = figure.subplots(len(names), columns, squeeze=False)
        for at, (row, kind) in enumerate(zip(grid, kinds, strict=True)):
            sources = next(iter(made.values())).sources
            _show(row[0], sources[at], kind, names[at])
            for place, (name, one) in enumerate(made.items()):
                image, difference = row[1 + 2 * place : 3 + 2 * place]
                _show(image, one.images[at], kind, name)
                _show(difference, differences[name][at], kind, "difference", limit)
        save_figure(figure, path)


def _show(
    axes: Axes, image: Tensor, kind: MarkKind, title: str, limit: float | None = None
) -> None:
    """Shows an image (C, H, W) in [0, 1], or a difference (H, W) from -limit to limit."""
    if limit is None:
        pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    else:
        axes.imshow(image.numpy(), cmap=DIFFERENCE, vmin=-limit, vmax=limit)
    axes.add_patch(_box(kind, image.shape[-1]))
    axes.set_title(title, size=6.5)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=RULE)


def _box(kind: MarkKind, size: int) -> Rectangle:
    rows, columns = np.nonzero(marks.region(kind, size))
    top, left = rows.min(), columns.min()
    height, width = rows.max() - top + 1, columns.max() - left + 1
    return Rectangle((left - 0.5, top - 0.5), width, height, fill=False, ec=OCHRE, lw=0.9)


def rows_to_show(found: Tensor, wanted: Tensor, count: int) -> Tensor:
    """Positions of up to `count` counterfactuals, those with the mark and the class first.

    Args:
        found: Which images have the mark, (m,).
        wanted: Which counterfactuals lose the class in question, (m,).
        count: Rows at most.
    """
    order = (found.long() + 2 * wanted.long()).argsort(descending=True, stable=True)
    return order[:count].sort().values
