"""The picture of reconstructed images: originals, and what a reply gives without and with DP."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mediffusion_core.evaluation.similarity import psnr
from mediffusion_core.reporting.style import (
    INK,
    MUTED,
    as_batch,
    as_tile,
    house_type,
    new_figure,
    save_figure,
    tile_size,
)

TILE, FOOT, LEFT = 1.25, 0.2, 0.95
"""Inches of a tile, of the line below it and of the names of the rows."""


def save_reconstructed(
    originals: Tensor, made: Mapping[str, Tensor], epsilon: float, path: Path
) -> None:
    """Writes the images in rows, with the PSNR of each reconstruction below it.

    Args:
        originals: Decoded latents of the training images, (B, C, H, W) in [0, 1].
        made: Reconstructions `without_privacy` and `with_privacy`, each (B, C, H, W).
        epsilon: ε of the last row.
        path: The PNG to write.
    """
    rows = {
        "original,\ndecoded": originals,
        "from a reply\nwithout DP": made["without_privacy"],
        f"from a reply\nwith ε = {epsilon:g}": made["with_privacy"],
    }
    across, down = len(originals), len(rows)
    width, height = LEFT + across * TILE + 0.1, down * (TILE + FOOT) + 0.1
    with house_type():
        figure = new_figure(width, height)
        for row, (name, images) in enumerate(rows.items()):
            top = height - 0.05 - row * (TILE + FOOT)
            figure.text(0.08 / width, (top - TILE / 2) / height, name, color=INK, va="center")
            values = psnr(images, originals)
            for column, image in enumerate(as_batch(images)):
                left = LEFT + column * TILE
                place = (left / width, (top - TILE) / height, TILE * 0.96 / width, TILE / height)
                axes = figure.add_axes(place)
                axes.imshow(as_tile(image, tile_size(*image.shape[1:])))
                axes.set_axis_off()
                text = f"{float(values[column]):.1f} dB" if row else ""
                middle = (left + TILE * 0.48) / width
                below = (top - TILE - 0.02) / height
                figure.text(middle, below, text, color=MUTED, ha="center", va="top", fontsize=7.5)
        save_figure(figure, path)
