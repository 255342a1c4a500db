"""Images: mutated PNG, JPEG, TIFF, WebP and DICOM files, read as predictions read them.

A DICOM file that GDCM would decode is not read: training decodes such files in processes of their
own, since GDCM ends its process on some damaged ones.
"""

import io
import warnings
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pydicom
from PIL import Image

from fuzz.harness import Target
from fuzz.mutations import nearly
from mediffusion_core.data.any_image import load_listed
from mediffusion_core.data.store.images import ImageError, fit

NAMES = ("a.png", "a.jpg", "a.tif", "a.webp", "a.dcm", "a", "../outside.png", "link.png", "")
"""The file is written to the first ones; the last ones must lead nowhere."""
WRITTEN = 6
BY_GDCM = tuple(f"1.2.840.10008.1.2.4.{last}".encode() for last in (57, 70, 80, 81, 90, 91, 92, 93))
SIDE = 8


def target(root: Path) -> Target:
    """Reads a file of some bytes and name, with or without a window."""
    (root / "link.png").symlink_to(root.parent / "outside.png")

    def run(case: tuple[int, bytes, bool]) -> None:
        which, content, has_window = case
        name = NAMES[which % len(NAMES)]
        if any(syntax in content for syntax in BY_GDCM):
            return
        if which % len(NAMES) < WRITTEN:
            (root / name).write_bytes(content)
        pixels = load_listed(root, (name,), (40.0, 400.0) if has_window else None, 0)
        assert pixels.dtype == np.uint8 and pixels.ndim in (2, 3)
        assert fit(pixels, SIDE, 3).shape == (SIDE, SIDE, 3)

    content = nearly(_seeds())
    return Target(
        root=root,
        cases=st.tuples(st.integers(0, len(NAMES) - 1), content, st.booleans()),
        run=run,
        refused=(ImageError,),
        seeds=[bytes([0]) + seed for seed in _seeds()],
        of_bytes=lambda given: (
            (given[0] >> 1, given[1:], given[0] % 2 == 1) if given else (0, b"", False)
        ),
    )


def _seeds() -> list[bytes]:
    """One valid file of each kind, a few hundred bytes each."""
    ramp = np.arange(0, 240, 10).reshape(4, 6)
    grey, colour = Image.fromarray(ramp.astype(np.uint8)), Image.new("RGB", (6, 4), (9, 99, 199))
    wide = Image.fromarray((ramp * 200).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    saved: list[tuple[Image.Image, dict[str, Any]]] = [
        (grey, {"format": "PNG"}),
        (wide, {"format": "PNG"}),
        (colour.convert("P"), {"format": "PNG", "transparency": 0}),
        (grey, {"format": "JPEG", "exif": exif}),
        (colour, {"format": "JPEG", "progressive": True}),
        (colour.convert("CMYK"), {"format": "JPEG"}),
        (wide, {"format": "TIFF"}),
        (grey, {"format": "TIFF", "compression": "tiff_lzw"}),
        (colour, {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
        (colour, {"format": "TIFF", "compression": "jpeg"}),
        (colour, {"format": "WEBP", "exif": exif}),
        (colour, {"format": "WEBP", "lossless": True}),
    ]
    files = []
    for image, how in saved:
        file = io.BytesIO()
        image.save(file, **how)
        files.append(file.getvalue())
    files += [
        _dicom(ramp.astype(np.uint8)),
        _dicom((ramp * 100).astype(np.int16), RescaleSlope="2", RescaleIntercept="-1024"),
        _dicom(ramp.astype(np.uint16), WindowCenter=["40", "50"], WindowWidth=["400", "10"]),
        _dicom(np.stack([ramp] * 3, axis=-1).astype(np.uint8)),
        _dicom(ramp.astype(np.uint8), lookup=True),
        _dicom(ramp.astype(np.uint8), compressed=pydicom.uid.RLELossless),
    ]
    encoded = files[3]
    files.append(_dicom(ramp.astype(np.uint8), jpeg=encoded))
    return files


def _dicom(
    values: np.ndarray,
    *,
    lookup: bool = False,
    compressed: str = "",
    jpeg: bytes = b"",
    **elements: Any,
) -> bytes:
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = "1.2.3"
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel = 3 if values.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = values.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.PixelData = values.tobytes()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    if lookup:
        table = pydicom.Dataset()
        table.LUTDescriptor = [256, 0, 16]
        table.LUTData = np.arange(256, dtype="<u2").tobytes()
        table["LUTData"].VR = "OW"
        made.VOILUTSequence = [table]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if compressed:
            made.compress(compressed)
        if jpeg:
            made.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
            made.PixelData = pydicom.encaps.encapsulate([jpeg])
        made.save_as(file, enforce_file_format=True)
    return file.getvalue()
