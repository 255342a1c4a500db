"""The shape in the header of a compressed picture, read before a decoder written in C runs.

GDCM ends the whole process if a JPEG is larger than the DICOM header states, and no error can be
caught. So the two shapes are compared first.
"""

import struct
from dataclasses import dataclass

from mediffusion_core.data.store.images import ImageError

JPEG = b"\xff\xd8"
JPEG_2000 = b"\xff\x4f\xff\x51"
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Markers that start a frame: JPEG's (ITU-T T.81, table B.1) and that of JPEG-LS (T.87)."""

SCAN = 0xFFDA
"""Marker that starts a scan."""


@dataclass(frozen=True)
class Shape:
    """Rows, columns and samples of a picture, and the bits of a sample."""

    rows: int
    columns: int
    samples: int
    bits: int


def codestream_shape(stream: bytes) -> Shape:
    """The shape in the header of a JPEG, JPEG-LS or JPEG 2000 codestream.

    Raises:
        ImageError: where there is none.
    """
    try:
        if stream.startswith(JPEG):
            return _jpeg_shape(stream)
        start = stream.find(JPEG_2000)  # which a JP2 file has boxes before
        if start >= 0:
            return _jpeg_2000_shape(stream[start:])
    except (struct.error, IndexError):
        pass
    raise ImageError("compressed pixels are damaged, they have no header")


def whole_scans(stream: bytes) -> bytes:
    """A sequential JPEG whose scans say that they hold all 64 coefficients, as all of them do.

    Old encoders left these fields (ITU-T T.81, B.2.3) at zero, which strict decoders refuse.

    Raises:
        ImageError: where there is no scan.
    """
    repaired = bytearray(stream)
    place = len(JPEG)
    try:
        while True:
            marker, length = struct.unpack_from(">HH", stream, place)
            if marker == SCAN:
                end = place + 2 + length
                repaired[end - 3 : end] = bytes((0, 63, 0))
                return bytes(repaired)
            place += 2 + length
    except struct.error:
        raise ImageError("compressed pixels are damaged, they have no scan") from None


def _jpeg_shape(stream: bytes) -> Shape:
    place = len(JPEG)
    while True:
        start, marker, length = struct.unpack_from(">BBH", stream, place)
        if start != 0xFF:
            raise IndexError
        if marker == 0xFF:  # a marker may be preceded by any number of these
            place += 1
        elif marker in FRAMES:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", stream, place + 4)
            return Shape(rows, columns, samples, bits)
        else:
            place += 2 + length


def _jpeg_2000_shape(stream: bytes) -> Shape:
    """ITU-T T.800, A.5.1."""
    right, bottom, left, top = struct.unpack_from(">4I", stream, 8)
    samples, signed_bits = struct.unpack_from(">HB", stream, 40)
    return Shape(bottom - top, right - left, samples, (signed_bits & 0x7F) + 1)
