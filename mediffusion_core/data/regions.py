"""Where findings lie, as pixels: boxes filled in, and masks packed eight pixels a byte."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.store.images import ImageError

Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""

Regions = Callable[[int, str | None], NDArray[np.bool_] | None]
"""An image's index and a finding, or None for any, to the pixels (H, W) where it lies."""

Masks = tuple[list[str], NDArray[np.uint8], tuple[int, int]]
"""M image names, their packed masks (M, ⌈H·W/8⌉), and (H, W)."""

DAMAGED = (KeyError, OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error)
"""Errors that numpy raises for a broken `.npz`, or for a file of another kind."""


def fill_boxes(boxes: Iterable[Box], side: float, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The union of some boxes.

    Args:
        boxes: in pixels of a square image.
        side: side of that image.
        shape: (H, W) of the result, to which the boxes are scaled.

    Returns:
        bool (H, W), true in each pixel that a box touches.
    """
    height, width = shape
    filled = np.zeros(shape, np.bool_)
    for x, y, w, h in boxes:
        top, bottom = math.floor(y * height / side), math.ceil((y + h) * height / side)
        left, right = math.floor(x * width / side), math.ceil((x + w) * width / side)
        filled[max(top, 0) : bottom, max(left, 0) : right] = True
    return filled


def packed_masks(path: Path, names: Sequence[str]) -> Regions:
    """Masks out of a `.npz` with `image`, `mask_packed` (as from `np.packbits`) and `shape`.

    Args:
        path: the file. Each process reads it when it is first asked for a mask.
        names: N images; further names in the file are left out.

    Returns:
        Index of an image, and a finding that it does not ask for, to the image's mask, bool (H, W),
        or None where the file has none. It is picklable, and raises `ImageError` where the file was
        damaged in the meantime.

    Raises:
        UserError: damaged file, missing arrays, arrays that don't fit together.
    """
    changed = path.stat().st_mtime_ns
    try:
        images, _, shape = _read(path)
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a file of packed masks ({reason})") from None
    row_of = {image: row for row, image in enumerate(images)}
    if len(row_of) != len(images):
        twice = next(image for row, image in enumerate(images) if row_of[image] != row)
        raise UserError(f"{path}: image {twice} is listed twice")
    return partial(_unpack, path, changed, tuple(row_of.get(name) for name in names), shape)


def _unpack(
    path: Path,
    changed: int,
    rows: Sequence[int | None],
    shape: tuple[int, int],
    index: int,
    finding: str | None,
) -> NDArray[np.bool_] | None:
    row = rows[index]
    if row is None:
        return None
    try:
        bits = _packed(path, changed)[row]
        return np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(np.bool_)
    except (*DAMAGED, IndexError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ImageError(f"mask in {path.name}: {reason}") from None


@lru_cache(maxsize=1)
def _packed(path: Path, changed: int) -> NDArray[np.uint8]:
    return _read(path)[1]


def _read(path: Path) -> Masks:
    with np.load(path, allow_pickle=False) as arrays:
        images, packed, given = arrays["image"], arrays["mask_packed"], arrays["shape"]
    sides = given.tolist()
    if given.shape != (2,) or given.dtype.kind not in "iu" or min(sides) < 1:
        raise ValueError(f"shape is {sides}, allowed are two whole numbers from 1 on")
    if images.ndim != 1 or images.dtype.kind != "U":
        raise ValueError(f"image is {images.dtype} {images.shape}, allowed are names (M,)")
    fits = (len(images), -(-math.prod(sides) // 8))
    if packed.dtype != np.uint8 or packed.shape != fits:
        raise ValueError(f"mask_packed is {packed.dtype} {packed.shape}, allowed is uint8 {fits}")
    return images.tolist(), packed, (sides[0], sides[1])
