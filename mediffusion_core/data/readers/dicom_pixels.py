"""Decodes an untrusted DICOM file to 8-bit pixels, or gives a reason that names no patient.

Only the elements that the pixels need are read. Messages of pydicom are never passed on, since they
may quote any field.
"""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mediffusion_core.data.readers import dicom_shown
from mediffusion_core.data.readers.dicom_codestream import Shape, codestream_shape, whole_scans
from mediffusion_core.data.readers.dicom_file import quiet_pydicom, read_elements
from mediffusion_core.data.store.grey_levels import Window
from mediffusion_core.data.store.images import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

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
    *dicom_shown.ELEMENTS, "PixelData",
)  # fmt: skip
"""All that is read of a file; of a patient there is nothing."""


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
            header = read_elements(pydicom, path, ELEMENTS, pixels=False)
            _refuse_header(header)
            _refuse_transfer_syntax(pydicom, header)
            dataset = read_elements(pydicom, path, ELEMENTS, pixels=True)
            shape = _refuse_pixels(pydicom, dataset)
            values = _decoded(pydicom, dataset, shape)  # (H, W) or (H, W, 3)
            if dataset.PhotometricInterpretation in COLOUR:
                return dicom_shown.show_colour(values, int(dataset.BitsStored))
            stored = _stored(dataset, values, shape)
            if dataset.PhotometricInterpretation == PALETTE:
                return dicom_shown.show_palette(pydicom, dataset, stored)
            return dicom_shown.show_grey(dataset, stored, window)
        except ImageError:
            raise
        except pydicom.errors.InvalidDicomError:
            raise ImageError("not a DICOM file") from None
        except Exception as error:  # pydicom and codecs raise whatever the broken bytes lead to.
            raise ImageError(f"damaged or unusual DICOM file ({type(error).__name__})") from None


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


def _refuse_pixels(pydicom: ModuleType, dataset: "Dataset") -> Shape | None:
    """Refuses pixels that are not what the header says; returns what a codestream says of them."""
    if not dataset.get("PixelData"):
        raise ImageError("no pixel data, or truncated before it ends")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        is_run_length = syntax == pydicom.uid.RLELossless
        return None if is_run_length else _refuse_codestream(pydicom, dataset)
    if dataset.SamplesPerPixel == 3 and dataset.get("PlanarConfiguration") is None:
        raise ImageError("header has no PlanarConfiguration")
    # Two pixels of YBR_FULL_422 share their colour.
    subsampled = dataset.PhotometricInterpretation == "YBR_FULL_422"
    samples = 2 if subsampled else int(dataset.SamplesPerPixel)
    needed = dataset.Rows * dataset.Columns * samples * dataset.BitsAllocated // 8
    if len(dataset.PixelData) < needed:
        raise ImageError(f"truncated, {len(dataset.PixelData)} of {needed} bytes of pixels")
    return None


def _refuse_codestream(pydicom: ModuleType, dataset: "Dataset") -> Shape:
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
    return shape


def _decoded(pydicom: ModuleType, dataset: "Dataset", shape: Shape | None) -> NDArray[Any]:
    """Stored values (H, W) or colours (H, W, 3)."""
    lossy = (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEGExtended12Bit)
    syntax = dataset.file_meta.TransferSyntaxUID
    # GDCM, which would come first, ends the process at some damaged JPEGs.
    plugin = "pillow" if syntax in lossy else ""
    if shape is not None and syntax in lossy and shape.bits > 8:
        plugin = "pylibjpeg"
        if plugin not in pydicom.pixels.get_decoder(syntax).available_plugins:
            raise ImageError(
                f"nothing is installed that decodes a JPEG of {shape.bits} bits: "
                "pip install 'fed-mediffusion[jpeg12]'"
            )
        frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = pydicom.encaps.encapsulate([whole_scans(frame)])
    # `_stored` cuts the bits out; pydicom's correction takes the lowest, whatever the high bit is.
    values: NDArray[Any] = pydicom.pixels.pixel_array(
        dataset, index=0, decoding_plugin=plugin, correct_unused_bits=False
    )
    return values


def _stored(dataset: "Dataset", values: NDArray[Any], shape: Shape | None) -> NDArray[Any]:
    """The bits of each value that are stored, as numbers: PS3.5 8.1.1.

    Bits above the high bit are no part of the value, old scanners put overlays there; nor are those
    below the lowest. A codestream of fewer bits than are allocated has neither.
    """
    allocated, stored = values.dtype.itemsize * 8, int(dataset.BitsStored)
    if shape is not None and shape.bits <= stored:
        return values
    high = dataset.get("HighBit")
    top = stored if high is None or not stored <= int(high) + 1 <= allocated else int(high) + 1
    shifted: NDArray[Any] = (values << (allocated - top)) >> (allocated - stored)
    return shifted
