"""The commands of the pages on data sets and own data run as they are shown, on small made files.

`simulate` is run up to the launch: its settings are composed and its images prepared.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.untrained import untrained_model
from PIL import Image
from typer.testing import CliRunner
from unit.test_documentation import DOCS, SUMMARY, blocks, commands

from configs.compose import compose
from mediffusion_core.data.readers import chestxray14, chexpert, isic2019
from mediffusion_core.run_io.run_folder import RunFolder, write_json
from simulations.cli.main import app
from simulations.engine import simulate

PAGES = [*sorted((DOCS / "datasets").glob("*.md")), DOCS / "how-to" / "own-data.md"]
NOT_RUN = {
    "simulate data=phantom": "draws 750 images; tests/unit/data/phantom and tests/integration do",
    "simulate data.phantom": "draws 750 images; tests/unit/data/phantom and tests/integration do",
}
"""Beginnings of commands that are not run here, and why."""
COUNT = 48
PATIENTS = COUNT // 2


def draw(path: Path, number: int, side: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(pixels).save(path)


def write(path: Path, header: list[str], rows: list[list[object]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def class_folders(root: Path, first: str, second: str) -> list[str]:
    """`COUNT` images of two classes; their paths."""
    names = [f"{(first, second)[number % 2]}/{number}.png" for number in range(COUNT)]
    for number, name in enumerate(names):
        draw(root / name, number)
    return names


def make_own(data: Path) -> None:
    """Folders and tables of a user's own."""
    names = class_folders(data / "xray", "ill", "well")
    class_folders(data / "moles", "benign", "malignant")
    class_folders(data / "archive (1)", "a", "b")
    class_folders(data / "数据", "unauffällig", "肺炎")
    said = [("ill", "well")[number % 2] for number in range(COUNT)]
    header = ["image", "file", "label", "diagnosis", "patient_id", "Effusion", "Nodule"]
    rows = [
        [name, name, label, label, f"P{number // 2}", number % 2, number // 2 % 2]
        for number, (name, label) in enumerate(zip(names, said, strict=True))
    ]
    write(data / "xray" / "labels.csv", header, rows)
    names = class_folders(data / "Müller", "a", "b")
    rows = [[name, label] for name, label in zip(names, said, strict=True)]
    write(data / "Müller" / "labels.csv", ["image", "label"], rows, ";")
    names = class_folders(data / "x", "a", "b")
    rows = [[name, number % 2, 1 - number % 2] for number, name in enumerate(names)]
    write(data / "x" / "t.csv", ["image", "0", "1"], rows)
    draw(data / "new" / "a.png", 0)


def make_dicom(data: Path) -> None:
    """Files without endings, with a table, and one scan to explain."""
    for number in range(COUNT):
        made = pydicom.Dataset()
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"1.2.{number + 1}"
        made.PatientID = f"P{number // 2}"
        values = np.random.default_rng(number).integers(0, 4096, (24, 24), np.uint16)
        made.Rows, made.Columns = values.shape
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
        made.PixelRepresentation, made.PixelData = 0, values.tobytes()
        (data / "dicom").mkdir(parents=True, exist_ok=True)
        made.save_as(data / "dicom" / f"IM{number}", enforce_file_format=True)
    (data / "new" / "scan.dcm").write_bytes((data / "dicom" / "IM0").read_bytes())
    rows: list[list[object]] = [
        [f"IM{number}", *[("effusion", "healthy")[number % 2]] * 2] for number in range(COUNT)
    ]
    write(data / "dicom" / "labels.csv", ["image", "label", "diagnosis"], rows)


def make_official(data: Path) -> None:
    """ChestX-ray14, CheXpert, ISIC 2019 and a MedMNIST file in their layouts."""
    names = [f"{number:08}_000.png" for number in range(COUNT)]
    findings = chestxray14.FINDINGS
    rows: list[list[object]] = [
        [name, findings[number % len(findings)], number // 2] for number, name in enumerate(names)
    ]
    table = data / "chestxray14" / "Data_Entry_2017.csv"
    write(table, [chestxray14.NAME, chestxray14.LABELS, chestxray14.PATIENT], rows)
    rows = [
        [f"train/patient{number:05}/study1/view1_frontal.jpg",
         *((number + index) % 3 - 1 for index in range(len(chexpert.FINDINGS)))]
        for number in range(COUNT)
    ]  # fmt: skip
    write(data / "chexpert" / "train.csv", [chexpert.PATH, *chexpert.FINDINGS], rows)
    for number, name in enumerate(names):
        draw(table.parent / "images" / name, number)
        draw(data / "chexpert" / str(rows[number][0]), number)
    isic = data / "isic2019"
    classes = [*isic2019.CLASSES, isic2019.UNKNOWN]
    ids = [f"ISIC_{number:07}" for number in range(2 * COUNT)]
    rows = [
        [one, *(int(index == number % 8) for index in range(9))] for number, one in enumerate(ids)
    ]
    write(isic / isic2019.TRUTH, ["image", *classes], rows)
    write(isic / isic2019.METADATA, ["image", "lesion_id"], [[one, one] for one in ids])
    centres: list[list[object]] = [[one, f"centre-{n // 8 % 4}"] for n, one in enumerate(ids)]
    write(isic / isic2019.CENTRES, ["image", "center_name"], centres)
    for number, one in enumerate(ids):
        draw(isic / isic2019.IMAGES / f"{one}.jpg", number)
    arrays = {
        f"{split}_{kind}": values[:size]
        for split, size in (("train", COUNT), ("val", 8), ("test", 8))
        for kind, values in (
            ("images", np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), np.uint8)),
            ("labels", np.arange(COUNT, dtype=np.uint8)[:, None] % 2),
        )
    }
    np.savez(data / "pneumoniamnist.npz", **arrays)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> Path:
    """A folder with the data that the pages name, and the run of a model."""
    folder = tmp_path_factory.mktemp("user")
    for make in (make_own, make_dicom, make_official):
        make(folder / "data")
    run = RunFolder(folder / "runs" / "latest")
    untrained_model(compose("config", tiny), ("ill", "well")).save(run.model)
    write_json(run.path / "summary.json", SUMMARY)
    return folder


def documented() -> Iterator[tuple[str, list[str]]]:
    """Each command of the pages that is run, once, with its page."""
    known = set()
    for page in PAGES:
        for block in blocks(page, "sh", "console", "bash"):
            for program, *arguments in commands(block) if not block["why"] else ():
                line = " ".join(arguments)
                if line not in known and not line.startswith(tuple(NOT_RUN)):
                    assert program == "fed-mediffusion", f"{page}: mark the block of {program}"
                    known.add(line)
                    yield page.name, arguments


RUN = list(documented())


@pytest.mark.parametrize("arguments", [one for _, one in RUN], ids=[
    f"{page}-{' '.join(words[:2])}" for page, words in RUN
])  # fmt: skip
def test_a_command_runs_as_shown(
    arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("FED_MEDIFFUSION_STORE", str(place / "store"))
    monkeypatch.setattr(simulate, "_launch", lambda *_: 0)  # which trains for minutes
    words = [re.sub(r"(?<![\w.])(?=/data/)", str(place), word) for word in arguments]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"{words}: {result.output} {result.exception!r}"
    if words[:2] == ["data", "check"]:
        assert result.output.splitlines()[-1] == "ready"


def test_reasons_name_what_is_there() -> None:
    for reason in NOT_RUN.values():
        for path in re.findall(r"tests/[\w/]+", reason):
            assert (DOCS.parent / path).exists(), reason
