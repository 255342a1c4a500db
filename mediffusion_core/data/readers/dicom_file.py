"""Finds DICOM files by their content, and opens them without logging their elements."""

import io
import logging
import re
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.store.images import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

PREAMBLE, MAGIC = 128, b"DICM"
DEFLATED = "1.2.840.10008.1.2.1.99"
META_END = 4096
"""Bytes at the start of a file that contain its transfer syntax."""
FIRST_GROUPS = (0x0002, 0x0008)
"""The group of a file's first element: its meta information, else what identifies it."""
LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD", b"OL", b"UC", b"UR")
"""Value representations whose length has four bytes, after two that are reserved."""


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, whatever it is called; also without preamble, as from old scanners.

    A file that can't be opened is not.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(PREAMBLE + 1024)
    except OSError:
        return False
    if start[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC:
        return True
    return any(_starts_with_elements(start, order) for order in "<>")


def _starts_with_elements(start: bytes, order: str) -> bool:
    """Whether bytes are the first elements of a data set, by their tags in rising order."""
    place, last = 0, (0, 0)
    for number in range(3):
        try:
            tag = struct.unpack_from(f"{order}HH", start, place)
            kind = start[place + 4 : place + 6]
            if re.fullmatch(b"[A-Z]{2}", kind):
                width, skip = ("I", 8) if kind in LONG else ("H", 6)
            else:
                width, skip = "I", 4
            (length,) = struct.unpack_from(f"{order}{width}", start, place + skip)
        except struct.error:
            return number > 0 and place < len(start)
        if tag <= last or (number == 0 and tag[0] not in FIRST_GROUPS) or tag[0] > 0x0010:
            return False
        last = tag
        place += skip + struct.calcsize(width) + length
        if length % 2 or place > len(start):
            return number > 0
    return True


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


def read_elements(
    pydicom: ModuleType, path: Path, keywords: Iterable[str], *, pixels: bool
) -> "Dataset":
    """Some elements of a file, with the transfer syntax that it has, whether it says so or not.

    Args:
        pydicom: the package, quiet.
        path: the file.
        keywords: the elements that are read if they are there, by keyword.
        pixels: whether to read on to the pixels.

    Raises:
        ImageError: a file whose elements themselves are compressed.
        Exception: whatever pydicom raises; its text may quote the file.
    """
    with path.open("rb") as file:
        start = file.read(PREAMBLE + len(MAGIC))
    source: Path | io.BytesIO = path
    has_meta = start.endswith(MAGIC)
    is_deflated = False
    if has_meta:
        meta = pydicom.filereader.read_file_meta_info(path)
        is_deflated = meta.get("TransferSyntaxUID") == DEFLATED
    elif struct.unpack("<H", start[:2])[0] == FIRST_GROUPS[0]:
        content = path.read_bytes()
        is_deflated = DEFLATED.encode() in content[:META_END]
        source, has_meta = io.BytesIO(bytes(PREAMBLE) + MAGIC + content), True
    elif not is_dicom(path):
        raise ImageError("not a DICOM file")
    if is_deflated:
        # pydicom inflates all of it at once, whatever that comes to.
        raise ImageError("the whole file is deflated, only pixels may be compressed")
    dataset: Dataset = pydicom.dcmread(
        source, stop_before_pixels=not pixels, specific_tags=list(keywords), force=not has_meta
    )
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _syntax(pydicom, *dataset.original_encoding)
    return dataset


def _syntax(pydicom: ModuleType, is_implicit: bool, is_little: bool) -> Any:
    if is_implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if is_little else pydicom.uid.ExplicitVRBigEndian
