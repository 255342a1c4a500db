"""DICOM: pixels of a file, refusals with their reasons, and no patient's field in a message."""

import csv
import logging
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.data.pseudonyms import user_secret
from mediffusion_core.data.readers import dicom
from mediffusion_core.data.readers.dicom_pixels import decode_dicom
from mediffusion_core.data.store.images import ImageError
from mediffusion_core.settings import DataSettings

pydicom = pytest.importorskip("pydicom")
RAMP = np.arange(0, 240, 10).reshape(4, 6)
SECRETS = {
    "PatientName": "Nightingale^Florence",
    "PatientBirthDate": "18200512",
    "AccessionNumber": "ACC778899",
    "PatientAddress": "10 South Street",
    "OtherPatientIDs": "OTHER5544",
}
RLE, HTJ2K = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.201"


def dataset(values: np.ndarray, patient: str | None = None, **elements: Any) -> Any:
    """A secondary capture of some pixels, with every secret in its header."""
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.SOPInstanceUID = pydicom.uid.generate_uid()
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.PatientID = patient
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel = values.ndim if values.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = values.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.PixelData = values.tobytes()
    for keyword, value in (SECRETS | elements).items():
        setattr(made, keyword, value)
    return made


def save(path: Path, made: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom disapproves of some values that are meant here
        made.save_as(path, enforce_file_format=True)
    return path


def shown(
    path: Path, values: np.ndarray, window: tuple[float, float] | None = None, **elements: Any
) -> list[Any]:
    return decode_dicom(save(path / "a.dcm", dataset(values, **elements)), window).tolist()


def scaled(values: np.ndarray, low: float, high: float) -> list[Any]:
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(int).tolist()


@pytest.mark.parametrize("kind", ["u1", "u2", "i2"])
def test_without_a_window_the_image_fills_the_range(tmp_path: Path, kind: str) -> None:
    values = (RAMP - 120 if kind == "i2" else RAMP).astype(kind)
    assert shown(tmp_path, values) == scaled(RAMP, 0, 230)


def test_an_image_of_one_value_is_black(tmp_path: Path) -> None:
    assert shown(tmp_path, np.full((2, 2), 700, "u2")) == [[0, 0], [0, 0]]


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    inverted = shown(tmp_path, RAMP.astype("u2"), PhotometricInterpretation="MONOCHROME1")
    assert inverted == (255 - np.array(scaled(RAMP, 0, 230))).tolist()


def test_the_given_window_is_in_rescaled_units_and_wins(tmp_path: Path) -> None:
    elements = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 7, "WindowWidth": 9}
    # LINEAR: black up to centre - width / 2, white from centre + width / 2 - 1.
    assert shown(tmp_path, RAMP.astype("u1"), (50, 101), **elements) == scaled(
        2.0 * RAMP - 100, -0.5, 99.5
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_first_window_of_the_file(tmp_path: Path, function: str) -> None:
    elements = {"WindowCenter": [100, 3], "WindowWidth": [41, 5], "VOILUTFunction": function}
    pixels = shown(tmp_path, RAMP.astype("u2"), **elements)
    if function == "SIGMOID":
        assert pixels == np.rint(255 / (1 + np.exp(-4 * (RAMP - 100) / 41))).tolist()
    elif function == "LINEAR":
        assert pixels == scaled(RAMP, 79.5, 119.5)
    else:
        assert pixels == scaled(RAMP, 79.5, 120.5)


def test_a_window_without_width_is_none(tmp_path: Path) -> None:
    assert shown(tmp_path, RAMP.astype("u2"), WindowCenter=100, WindowWidth=0) == scaled(
        RAMP, 0, 230
    )


def look_up_table(kind: str, entries: list[int], first: int, bits: int) -> Any:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    data = entries if kind == "US" else np.array(entries, "<u2").tobytes()
    item.add_new("LUTData", kind, data)
    return pydicom.Sequence([item])


@pytest.mark.parametrize("kind", ["US", "OW"])
def test_lookup_tables_of_modality_and_interest(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 10, 11, 12, 13, 99]], "u2")
    interest = look_up_table(kind, [0, 100, 4095], 20, 12)
    modality = look_up_table(kind, [20, 21, 22, 22], 10, 16)
    # 10 and below become 20, 11 becomes 21, the others 22.
    pixels = shown(
        tmp_path, values, VOILUTSequence=interest, ModalityLUTSequence=modality,
        WindowCenter=5, WindowWidth=2,
    )  # fmt: skip
    assert pixels == [[0, 0, 6, 255, 255, 255]]


