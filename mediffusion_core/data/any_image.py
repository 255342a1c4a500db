"""One image file of whatever kind, as training would have it."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.files import is_picture
from mediffusion_core.data.readers.dicom import is_candidate
from mediffusion_core.data.readers.dicom_file import is_dicom
from mediffusion_core.data.readers.dicom_pixels import decode_dicom
from mediffusion_core.data.store.grey_levels import Window
from mediffusion_core.data.store.images import confined, decode


def is_image(path: Path) -> bool:
    """Whether a file is named as a picture, or is DICOM by its content or its name."""
    return is_picture(path) or is_candidate(path)


def read_image(path: Path, window: Window | None) -> NDArray[np.uint8]:
    """Reads a JPEG, PNG, TIFF, WebP or DICOM file: uint8, grey (H, W) or colour (H, W, 3).

    Args:
        path: the file; its format follows from its content first, then from its name.
        window: `data.window`, for DICOM and for grey values beyond 8 bits.

    Raises:
        ImageError: missing, empty, truncated, too large, or no image; the text names no patient.
        UserError: a DICOM file where pydicom is missing.
    """
    resolved = Path(os.path.realpath(path))  # `resolve` raises where links lead in a circle
    return _read(confined(resolved.parent, resolved.name), window)


def load_listed(
    root: Path, paths: tuple[str, ...], window: Window | None, index: int
) -> NDArray[np.uint8]:
    """`read_image` of `root / paths[index]`, which must lie below the resolved root.

    Raises:
        ImageError: as `read_image`; outside of the root.
    """
    return _read(confined(root, paths[index]), window)


def _read(path: Path, window: Window | None) -> NDArray[np.uint8]:
    if is_dicom(path) or not is_picture(path):
        return decode_dicom(path, window)
    return decode(path, window)
