"""A picture of images beside the training images nearest to them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from mediffusion_core.reporting.style import (
    INK,
    MUTED,
    PAPER,
    Images,
    as_batch,
    as_tile,
    tile_size,
    typeface,
)

MARGIN, GUTTER, WIDER, HEAD, FOOT = 16, 4, 16, 30, 24
"""Pixels around the picture, between neighbours, beside the image, above, and under each row."""


def save_neighbours(
    images: Images, neighbours: Images, distances: Sequence[Sequence[float]], path: Path
) -> None:
    """Writes one row an image: the image, its k nearest training images, the distance under each.

    Args:
        images: (n, C, H, W) in [0, 1].
        neighbours: (n · k, C, H, W), those of the first image first, the nearest first.
        distances: n rows of k.
        path: The PNG to write.

    Raises:
        ValueError: if the numbers do not belong together.
    """
    left, right = as_batch(images), as_batch(neighbours)
    each = len(distances[0])
    if len(distances) != len(left) or len(right) != len(left) * each:
        raise ValueError(
            f"{len(left)} images, {len(right)} neighbours and {len(distances)} rows of distances "
            "do not belong together"
        )
    width, height = tile_size(*left.shape[2:])
    row_height = height + FOOT
    size = (
        2 * MARGIN + (each + 1) * width + WIDER + (each - 1) * GUTTER,
        2 * MARGIN + HEAD + len(left) * row_height,
    )
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    second = MARGIN + width + WIDER
    for x, text in ((MARGIN, "image"), (second, "nearest training images")):
        draw.text((x, MARGIN), text, INK, typeface(15, bold=True))
    for row, image in enumerate(left):
        y = MARGIN + HEAD + row * row_height
        canvas.paste(as_tile(image, (width, height)), (MARGIN, y))
        for place in range(each):
            x = second + place * (width + GUTTER)
            canvas.paste(as_tile(right[row * each + place], (width, height)), (x, y))
            text = f"{distances[row][place]:.2f}"
            draw.text((x + width // 2, y + height + 4), text, MUTED, typeface(13), anchor="mt")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, format="PNG", optimize=True)