def test_bits_above_those_stored_do_not_count(tmp_path: Path) -> None:
    overlaid = RAMP.astype("u2") | 0xF000
    assert shown(tmp_path, overlaid, BitsStored=12, HighBit=11) == scaled(RAMP, 0, 230)
    negative = (RAMP.astype("i2") - 120) & 0x0FFF  # twelve bits, whose sign is the twelfth
    assert shown(tmp_path, negative, BitsStored=12, HighBit=11) == scaled(RAMP, 0, 230)


def test_rgb_stays_as_it_is(tmp_path: Path) -> None:
    colours = np.stack([RAMP, RAMP // 2, 255 - RAMP], axis=-1).astype("u1")
    assert shown(tmp_path, colours) == colours.tolist()
    planes = np.ascontiguousarray(colours.transpose(2, 0, 1)).tobytes()
    assert shown(tmp_path, colours, PlanarConfiguration=1, PixelData=planes) == colours.tolist()
    wide = colours.astype("u2") * 257
    assert shown(tmp_path, wide, (1, 1)) == colours.tolist()


def test_ybr_becomes_rgb(tmp_path: Path) -> None:
    colours = np.stack([RAMP, RAMP // 2, 255 - RAMP], axis=-1).astype("u1")
    ybr = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    pixels = np.array(shown(tmp_path, ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(pixels - colours).max() <= 2


def test_palette_becomes_rgb(tmp_path: Path) -> None:
    elements = {}
    for colour, entries in (("Red", [0, 255]), ("Green", [128, 0]), ("Blue", [7, 9])):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 8]
        elements[f"{colour}PaletteColorLookupTableData"] = bytes(entries)
    values = np.array([[0, 1], [1, 0]], "u1")
    pixels = shown(tmp_path, values, PhotometricInterpretation="PALETTE COLOR", **elements)
    assert pixels == [[[0, 128, 7], [255, 0, 9]], [[255, 0, 9], [0, 128, 7]]]


def test_rle_is_decoded(tmp_path: Path) -> None:
    made = dataset(RAMP.astype("i2") - 120)
    made.compress(RLE, generate_instance_uid=False)
    pixels = decode_dicom(save(tmp_path / "a.dcm", made), None)
    assert pixels.tolist() == scaled(RAMP, 0, 230)


@pytest.mark.parametrize(
    ("syntax", "off"),
    [
        ("JPEGBaselineProcess1", 4),
        ("JPEGLosslessProcess14", 0),
        ("JPEGLosslessProcess14_1", 0),
        ("JPEGLSLossless", 0),
        ("JPEG2000Lossless", 0),
        ("JPEG2000", 3),
    ],
)
@pytest.mark.parametrize("kind", ["u1", "u2", "rgb"])
def test_jpeg_is_decoded(tmp_path: Path, syntax: str, off: int, kind: str) -> None:
    pytest.importorskip("gdcm")
    if kind == "u2" and syntax == "JPEGBaselineProcess1":
        pytest.skip("has eight bits alone")
    rows, columns = np.mgrid[:32, :48]
    values = (rows * 2 + columns * 3).astype("u2" if kind == "u2" else "u1")
    if kind == "rgb":
        values = np.stack([values, values // 2, 255 - values], axis=-1).astype("u1")
    plain = save(tmp_path / "plain.dcm", dataset(values))
    packed = compress(plain, tmp_path / "packed.dcm", syntax)
    difference = decode_dicom(packed, None).astype(int) - decode_dicom(plain, None)
    assert np.abs(difference).max() <= off


def compress(plain: Path, packed: Path, syntax: str) -> Path:
    import gdcm

    reader, change, writer = (
        gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    )  # fmt: skip
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(packed))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    made = pydicom.dcmread(packed)
    assert made.file_meta.TransferSyntaxUID.is_compressed
    if syntax == "JPEGBaselineProcess1" and made.SamplesPerPixel == 3:
        # GDCM turns the colours to YCbCr, and goes on to call them RGB.
        made.PhotometricInterpretation = "YBR_FULL_422"
        save(packed, made)
    return packed


@pytest.mark.parametrize(
    "syntax", ["JPEGBaselineProcess1", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000"]
)
def test_a_codestream_that_does_not_fit_the_header_is_refused(tmp_path: Path, syntax: str) -> None:
    """GDCM would end this process."""
    pytest.importorskip("gdcm")
    plain = save(tmp_path / "plain.dcm", dataset(np.tile(np.arange(48, dtype="u1"), (32, 1))))
    packed = compress(plain, tmp_path / "packed.dcm", syntax)
    for elements, reason in (
        ({"Rows": 4, "Columns": 6}, "compressed are 32 x 48 x 1 of 8 bits, the header says 4 x 6"),
        ({"Columns": 49}, "compressed are 32 x 48 x 1"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "32 x 48 x 1 of 8 bits"),
        ({"BitsStored": 5, "HighBit": 4}, "5 of 8 bits"),
    ):
        made = pydicom.dcmread(packed)
        for keyword, value in elements.items():
            setattr(made, keyword, value)
        with pytest.raises(ImageError, match=reason):
            decode_dicom(save(tmp_path / "wrong.dcm", made), None)


def broken(path: Path, kind: str) -> Path:
    """A file that can't be shown."""
    made = dataset(RAMP.astype("u2"), "SECRETID42")
    if kind == "frames":
        made.NumberOfFrames = 7
        made.PixelData = made.PixelData * 7
    elif kind == "no pixels":
        del made.PixelData
    elif kind == "a report":
        for keyword in ("PixelData", "Rows", "Columns"):
            delattr(made, keyword)
    elif kind == "huge":
        made.Rows = made.Columns = 65535
    elif kind == "no rows":
        made.Rows = 0
    elif kind == "bits":
        made.BitsAllocated = made.BitsStored = 32
    elif kind == "samples":
        made.SamplesPerPixel = 3
    elif kind == "colours":
        made.PhotometricInterpretation = "HSV"
    elif kind == "no bits":
        del made.BitsStored
    elif kind == "slope":
        made.RescaleSlope, made.RescaleIntercept = "1e38", 0
    elif kind == "plugin":
        made.file_meta.TransferSyntaxUID = HTJ2K
        made.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 40])
    elif kind == "deflated":
        made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    elif kind == "jpeg":
        made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
        made.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no JPEG at all \xff\xd9"])
    elif kind == "rle":
        made.compress(RLE, generate_instance_uid=False)
    save(path, made)
    content = path.read_bytes()
    if kind in ("truncated", "rle"):
        path.write_bytes(content[:-12])
    elif kind == "syntax":
        path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.1\0"))
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "no DICOM":
        path.write_bytes(b"PatientID SECRETID42\n" * 30)
    elif kind == "header cut":
        path.write_bytes(content[: content.index(b"SECRETID42") + 5])
    elif kind == "magic alone":
        path.write_bytes(content[:132])
    elif kind == "shifted":
        path.write_bytes(content.replace(b"LO\x0a\x00SECRETID42", b"LO\x0b\x00SECRETID42"))
    return path


BROKEN = {
    "frames": "7 frames, allowed is 1",
    "no pixels": "no pixel data",
    "a report": "no pixel data",
    "huge": "65535 rows and 65535 columns exceed",
    "no rows": "0 rows",
    "bits": "32 of 32 bits",
    "samples": "3 samples a pixel do not fit MONOCHROME2",
    "colours": "unknown photometric",
    "no bits": "header has no BitsStored",
    "slope": "not finite",
    "plugin": "nothing is installed that decodes High-Throughput JPEG 2000",
    "syntax": "unknown transfer syntax",
    "deflated": "deflated",
    "jpeg": "compressed pixels are damaged",
    "rle": "truncated|damaged",
    "truncated": "truncated, 36 of 48 bytes",
    "empty": "empty file",
    "no DICOM": "not a DICOM file",
    "header cut": "no pixel data",
    "magic alone": "TransferSyntaxUID|damaged|no pixel data",
    "shifted": "no pixel data|damaged|header",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_refusal_has_one_line_that_names_no_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    path = broken(tmp_path / "a.dcm", kind)
    with (
        caplog.at_level(logging.DEBUG),
        warnings.catch_warnings(record=True) as warned,
        pytest.raises(ImageError, match=BROKEN[kind]) as caught,
    ):
        decode_dicom(path, None)
    assert "\n" not in str(caught.value)
    text = f"{caught.value} {caplog.text} {[w.message for w in warned]} {capfd.readouterr()}"
    for secret in (*SECRETS.values(), "SECRETID42"):
        assert secret not in text


def test_size_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.dcm", dataset(RAMP.astype("u2")))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RAMP.size)
    assert decode_dicom(path, None).shape == RAMP.shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RAMP.size - 1)
    with pytest.raises(ImageError, match="4 rows and 6 columns exceed 23 pixels"):
        decode_dicom(path, None)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dicom_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'fed-mediffusion\[data\]'"):
        dicom.read(settings, 0)


def dicom_folder(root: Path) -> DataSettings:
    """Five files of three patients: named with and without ending, by UID, one without patient."""
    values = RAMP.astype("u2")
    files = {
        "one/SECRETID1/a.dcm": "SECRETID1",
        "one/SECRETID1/b.DCM": "SECRETID1",
        "two/c": "SECRETID2",
        "two/d.dcm": "SECRETID2",
        "two/e.dcm": None,
    }
    uids = {}
    for index, (name, patient) in enumerate(files.items()):
        made = dataset(values + index, patient)
        uids[name] = made.SOPInstanceUID
        save(root / name, made)
    names = ["one/SECRETID1/a.dcm", "one/SECRETID1/b", "two/c", uids["two/d.dcm"], "two/e.dcm"]
    labels = ["healthy", "ill", "ill", "", "healthy"]
    write(root / "labels.csv", ["image", "label"], *zip(names, labels, strict=True))
    (root / "notes.txt").write_text("no image")
    (root / "README").write_text("no image either")
    save(root / "DICOMDIR", dataset(values))
    return DataSettings(
        source="dicom", root=root, table=Path("labels.csv"), image_size=16, channels=1
    )


def write(path: Path, *rows: Any) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def with_columns(settings: DataSettings, **columns: str) -> DataSettings:
    """The same, with a table of more columns, whose cells are the words given for each."""
    assert settings.root is not None
    path = settings.root / "labels.csv"
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    more = [[values.split()[index] for values in columns.values()] for index in range(len(rows))]
    joined = [row + added for row, added in zip(rows, more, strict=True)]
    write(path, [*header, *columns], *joined)
    chosen = settings.columns.model_copy(update={name: name for name in columns})
    return settings.model_copy(update={"columns": chosen})


def test_files_labels_and_patients(tmp_path: Path) -> None:
    source = dicom.read(dicom_folder(tmp_path), 0)
    assert source.name == "dicom"
    assert source.classes == ("healthy", "ill")
    np.testing.assert_array_equal(source.labels, [[1, 0], [0, 1], [0, 1], [np.nan, np.nan], [1, 0]])
    a, b, c, d, e = source.groups
    assert a == b and c == d and len({a, c, e}) == 3
    assert e == source.image_ids[4] == dicom.image_id("two/e.dcm", user_secret())
    assert all(
        len(name) == 16 and int(name, 16) >= 0 for name in (*source.groups, *source.image_ids)
    )
    load = pickle.loads(pickle.dumps(source.load))
    for index in range(5):
        assert load(index).tolist() == scaled(RAMP, 0, 230)


@pytest.mark.parametrize(
    "name",
    [
        "img{}.dicom", "PAT.MR.HEAD.0001.{}.2020.IMA", "1.2.826.0.1.3680043.8.498.100{}", "I{}.img",
        "IM00000{}", "img{}.DCM", "scan {}.png", "x{}.dcm.bak", "{}.0",
    ],
)  # fmt: skip
def test_files_are_found_by_their_content(tmp_path: Path, name: str) -> None:
    names = [name.format(number) for number in range(4)]
    for number, each in enumerate(names):
        save(tmp_path / "deep" / each, dataset(RAMP.astype("u2"), f"P{number}"))
    (tmp_path / "deep" / "notes.txt").write_text("none")
    rows = [[f"deep/{each}", "ab"[number % 2]] for number, each in enumerate(names)]
    write(tmp_path / "labels.csv", ["image", "label"], *rows)
    settings = DataSettings(
        source="dicom", root=tmp_path, table=Path("labels.csv"), image_size=16, channels=1
    )
    source = dicom.read(settings, 0)
    assert source.labels.argmax(axis=1).tolist() == [0, 1, 0, 1]
    assert len(set(source.groups)) == 4
    for index in range(4):
        assert source.load(index).tolist() == scaled(RAMP, 0, 230)
    assert [note.text for note in source.notes] == [
        "2 files are not read: of a kind that is not read (.csv 1, .txt 1)"
    ]


def test_the_window_of_the_settings_is_used(tmp_path: Path) -> None:
    settings = dicom_folder(tmp_path).model_copy(update={"window": (100.0, 101.0)})
    assert dicom.read(settings, 0).load(0).tolist() == scaled(RAMP, 49.5, 149.5)


def test_patients_of_the_table_win_and_are_hidden(tmp_path: Path) -> None:
    settings = with_columns(
        dicom_folder(tmp_path), patient="P1 P2 P2 SECRETID1 P4", site="x y y x x"
    )
    source = dicom.read(settings, 0)
    assert source.groups[1] == source.groups[2] and len(set(source.groups)) == 4
    assert not {"P1", "P2", "P4"} & set(source.groups)
    assert source.centres == ("x", "y", "y", "x", "x")
    without = dicom.read(dicom_folder(tmp_path), 0)
    assert source.groups[3] == without.groups[0]


@pytest.mark.parametrize("cell", ["SECRETID9", ""])
def test_a_mistake_in_the_patients_column_names_no_patient(tmp_path: Path, cell: str) -> None:
    settings = with_columns(dicom_folder(tmp_path), patient="SECRETID1 SECRETID1 q r s")
    with (tmp_path / "labels.csv").open("a") as file:
        file.write(f"two/c,ill,{cell}\n")
    with pytest.raises(UserError, match=r"column 'patient' is empty .* or names two") as caught:
        dicom.read(settings, 0)
    assert "SECRETID" not in str(caught.value)


@pytest.mark.parametrize("what", ["split", "site"])
@pytest.mark.parametrize("column", [True, False])
def test_a_patient_in_two_places_is_refused_by_image(
    tmp_path: Path, what: str, column: bool
) -> None:
    patients = {"patient": "SECRETID1 SECRETID1 q r s"} if column else {}
    fine, wrong = "test test train train val", "test train train train val"
    given = dicom.read(with_columns(dicom_folder(tmp_path / "a"), **patients, **{what: fine}), 0)
    assert (given.splits if what == "split" else given.centres) is not None
    settings = with_columns(dicom_folder(tmp_path / "b"), **patients, **{what: wrong})
    with pytest.raises(
        UserError, match=f"one patient but in two {what}s, test and train"
    ) as caught:
        dicom.read(settings, 0)
    assert dicom.image_id("one/SECRETID1/b.DCM", user_secret()) in str(caught.value)
    assert "SECRETID1" not in str(caught.value)


def test_without_a_table_no_label_is_known(tmp_path: Path) -> None:
    settings = dicom_folder(tmp_path).model_copy(update={"table": None})
    with pytest.raises(UserError, match=r"needs data\.table=.*data\.classes"):
        dicom.read(settings, 0)
    source = dicom.read(settings.model_copy(update={"classes": ("healthy", "ill")}), 0)
    assert source.labels.shape == (5, 2) and np.isnan(source.labels).all()
    assert len(set(source.groups)) == 3


def test_files_that_the_table_omits_are_left_out(tmp_path: Path) -> None:
    settings = dicom_folder(tmp_path)
    write(tmp_path / "labels.csv", ["image", "label"], ["two/c", "ill"], ["two/e", "healthy"])
    source = dicom.read(settings, 0)
    assert len(source.image_ids) == 2
    said = [note.text for note in source.notes]
    assert "3 files are not read: not in the table" in said
    assert "4 files are not read: of a kind that is not read (no ending 2, .csv 1, .txt 1)" in said


def test_nothing_outside_the_root_is_read(tmp_path: Path) -> None:
    settings = dicom_folder(tmp_path / "root")
    outside = save(tmp_path / "outside" / "x.dcm", dataset(RAMP.astype("u2"), "SECRETID9"))
    for link in ("link.dcm", "link"):
        (tmp_path / "root" / link).symlink_to(outside)
    (tmp_path / "root" / "folder").symlink_to(outside.parent)
    (tmp_path / "root" / "circle.dcm").symlink_to(tmp_path / "root" / "circle.dcm")
    names = ["two/c", "link.dcm", "link", "folder/x.dcm", "circle.dcm"]
    rows = [[name, label] for name, label in zip(names, ["ill", *["healthy"] * 4], strict=True)]
    write(tmp_path / "root" / "labels.csv", ["image", "label"], *rows)
    source = dicom.read(settings, 0)
    source.load(0)
    for index in range(1, 5):
        assert source.groups[index] == source.image_ids[index]
        with pytest.raises(ImageError, match=r"no such DICOM file below data\.root"):
            source.load(index)
    write(tmp_path / "root" / "labels.csv", ["image", "label"], ["../outside/x", "ill"])
    with pytest.raises(UserError):
        dicom.read(settings, 0)


def test_a_file_that_becomes_a_link_outside_is_not_read(tmp_path: Path) -> None:
    source = dicom.read(dicom_folder(tmp_path / "root"), 0)
    outside = save(tmp_path / "x.dcm", dataset(RAMP.astype("u2")))
    (tmp_path / "root" / "two" / "c").unlink()
    with pytest.raises(ImageError, match="no such"):
        source.load(2)
    (tmp_path / "root" / "two" / "c").symlink_to(outside)
    with pytest.raises(ImageError, match=r"outside of data\.root"):
        source.load(2)


def test_pseudonyms_stay_where_the_folder_moves_and_differ_between_secrets(tmp_path: Path) -> None:
    settings = dicom_folder(tmp_path / "a")
    one, other = (dicom.read(settings, 0, secret) for secret in (b"one", b"other"))
    (tmp_path / "a").rename(tmp_path / "b")
    moved = dicom.read(settings.model_copy(update={"root": tmp_path / "b"}), 0, b"one")
    assert (moved.groups, moved.image_ids, moved.names) == (one.groups, one.image_ids, one.names)
    assert not set(one.groups) & set(other.groups) and not set(one.image_ids) & set(other.image_ids)
    assert one.names.key != other.names.key


def test_patients_are_named_if_each_image_has_one(tmp_path: Path) -> None:
    settings = dicom_folder(tmp_path)  # one of its files has no PatientID
    assert dicom.read(settings, 0).names.unit == "image"
    assert dicom.read(with_columns(settings, patient="p q r s t"), 0).names.unit == "patient"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["two/c", "ill"], ["two/e", "a"], ["two/e.dcm", "a"]], "is listed 2 times"),
        ([["x/c", "ill"], ["x/e.dcm", "a"]], "column 'image' names no DICOM file"),
    ],
)
def test_table_mistakes(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    settings = dicom_folder(tmp_path)
    write(tmp_path / "labels.csv", ["image", "label"], *rows)
    with pytest.raises(UserError, match=message):
        dicom.read(settings, 0)


def test_an_instance_in_two_files_is_refused(tmp_path: Path) -> None:
    settings = dicom_folder(tmp_path)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "two/d.dcm").read_bytes())
    with pytest.raises(UserError, match=r"SOPInstanceUID .* is that of several files"):
        dicom.read(settings, 0)


