"""Decodes an untrusted file to 8-bit pixels, or gives a reason why it cannot."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from mediffusion_core.data.store.grey_levels import Window, own_range, to_bytes, windowed

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")
"""Formats that Pillow may decode: other plugins start programs or open files that a file names."""

SUFFIXES = (".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp")
"""Names of files in these formats end so, in small or capital letters."""

GREY = ("1", "L", "LA", "La")
WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes of grey values that 8 bits can't hold."""

WHITE_IS_ZERO = 0
PHOTOMETRIC = 262
"""The TIFF element that says whether 0 is white; Pillow minds it up to 8 bits."""

SIGNED = 2
SAMPLE_FORMAT = 339
"""The TIFF element that says how values are written; Pillow takes signed bytes for unsigned."""

FLAT = 128
"""16-bit colours are read by their upper bytes; a smaller range would lose most levels."""


class ImageError(Exception):
    """One image can't be read; the text is the reason."""


def load_file(
    root: Path, paths: tuple[str, ...], window: Window | None, index: int
) -> NDArray[np.uint8]:
    """Decodes the image `root / paths[index]`.

    Args:
        root: resolved folder that nothing is read outside of.
        paths: relative paths, one an image.
        window: as for `to_8_bit`.
        index: which path.

    Raises:
        ImageError: missing, outside of the root, empty, truncated, too large, not an image.
    """
    return decode(confined(root, paths[index]), window)


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


def decode(path: Path, window: Window | None = None) -> NDArray[np.uint8]:
    """Reads a JPEG, PNG, TIFF or WebP whole: upright, 8 bit, grey (H, W) or colour (H, W, 3).

    A JPEG is decoded at its full size, as Pillow does by default: a user of the exported pipeline
    must obtain the same probabilities from the same file.

    Raises:
        ImageError: as `opened`.
    """
    with opened(path) as image:
        is_wide = any(";16" in str(tile[3]) for tile in image.tile)
        image.load()
        pixels = to_8_bit(image, window)
        if is_wide and image.mode not in WIDE:
            _refuse_flat(pixels)
        return pixels


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image file of one page or frame, open in Pillow; what its bytes lead to is one error.

    Raises:
        ImageError: with Pillow's reason; for a file of several pages or frames.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of corrupt EXIF elements, with the lines of its code
            # Between one and two times its limit Pillow only warns of a decompression bomb.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format != "MPO":  # cameras add previews to a JPEG
                    raise ImageError(f"{frames} pages or frames, allowed is 1")
                yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not a JPEG, PNG, TIFF or WebP image, or an unusual kind of one") from None
    except Exception as error:  # Pillow's plugins raise whatever the broken bytes lead to.
        reason = str(error).replace(repr(str(path)), repr(path.name)).replace(str(path), path.name)
        raise ImageError(" ".join(f"{type(error).__name__}: {reason}".split())) from None


def _refuse_flat(pixels: NDArray[np.uint8]) -> None:
    filled = int(pixels.max()) - int(pixels.min()) + 1
    if filled <= FLAT:
        raise ImageError(
            f"16-bit colours or transparency that fill {filled} of 256 levels; "
            "store it as 16-bit grey or as 8 bits"
        )


def to_8_bit(image: Image.Image, window: Window | None = None) -> NDArray[np.uint8]:
    """Pixels of an image, upright as its EXIF says, (H, W) for grey and (H, W, 3) for any other.

    Transparency is dropped.

    Args:
        image: opened by Pillow.
        window: centre and width of grey values beyond 8 bits that show black to white; None for
            the range of the image's own values. It is as for DICOM, and no matter for 8 bits.

    Raises:
        ImageError: for values that are not finite, and modes that Pillow can't turn into colours.
    """
    try:
        upright = ImageOps.exif_transpose(image)
        is_signed = getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, (0,))[0] == SIGNED
        if image.mode in WIDE or (image.mode == "L" and is_signed):
            values = np.asarray(upright)  # (H, W)
            if image.mode == "L":
                values = values.view(np.int8)
            values = values.astype(np.float32)
            grey = to_bytes(own_range(values) if window is None else windowed(values, *window))
            is_inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
            return 255 - grey if is_inverted else grey
        if upright.mode == "P":
            upright = upright.convert("RGBA")  # (H, W, 4): it keeps every palette's colours
        return np.asarray(upright.convert("L" if upright.mode in GREY else "RGB"), dtype=np.uint8)
    except (ValueError, OSError, SyntaxError) as error:
        raise ImageError(" ".join(str(error).split())) from None


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
