"""Masks that a user draws over an image: where it may change, and where it must not."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.files import shown
from mediffusion_core.data.store.images import WIDE, ImageError, confined, opened, to_8_bit

DrawnMask = Image.Image | str | Path
"""A mask as a user has it: Pillow's image, or the path of one."""

WHITE = 128
"""The darkest of 256 grey values that counts as white."""
RANGE_OF_16_BITS = (32767.5, 65535.0)
"""Centre and width."""


def editable_pixels(
    edit: DrawnMask | None, keep: DrawnMask | None, shape: tuple[int, int], size: int
) -> NDArray[np.bool_] | None:
    """The pixels of a model's image that may change: those of `edit` without those of `keep`.

    A mask is cropped and resized as the image is, by area. A pixel may change if at least half of
    it is white in `edit`, and must not if any of it is white in `keep`. Transparent parts count
    as black.

    Args:
        edit: White where the image may change; everywhere if None.
        keep: White where the image must not change; nowhere if None.
        shape: (H, W) of the user's image; masks have its size, or another one of its aspect.
        size: Side S of the model's image in pixels.

    Returns:
        (S, S); None without any mask.

    Raises:
        UserError: a mask cannot be read or has another aspect, or nothing may change.
    """
    if edit is None and keep is None:
        return None
    marked = np.ones((size, size), bool) if edit is None else _fitted("edit", edit, shape, size)
    if not marked.any():
        raise UserError(f"{_named('edit', edit)} marks nothing of the image: nothing may change")
    kept = np.zeros((size, size), bool) if keep is None else _fitted("keep", keep, shape, size)
    if keep is not None and not kept.any():
        raise UserError(f"{_named('keep', keep)} marks nothing of the image: all would change")
    if kept.all():
        raise UserError(f"{_named('keep', keep)} marks the whole image: nothing may change")
    editable = marked & ~kept
    if not editable.any():
        raise UserError(
            f"{_named('keep', keep)} marks all that {_named('edit', edit)} marks: "
            "nothing may change"
        )
    return editable


def _fitted(role: str, mask: DrawnMask, shape: tuple[int, int], size: int) -> NDArray[np.bool_]:
    """The marked pixels of the model's image, (S, S)."""
    try:
        white = _white(mask)
    except ImageError as error:
        raise UserError(f"{_named(role, mask)} cannot be used: {error}") from None
    (height, width), (of_image, across) = white.shape, shape
    if abs(width * of_image - height * across) > max(shape):  # more than a pixel off
        raise UserError(
            f"{_named(role, mask)} is {width} x {height} pixels, the image {across} x {of_image}: "
            "allowed are the image's size and others of its aspect"
        )
    side = min(white.shape)
    left, top = (width - side) / 2, (height - side) / 2
    share = Image.fromarray(white.astype(np.uint8) * 255).resize(
        (size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side)
    )
    # Thin parts that must not change count as soon as a pixel holds any of them.
    return np.asarray(share) >= (WHITE if role == "edit" else 1)


def _white(mask: DrawnMask) -> NDArray[np.bool_]:
    """The white pixels of a mask, upright, (H, W)."""
    if not isinstance(mask, Image.Image):
        resolved = Path(os.path.realpath(mask))
        with opened(confined(resolved.parent, resolved.name)) as image:
            return _white(image)
    if mask.mode in WIDE:
        grey = to_8_bit(mask, RANGE_OF_16_BITS)
    else:
        drawn = ImageOps.exif_transpose(mask).convert("RGBA")
        paper = Image.new("RGBA", drawn.size, "black")
        paper.alpha_composite(drawn)
        grey = np.asarray(paper.convert("L"))
    white: NDArray[np.bool_] = grey >= WHITE
    return white


def _named(role: str, mask: DrawnMask | None) -> str:
    if mask is None or isinstance(mask, Image.Image):
        return f"{role} mask"
    return f"{role} mask {shown(mask)}"
