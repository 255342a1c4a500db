"""From a DICOM file somebody else wrote to 8-bit pixels, or a reason that names no patient.

Values go through the greyscale pipeline of DICOM PS3.3: modality (C.11.1), then value of interest
(C.11.2), then the photometric interpretation (C.7.6.3.1.2). Of a file no more is read than these
need, and what pydicom says of it is never passed on: its messages may quote any field.
"""

import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.readers.dicom_codestream import codestream_shape
from mediffusion_core.data.store.images import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

Window = tuple[float, float]
"""Centre and width, in the units of the rescaled values (Hounsfield in CT)."""

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"
BITS = (8, 16)
NEEDED = (
    "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "PhotometricInterpretation",
)  # fmt: skip
ELEMENTS = (
    *NEEDED, "NumberOfFrames", "PlanarConfiguration", "PerFrameFunctionalGroupsSequence",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue")
      for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    "PixelData",
)  # fmt: skip
"""All that is read of a file; of a patient there is nothing."""

DEFLATED = "1.2.840.10008.1.2.1.99"


def decode_dicom(path: Path, window: Window | None) -> NDArray[np.uint8]:
    """Reads a DICOM file of one frame, grey (H, W) or colour (H, W, 3), as it is to be shown.

    Args:
        path: the file.
        window: centre and width that show black to white; None for the file's own lookup table,
            else its first window, else the range of its values. Colour has no window.

    Raises:
        ImageError: empty, truncated, too large, not DICOM, several frames, no pixels, or pixels
            that nothing installed can decode.
        UserError: where pydicom is missing.
    """
    with quiet_pydicom() as pydicom:
        try:
            if path.stat().st_size == 0:
                raise ImageError("empty file")
            header = read_header(pydicom, path, ELEMENTS)
            _refuse_header(header)
            _refuse_transfer_syntax(pydicom, header)
            dataset = pydicom.dcmread(path, specific_tags=list(ELEMENTS))
            _refuse_pixels(pydicom, dataset)
            values = _decoded(pydicom, dataset)  # (H, W) or (H, W, 3)
            if dataset.PhotometricInterpretation in GREY:
                return _grey(dataset, values, window)
            return _colour(pydicom, dataset, values)
        except ImageError:
            raise
        except pydicom.errors.InvalidDicomError:
            raise ImageError("not a DICOM file") from None
        except Exception as error:  # pydicom and codecs raise whatever the broken bytes lead to.
            raise ImageError(f"damaged or unusual DICOM file ({type(error).__name__})") from None


@contextmanager
def quiet_pydicom() -> Iterator[ModuleType]:
    """The package pydicom, which within neither warns nor logs: it would quote fields of patients.

    Raises:
        UserError: where it is missing.
    """
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise UserError(
            "data.source=dicom needs pydicom: pip install 'fed-mediffusion[data]'"
        ) from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pydicom


def read_header(pydicom: ModuleType, path: Path, keywords: Iterable[str]) -> "Dataset":
    """Some elements of a file, none of them pixels.

    Args:
        pydicom: the package, quiet.
        path: the file.
        keywords: the elements that are read if they are there, by keyword.

    Raises:
        ImageError: no transfer syntax, or one that compresses the elements themselves.
        Exception: whatever pydicom raises; its text may quote the file.
    """
    syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("header has no TransferSyntaxUID")
    if syntax == DEFLATED:
        # pydicom inflates all of it at once, whatever that comes to.
        raise ImageError("the whole file is deflated, only pixels may be compressed")
    header: Dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
    return header


def _refuse_transfer_syntax(pydicom: ModuleType, header: "Dataset") -> None:
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise ImageError("unknown transfer syntax") from None
    if not decoder.is_available:
        raise ImageError(f"nothing is installed that decodes {syntax.name}")


def _refuse_header(header: "Dataset") -> None:
    if "Rows" not in header and "Columns" not in header:
        raise ImageError("no pixel data, the header gives no Rows and Columns")
    for keyword in NEEDED:
        if header.get(keyword) in (None, ""):
            raise ImageError(f"header has no {keyword}")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{frames} frames, allowed is 1")
    if "PerFrameFunctionalGroupsSequence" in header:
        # Its rescale and window stand there, and without them a given window means nothing.
        raise ImageError("an enhanced image, which is made for several frames")
    rows, columns = int(header.Rows), int(header.Columns)
    limit = Image.MAX_IMAGE_PIXELS
    if not rows or not columns:
        raise ImageError(f"{rows} rows and {columns} columns")
    if limit is not None and rows * columns > limit:
        raise ImageError(f"{rows} rows and {columns} columns exceed {limit} pixels")
    if header.BitsAllocated not in BITS or not 1 <= header.BitsStored <= header.BitsAllocated:
        given = f"{int(header.BitsStored)} of {int(header.BitsAllocated)} bits"
        raise ImageError(f"values of {given}, allowed are at most 8 of 8 and 16 of 16")
    kind, samples = header.PhotometricInterpretation, int(header.SamplesPerPixel)
    if kind not in (*GREY, *COLOUR, PALETTE):
        raise ImageError("unknown photometric interpretation")
    if samples != (3 if kind in COLOUR else 1):
        raise ImageError(f"{samples} samples a pixel do not fit {kind}")


