"""From the decoded values of a DICOM file to the grey levels or colours for display.

Values go through the greyscale pipeline of DICOM PS3.3: modality (C.11.1), then value of interest
(C.11.2), then the presentation (C.11.6) or the photometric interpretation (C.7.6.3.1.2).
"""

import math
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mediffusion_core.data.store.grey_levels import Window, own_range, to_bytes, windowed
from mediffusion_core.data.store.images import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

COLOURS = ("Red", "Green", "Blue")
ELEMENTS = (
    "HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in COLOURS
      for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in COLOURS),
)  # fmt: skip
"""The elements of a file that decide how its values are shown."""


def show_grey(dataset: "Dataset", stored: NDArray[Any], window: Window | None) -> NDArray[np.uint8]:
    """Stored values (H, W) as they are to be shown, uint8 (H, W)."""
    shown = _of_interest(dataset, _rescaled(dataset, stored), window, _counted(dataset, stored))
    try:
        grey = to_bytes(shown)
    except ValueError:
        raise ImageError("rescaled values are not finite") from None
    return 255 - grey if _is_inverted(dataset) else grey


def _is_inverted(dataset: "Dataset") -> bool:
    shape = dataset.get("PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE"):
        return bool(shape == "INVERSE")
    return bool(dataset.PhotometricInterpretation == "MONOCHROME1")


def _counted(dataset: "Dataset", stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Which stored values are of the picture, not of the padding around it; None for all."""
    padding = _number(dataset, "PixelPaddingValue")
    if padding is None:
        return None
    limit = _number(dataset, "PixelPaddingRangeLimit")
    # The header may give a signed value as unsigned, or the other way round.
    low, high = sorted(
        int(np.array(int(end)).astype(stored.dtype))
        for end in (padding, padding if limit is None else limit)
    )
    return (stored < low) | (stored > high)


def _of_interest(
    dataset: "Dataset",
    values: NDArray[np.float32],
    window: Window | None,
    counted: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """Values (H, W) with 0 for the darkest and 1 for the brightest that is shown."""
    if window is not None:
        return windowed(values, *window)
    if dataset.get("VOILUTSequence"):
        entries, bits = _look_up(dataset, dataset.VOILUTSequence[0], values)
        shown: NDArray[np.float32] = entries / np.float32(2**bits - 1)
        return shown
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is not None and width is not None and width > 0:
        return windowed(values, centre, width, dataset.get("VOILUTFunction") or "LINEAR")
    return own_range(values, counted)


def _rescaled(dataset: "Dataset", stored: NDArray[Any]) -> NDArray[np.float32]:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, dataset.ModalityLUTSequence[0], stored)[0]
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    return stored.astype(np.float32) * np.float32(slope or 1) + np.float32(intercept or 0)


def _look_up(
    dataset: "Dataset", item: "Dataset", values: NDArray[Any]
) -> tuple[NDArray[np.float32], int]:
    """Entries (H, W) of a lookup table for values (H, W), and how many bits they have."""
    return _entries(dataset, item.LUTDescriptor, item["LUTData"], values)


def _entries(
    dataset: "Dataset", descriptor: Any, data: Any, values: NDArray[Any]
) -> tuple[NDArray[np.float32], int]:
    """PS3.3 C.7.6.3.1.5 and C.11.2.1.1: the table's entries (H, W) for values (H, W), their bits.

    Args:
        dataset: whose byte order the table has.
        descriptor: number of entries, first value mapped, bits of an entry.
        data: the element that holds the entries.
        values: (H, W); those beyond the table get its first or last entry.
    """
    count, first, bits = (int(number) for number in descriptor)
    count = count or 2**16  # which sixteen bits can't say
    raw = data.value
    if isinstance(raw, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        if len(raw) < 2 * count:
            entries = np.frombuffer(raw, "u1")
            if order == ">" and data.VR == "OW":  # two of them stand in each word
                entries = entries[: len(entries) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)
        else:
            entries = np.frombuffer(raw, f"{order}u2")
        raw = entries
    table = np.asarray(raw, dtype=np.float32)[:count]
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index], bits


def show_palette(
    pydicom: ModuleType, dataset: "Dataset", stored: NDArray[Any]
) -> NDArray[np.uint8]:
    """Indices (H, W) into a palette as its colours, uint8 (H, W, 3)."""
    descriptor = dataset.RedPaletteColorLookupTableDescriptor
    if "RedPaletteColorLookupTableData" in dataset:
        keys = [f"{colour}PaletteColorLookupTable" for colour in COLOURS]
        planes = [
            _entries(dataset, dataset[f"{key}Descriptor"].value, dataset[f"{key}Data"], stored)[0]
            for key in keys
        ]
        colours = np.stack(planes, axis=-1)
    else:
        colours = pydicom.pixels.apply_color_lut(stored, dataset)[..., :3]
    # Eight bits may stand in words of sixteen, in their lower half.
    bits = 8 if int(descriptor[2]) == 8 and colours.max() < 256 else 16
    return show_colour(colours, bits)


def show_colour(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of some bits as uint8 (H, W, 3)."""
    brightest = 2**bits - 1
    scaled = np.clip(values, 0, brightest).astype(np.float32) * np.float32(255 / brightest)
    colours: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return colours


def _number(dataset: "Dataset", keyword: str) -> float | None:
    """The first value of an element; None where it is absent or empty.

    Raises:
        ImageError: where it is no finite number.
    """
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    # A file may offer several windows, and its first is the one to show.
    number = float(value if isinstance(value, int | float | str) else value[0])
    if not math.isfinite(number):
        raise ImageError(f"{keyword} is not finite")
    return number
