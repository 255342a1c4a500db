"""From a file somebody else wrote to 8-bit pixels, or a reason why not."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG")
"""What Pillow may try: some of its other plugins start programs or fetch what a file names."""

SUFFIXES = (".jpeg", ".jpg", ".png")
"""Names of files in these formats end so, in small or capital letters."""

SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
GREY = ("1", "L", "LA", "La")


class ImageError(Exception):
    """One image can't be read; the text is the reason."""


def load_file(root: Path, paths: tuple[str, ...], at_least: int, index: int) -> NDArray[np.uint8]:
    """Decodes the image `root / paths[index]`.

    Args:
        root: resolved folder that nothing is read outside of.
        paths: relative paths, one an image.
        at_least: a JPEG may be decoded at a half, quarter or eighth of its size as long as
            both sides keep this many pixels.
        index: which path.

    Raises:
        ImageError: missing, outside of the root, empty, truncated, too large, not an image.
    """
    return decode(confined(root, paths[index]), at_least)


def confined(root: Path, path: str) -> Path:
    """The resolved file `root / path`, not empty.

    Raises:
        ImageError: missing, empty, outside of the root, or no path that the system can follow.
    """
    try:
        resolved = (root / path).resolve()
        if not resolved.is_relative_to(root):
            raise ImageError("lies outside of data.root")
        if not resolved.is_file():
            raise ImageError("no such file")
        if resolved.stat().st_size == 0:
            raise ImageError("empty file")
    except (OSError, RuntimeError) as error:  # a name too long, links in a circle
        raise ImageError(f"{type(error).__name__}: not a path that can be followed") from None
    return resolved


def decode(path: Path, at_least: int) -> NDArray[np.uint8]:
    """Reads a JPEG or PNG whole: upright, 8 bit, grey (H, W) or colour (H, W, 3).

    Raises:
        ImageError: with Pillow's reason.
    """
    try:
        with warnings.catch_warnings():
            # Between one and two times its limit Pillow only warns of a decompression bomb.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.draft(None, (at_least, at_least))
                image.load()
                upright = ImageOps.exif_transpose(image)
                return to_8_bit(upright)
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise whatever the broken bytes lead to.
        reason = str(error).replace(str(path), path.name)
        raise ImageError(" ".join(f"{type(error).__name__}: {reason}".split())) from None


def to_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of a decoded image, uint8, (H, W) for grey and (H, W, 3) for any other mode.

    16-bit values are scaled so that 65535 becomes 255. Transparency is dropped.

    Raises:
        ImageError: for floating-point pixels and integers beyond 16 bits.
    """
    if image.mode in SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.int64)  # (H, W)
        if wide.size and (wide.min() < 0 or wide.max() > 65535):
            raise ImageError("integer pixels beyond 16 bits")
        return ((wide + 128) // 257).astype(np.uint8)
    if image.mode == "F":
        raise ImageError("floating-point pixels")
    if image.mode == "P":
        image = image.convert("RGBA")  # (H, W, 4): the mode that keeps every palette's colours
    return np.asarray(image.convert("L" if image.mode in GREY else "RGB"), dtype=np.uint8)


def fit(pixels: NDArray[np.uint8], size: int, channels: int) -> NDArray[np.uint8]:
    """The centred square of an image, resized with an antialiasing filter.

    Args:
        pixels: uint8, (H, W) or (H, W, 3).
        size: side S of the result in pixels.
        channels: C; grey becomes colour by repetition, colour grey by ITU-R 601 luma.

    Returns:
        uint8, (S, S, C).
    """
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(square, dtype=np.uint8).reshape(size, size, channels)