def _refuse_pixels(pydicom: ModuleType, dataset: "Dataset") -> None:
    if not dataset.get("PixelData"):
        raise ImageError("no pixel data, or truncated before it ends")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        if syntax != pydicom.uid.RLELossless:
            _refuse_codestream(pydicom, dataset)
        return
    # Two pixels of YBR_FULL_422 share their colour.
    subsampled = dataset.PhotometricInterpretation == "YBR_FULL_422"
    samples = 2 if subsampled else int(dataset.SamplesPerPixel)
    needed = dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated // 8
    if len(dataset.PixelData) < needed:
        raise ImageError(f"truncated, {len(dataset.PixelData)} of {needed} bytes of pixels")


def _refuse_codestream(pydicom: ModuleType, dataset: "Dataset") -> None:
    shape = codestream_shape(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1))
    given = (int(dataset.Rows), int(dataset.Columns), int(dataset.SamplesPerPixel))
    allocated = int(dataset.BitsAllocated)
    if (shape.rows, shape.columns, shape.samples) != given or shape.bits > allocated:
        raise ImageError(
            f"compressed are {shape.rows} x {shape.columns} x {shape.samples} of {shape.bits} "
            f"bits, the header says {given[0]} x {given[1]} x {given[2]} of {allocated}"
        )
    if allocated == 8 != dataset.BitsStored:
        # The other case in which GDCM ends the process.
        raise ImageError(f"compressed are {int(dataset.BitsStored)} of 8 bits, allowed are 8")


def _decoded(pydicom: ModuleType, dataset: "Dataset") -> NDArray[Any]:
    """Stored values (H, W) or colours (H, W, 3)."""
    lossy = (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit)
    # GDCM, which would come first, ends the process at some damaged JPEGs.
    plugin = "pillow" if dataset.file_meta.TransferSyntaxUID in lossy else ""
    values: NDArray[Any] = pydicom.pixels.pixel_array(dataset, index=0, decoding_plugin=plugin)
    return values


def _grey(dataset: "Dataset", stored: NDArray[Any], window: Window | None) -> NDArray[np.uint8]:
    """Stored values (H, W) as they are to be shown, uint8 (H, W)."""
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        # Bits above those stored are no part of the value; old scanners put overlays there.
        above = stored.dtype.itemsize * 8 - dataset.BitsStored
        stored = (stored << above) >> above
    shown = _of_interest(dataset, _rescaled(dataset, stored), window)
    if not np.isfinite(shown).all():
        raise ImageError("rescaled values are not finite")
    grey = np.rint(np.clip(shown, 0, 1) * 255).astype(np.uint8)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _rescaled(dataset: "Dataset", stored: NDArray[Any]) -> NDArray[np.float32]:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, dataset.ModalityLUTSequence[0], stored)[0]
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    return stored.astype(np.float32) * np.float32(slope or 1) + np.float32(intercept or 0)


def _of_interest(
    dataset: "Dataset", values: NDArray[np.float32], window: Window | None
) -> NDArray[np.float32]:
    """Values (H, W) with 0 for the darkest and 1 for the brightest that is shown."""
    if window is not None:
        return _windowed(values, *window, "LINEAR")
    if dataset.get("VOILUTSequence"):
        entries, bits = _look_up(dataset, dataset.VOILUTSequence[0], values)
        shown: NDArray[np.float32] = entries / np.float32(2**bits - 1)
        return shown
    centre, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if centre is not None and width is not None and width > 0:
        return _windowed(values, centre, width, dataset.get("VOILUTFunction") or "LINEAR")
    # What the bits could hold is no guide to what they do: twelve of sixteen would be all black.
    # The image's own range loses no value, and nothing else that the file says is better.
    low, high = values.min(), values.max()
    shown = (values - low) / np.maximum(high - low, np.float32(1e-6))
    return shown


def _windowed(
    values: NDArray[np.float32], centre: float, width: float, function: str
) -> NDArray[np.float32]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, onto 0 to 1 and beyond."""
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


def _look_up(
    dataset: "Dataset", item: "Dataset", values: NDArray[Any]
) -> tuple[NDArray[np.float32], int]:
    """Entries (H, W) of a lookup table for values (H, W), and how many bits they have."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count or 2**16  # which sixteen bits can't say
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if dataset.original_encoding[1] else ">"
        data = np.frombuffer(data, "u1" if len(data) == count else f"{order}u2")
    table = np.asarray(data, dtype=np.float32)[:count]
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index], bits


def _colour(pydicom: ModuleType, dataset: "Dataset", values: NDArray[Any]) -> NDArray[np.uint8]:
    """Decoded colours (H, W, 3), or indices into a palette (H, W), as uint8 (H, W, 3)."""
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == PALETTE:
        values = pydicom.pixels.apply_color_lut(values, dataset)[..., :3]
        # Eight bits may stand in words of sixteen, in their lower half.
        nominal = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        bits = 8 if nominal == 8 and values.max() < 256 else 16
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