def test_a_root_without_dicom_is_refused(tmp_path: Path) -> None:
    settings = DataSettings(source="dicom", root=tmp_path, image_size=16, channels=1)
    with pytest.raises(UserError, match=r"data\.root=.*DICOM files"):
        dicom.read(settings, 0)


def test_fingerprint_follows_files_table_window_and_columns(tmp_path: Path) -> None:
    settings = dicom_folder(tmp_path)
    seen = [dicom.read(settings, 0).fingerprint]
    assert dicom.read(settings, 1).fingerprint == seen[0]
    windowed = settings.model_copy(update={"window": (40.0, 400.0)})
    seen.append(dicom.read(windowed, 0).fingerprint)
    settings = with_columns(settings, patient="a b c d e")
    seen.append(dicom.read(settings, 0).fingerprint)
    path = tmp_path / "two" / "c"
    path.write_bytes(path.read_bytes() + b"\0\0")
    seen.append(dicom.read(settings, 0).fingerprint)
    assert len(set(seen)) == 4


def test_no_field_of_a_patient_gets_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = dicom_folder(tmp_path)
    for index, kind in enumerate(BROKEN):
        broken(tmp_path / f"broken{index}.dcm", kind)
    unlabelled = settings.model_copy(update={"table": None, "classes": ("healthy", "ill")})
    said = []
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        for each in (settings, unlabelled):
            source = dicom.read(each, 0)
            said.append(repr(source))
            said += [repr(value) for name, value in vars(source).items() if name != "load"]
            for index in range(len(source.image_ids)):
                try:
                    source.load(index)
                except ImageError as error:
                    said.append(str(error))
    assert len(said) > 2 * len(vars(source)) + 15  # the broken files were met
    said += [caplog.text, *(str(one.message) for one in warned), *capfd.readouterr()]
    for secret in (*SECRETS.values(), "SECRETID"):
        assert not [text for text in said if secret in text]
