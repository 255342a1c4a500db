"""From values of many bits to values for display, 0 for black and 1 for white."""

import numpy as np
from numpy.typing import NDArray

Window = tuple[float, float]
"""Centre and width, in the units of the values (Hounsfield in CT)."""


def windowed(
    values: NDArray[np.float32], centre: float, width: float, function: str = "LINEAR"
) -> NDArray[np.float32]:
    """DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, onto 0 to 1 and beyond.

    Args:
        values: (H, W).
        centre: of the window.
        width: of the window, above 0.
        function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`.
    """
    shown: NDArray[np.float32]
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            shown = 1 / (1 + np.exp(np.float32(-4 / width) * (values - np.float32(centre))))
        return shown
    if function != "LINEAR_EXACT":
        # LINEAR counts the width in whole values; a width of one is a threshold.
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    shown = (values - np.float32(centre)) / np.float32(width) + np.float32(0.5)
    return shown


def own_range(
    values: NDArray[np.float32], counted: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Values (H, W) from the darkest to the brightest of them; a plain image is black.

    What the bits could hold is no guide to what they do: twelve of sixteen would be nearly black.

    Args:
        values: (H, W).
        counted: (H, W), which of them the range is of; all where it is of none.
    """
    among = values if counted is None or not counted.any() else values[counted]
    low, high = among.min(), among.max()
    shown: NDArray[np.float32] = (values - low) / np.maximum(high - low, np.float32(1e-6))
    return shown


def to_bytes(shown: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey levels of values for display, which are clipped to 0 and 1.

    Raises:
        ValueError: for values that are not finite.
    """
    if not np.isfinite(shown).all():
        raise ValueError("values are not finite")
    levels: NDArray[np.uint8] = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    return levels
