"""Published and made DICOM files are shown as pydicom and DCMTK show them, or refused truly."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mediffusion_core.data.readers.dicom_file import is_dicom
from mediffusion_core.data.readers.dicom_pixels import decode_dicom
from mediffusion_core.data.store.images import ImageError

pydicom = pytest.importorskip("pydicom")

from helpers.dicom_conformance import (  # noqa: E402
    DCMTK,
    DCMTK_DIFFERS,
    NO_DCMTK,
    PYDICOM_DIFFERS,
    by_dcmtk,
    compare,
    published_files,
    true_reason,
)

needs_dcmtk = pytest.mark.skipif(not DCMTK, reason=NO_DCMTK)
RAMP = np.arange(0, 240, 10, dtype="u2").reshape(4, 6)


@pytest.mark.parametrize("path", published_files(), ids=lambda path: path.name)
def test_a_published_file_is_shown_as_others_show_it(path: Path) -> None:
    row = compare(path)
    if row.refused is not None:
        assert true_reason(row.refused), row.refused
        return
    assert row.from_pydicom == 0 or path.name in PYDICOM_DIFFERS
    if row.from_dcmtk is not None:
        assert row.from_dcmtk <= 1 or path.name in DCMTK_DIFFERS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm"),
        ("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"),
    ],
)
def test_the_order_of_bytes_changes_no_palette(one: str, other: str) -> None:
    paths = {path.name: path for path in published_files()}
    if one not in paths:
        pytest.skip("needs the package pydicom-data")
    assert np.array_equal(*(decode_dicom(paths[name], None) for name in (one, other)))


def save(path: Path, values: np.ndarray, **elements: Any) -> Path:
    """A file of some stored values; `syntax` is its transfer syntax."""
    syntax = elements.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    order = ">" if syntax == pydicom.uid.ExplicitVRBigEndian else "<"
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    made.StudyInstanceUID = made.SeriesInstanceUID = pydicom.uid.generate_uid()
    made.PatientName, made.PatientID = "A", "1"
    made.Rows, made.Columns = values.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = values.dtype.itemsize * 8
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(values.dtype.kind == "i")
    made.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
    made["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(made, keyword, value)
        if keyword.endswith("TableData"):
            made[keyword].VR = "OW"
    made.save_as(path, enforce_file_format=True)
    return path


def palette(order: str, kind: str, bits: int) -> dict[str, Any]:
    """Sixty-four entries of three colours, in words or, with `u1`, two in each word."""
    entries = np.arange(64) * (2**bits // 64)
    found: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, values in (("Red", entries), ("Green", entries[::-1]), ("Blue", entries // 2)):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [64, 0, bits]
        packed = values.astype("u1") if kind == "u1" else values.astype(f"{order}u2")
        if kind == "u1" and order == ">":
            packed = packed.reshape(-1, 2)[:, ::-1]
        found[f"{colour}PaletteColorLookupTableData"] = packed.tobytes()
    return found


BIG = pydicom.uid.ExplicitVRBigEndian
INDICES = np.arange(60, dtype="u1").reshape(6, 10)
MADE: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "high bit": (RAMP * 16, {"BitsStored": 12, "HighBit": 15}),
    "high bit, signed": (
        ((RAMP.astype("i2") - 120) * 16), {"BitsStored": 12, "HighBit": 15},
    ),
    "high bit, full range": (RAMP * 273, {"BitsStored": 12, "HighBit": 15}),
    "high bit, signed, full range": (
        ((RAMP.astype("i4") - 120) * 256).astype("i2"), {"BitsStored": 12, "HighBit": 15},
    ),
    "high bit below": (RAMP | 0xF000, {"BitsStored": 12, "HighBit": 11}),
    "high bit between, full range": (RAMP * 68 | 0xC003, {"BitsStored": 12, "HighBit": 13}),
    "high bit between": (RAMP * 4 | 0xC003, {"BitsStored": 12, "HighBit": 13}),
    "palette of words": (INDICES, palette("<", "u2", 16)),
    "palette of words, big-endian": (INDICES, palette(">", "u2", 16) | {"syntax": BIG}),
    "palette of bytes": (INDICES, palette("<", "u1", 8)),
    "palette of bytes, big-endian": (INDICES, palette(">", "u1", 8) | {"syntax": BIG}),
    "palette and wide indices": (INDICES.astype("u2") * 5, palette("<", "u1", 8)),
    "window": (RAMP, {"WindowCenter": 100, "WindowWidth": 77}),
    "rescaled window": (
        RAMP, {"RescaleSlope": 2, "RescaleIntercept": -50, "WindowCenter": 90, "WindowWidth": 300},
    ),
}  # fmt: skip
for _kind in ("MONOCHROME1", "MONOCHROME2"):
    for _shape in (None, "IDENTITY", "INVERSE"):
        MADE[f"{_kind} {_shape}"] = (
            RAMP,
            {"PhotometricInterpretation": _kind}
            | ({"PresentationLUTShape": _shape} if _shape else {}),
        )


@needs_dcmtk
@pytest.mark.parametrize("case", MADE)
def test_a_made_file_is_shown_as_dcmtk_shows_it(tmp_path: Path, case: str) -> None:
    values, elements = MADE[case]
    path = save(tmp_path / "a.dcm", values, **elements)
    theirs = by_dcmtk(path)
    assert theirs is not None
    ours = decode_dicom(path, None).astype(float)
    assert np.abs(ours - theirs).max() <= 1
    assert ours.std() > 10


@pytest.mark.parametrize("kind", ["u2", "i2"])
def test_padding_does_not_stretch_the_range(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 0, 1000, 1100, 1200, 1300]], kind)
    padded = {"PixelPaddingValue": 0}
    if kind == "i2":
        values = values - np.array([[2000, 1990, 0, 0, 0, 0]], kind)
        padded = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}
    shown = decode_dicom(save(tmp_path / "a.dcm", values, **padded), None)
    assert shown.tolist() == [[0, 0, 0, 85, 170, 255]]
    plain = np.full((2, 2), 7, kind)
    only = decode_dicom(save(tmp_path / "a.dcm", plain, PixelPaddingValue=7), None)
    assert only.tolist() == [[0, 0], [0, 0]]
    windowed = decode_dicom(save(tmp_path / "a.dcm", values, **padded), (1150.0, 301.0))
    assert windowed.tolist() == [[0, 0, 0, 85, 170, 255]]


@needs_dcmtk
def test_a_jpeg_of_twelve_bits_is_read_where_a_plugin_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = (np.add.outer(np.arange(64), np.arange(64)) * 32).astype("u2")
    plain = save(tmp_path / "plain.dcm", values, BitsStored=12, HighBit=11)
    packed = tmp_path / "packed.dcm"
    subprocess.run(["dcmcjpeg", "+ee", str(plain), str(packed)], check=True)
    if pydicom.pixels.get_decoder("1.2.840.10008.1.2.4.51").available_plugins.__contains__(
        "pylibjpeg"
    ):
        shown = decode_dicom(packed, None).astype(int)
        assert np.abs(shown - by_dcmtk(packed)).max() <= 1
        assert np.abs(shown - decode_dicom(plain, None)).max() <= 2
    decoder = type(pydicom.pixels.get_decoder("1.2.840.10008.1.2.4.51"))
    monkeypatch.setattr(decoder, "available_plugins", property(lambda _: ("gdcm", "pillow")))
    with pytest.raises(ImageError, match=r"a JPEG of 12 bits: pip install .*\[jpeg12\]"):
        decode_dicom(packed, None)


def test_files_without_preamble_or_syntax_are_dicom_by_their_content(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.dcm", RAMP)
    shown = decode_dicom(whole, None)
    raw = whole.read_bytes()
    cases = {"no preamble": raw[132:]}
    for syntax in (
        pydicom.uid.ImplicitVRLittleEndian,
        pydicom.uid.ExplicitVRLittleEndian,
        pydicom.uid.ExplicitVRBigEndian,
    ):
        made = save(tmp_path / "b.dcm", RAMP, syntax=syntax).read_bytes()
        start = 132 + 12 + int.from_bytes(made[140:144], "little")
        cases[f"no meta information, {syntax.name}"] = made[start:]
    for case, content in cases.items():
        path = tmp_path / "x.1.2.826.0.1"
        path.write_bytes(content)
        assert is_dicom(path), case
        assert np.array_equal(decode_dicom(path, None), shown), case


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08", b"\x08\0\x05\0", b"\x08\0" * 80, b"\x02\0\0\0" * 40, b"\0" * 400, b"text " * 90,
     b"\x89PNG\r\n\x1a\n" + b"\0" * 300, b"\xff\xd8\xff\xe0" + b"\0" * 300, bytes(range(256)) * 2],
)  # fmt: skip
def test_other_content_is_no_dicom(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    assert not is_dicom(path)
    assert not is_dicom(tmp_path / "gone") and not is_dicom(tmp_path)
