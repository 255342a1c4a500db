"""All readers keep one contract; each names the mistake in a folder."""

import csv
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mediffusion_core.common.errors import UserError
from mediffusion_core.data import READERS, Source, read_source
from mediffusion_core.data.readers.isic2019 import unite_lesions
from mediffusion_core.settings import DataSettings
from unit.data.readers.test_dicom import dicom_folder
from unit.data.readers.test_folder import folder_with_table
from unit.data.readers.test_official import chexpert_folder, replace

CLASSES = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]


def write(path: Path, *rows: list[object]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def draw(path: Path, shape: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def isic_folder(root: Path) -> DataSettings:
    """Six images: lesion a in two centres, one image without lesion, one only UNK."""
    labels = ["MEL", "MEL", "NV", "NV", "UNK", "BKL"]
    lesions = ["a", "a", "a", "b", "", "c"]
    centres = ["vienna", "vienna", "bern", "bern", "vienna", "bern"]
    names = [f"ISIC_{index}" for index in range(6)]
    for name in names:
        draw(root / "ISIC_2019_Training_Input" / f"{name}.jpg", (30, 40, 3))
    write(
        root / "ISIC_2019_Training_GroundTruth.csv",
        ["image", *CLASSES],
        *[[n, *(float(c == x) for c in CLASSES)] for n, x in zip(names, labels, strict=True)],
    )
    write(
        root / "ISIC_2019_Training_Metadata.csv",
        ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"],
        *[[n, 40, "", lesion, ""] for n, lesion in zip(names, lesions, strict=True)],
    )
    write(
        root / "centers.csv",
        ["image", "center", "center_name"],
        *[[n, 0, centre] for n, centre in zip(names, centres, strict=True)],
    )
    return DataSettings(source="isic2019", root=root, image_size=16, channels=3)


def chest_folder(root: Path) -> DataSettings:
    """Four radiographs of three patients, in the three places where they may lie."""
    names = [f"0000000{index}_000.png" for index in range(4)]
    places = ["images", "images_001/images", "images_002/images", "."]
    for name, place in zip(names, places, strict=True):
        draw(root / place / name, (24, 24))
    findings = ["No Finding", "Mass|Hernia", "Effusion", ""]
    write(
        root / "Data_Entry_2017_v2020.csv",
        ["Image Index", "Finding Labels", "Follow-up #", "Patient ID"],
        *[[n, f, 0, p] for n, f, p in zip(names, findings, [1, 2, 2, 3], strict=True)],
    )
    return DataSettings(source="chestxray14", root=root, image_size=16, channels=1)


def medmnist_file(root: Path, shape: tuple[int, ...] = (8, 8), findings: int = 1) -> DataSettings:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count * findings).reshape(count, findings) % (
            3 if findings == 1 else 2
        )
    root.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(root / "set.npz", **arrays)
    return DataSettings(source="medmnist", root=root / "set.npz", image_size=16, channels=1)


def phantoms(root: Path) -> DataSettings:
    return DataSettings(
        source="phantom", image_size=32, channels=1, phantom={"patients_per_site": (3, 2)}
    )


MAKERS: dict[str, Callable[[Path], DataSettings]] = {
    "isic2019": isic_folder,
    "chestxray14": chest_folder,
    "medmnist": medmnist_file,
    "phantom": phantoms,
    "chexpert": chexpert_folder,
    "folder": folder_with_table,
    "dicom": dicom_folder,
}


def test_every_reader_is_tested() -> None:
    assert set(MAKERS) == set(READERS)


@pytest.mark.parametrize("name", READERS)
def test_contract(name: str, tmp_path: Path) -> None:
    settings = MAKERS[name](tmp_path)
    source = read_source(settings, 0)
    count = len(source.image_ids)
    assert source.name == name
    assert count == len(set(source.image_ids)) == len(source.groups)
    assert source.labels.shape == (count, len(source.classes))
    assert source.labels.dtype == np.float32
    known = source.labels[~np.isnan(source.labels).any(axis=1)]
    assert np.isin(known, (0, 1)).all()
    assert source.multi_label or (known.sum(axis=1) == 1).all()
    assert source.centres is None or len(source.centres) == count

    load = pickle.loads(pickle.dumps(source.load))
    for index in range(count):
        pixels = load(index)
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 2 or pixels.shape[2] == 3
        assert np.array_equal(pixels, source.load(index))

    again = read_source(settings, 0)
    assert again.fingerprint == source.fingerprint
    assert again.image_ids == source.image_ids
    assert np.array_equal(again.labels, source.labels, equal_nan=True)


def fingerprint(settings: DataSettings, seed: int = 0) -> str:
    return read_source(settings, seed).fingerprint


@pytest.mark.parametrize("name", ["isic2019", "chestxray14", "medmnist"])
def test_fingerprint_follows_root(name: str, tmp_path: Path) -> None:
    one, other = (MAKERS[name](tmp_path / part) for part in ("one", "other"))
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("name", ["isic2019", "chestxray14"])
def test_fingerprint_follows_table_and_images(name: str, tmp_path: Path) -> None:
    settings = MAKERS[name](tmp_path)
    before = fingerprint(settings)
    table = next(iter(sorted(tmp_path.glob("*[Tt]r*y*.csv")) or sorted(tmp_path.glob("I*.csv"))))
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([lines[0], *reversed(lines[1:])]))
    changed = fingerprint(settings)
    assert changed != before
    image = next(tmp_path.rglob("*.jpg" if name == "isic2019" else "*.png"))
    image.write_bytes(image.read_bytes() + b"\0")
    assert fingerprint(settings) != changed


def test_fingerprint_of_phantoms_follows_seed_and_counts(tmp_path: Path) -> None:
    settings = phantoms(tmp_path)
    other = settings.model_copy(
        update={"phantom": settings.phantom.model_copy(update={"patients_per_site": (3, 3)})}
    )
    assert len({fingerprint(settings), fingerprint(settings, 1), fingerprint(other)}) == 3


def test_isic_classes_lesions_and_centres(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        source = read_source(isic_folder(tmp_path), 0)
    assert source.classes == ("MEL", "NV", "BKL")
    assert np.isnan(source.labels[4]).all()
    assert source.groups == ("a", "a", "a", "b", "ISIC_4", "c")
    assert source.centres == ("vienna", "vienna", "vienna", "bern", "vienna", "bern")
    assert [move.image_id for move in source.moves] == ["ISIC_2"]
    assert "ISIC_2 moves from bern to vienna" in caplog.text


def test_isic_without_centres_file_has_no_sites(tmp_path: Path) -> None:
    settings = isic_folder(tmp_path)
    (tmp_path / "centers.csv").unlink()
    assert read_source(settings, 0).centres is None


def test_a_tied_lesion_goes_to_the_first_centre_by_name() -> None:
    centres, moves = unite_lesions(["x", "y"], ["a", "a"], ["zurich", "aarau"])
    assert centres == ("aarau", "aarau")
    assert [(move.image_id, move.given) for move in moves] == [("x", "zurich")]


def test_chest_findings_and_patients(tmp_path: Path) -> None:
    source = read_source(chest_folder(tmp_path), 0)
    assert len(source.classes) == 14
    assert source.groups == ("1", "2", "2", "3")
    present = [{source.classes[k] for k in np.flatnonzero(row == 1)} for row in source.labels[:3]]
    assert present == [set(), {"Mass", "Hernia"}, {"Effusion"}]
    assert (source.labels[0] == 0).all()
    assert np.isnan(source.labels[3]).all()


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_medmnist_joins_the_parts(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = read_source(medmnist_file(tmp_path, shape), 0)
    with np.load(tmp_path / "set.npz") as arrays:
        images = np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])
    assert source.classes == ("0", "1", "2")
    assert not source.multi_label
    for index in (0, 9, 4, 5, 7, 6, 1):  # in no order, across the parts
        assert np.array_equal(source.load(index), images[index])


def test_medmnist_with_several_findings_is_multi_label(tmp_path: Path) -> None:
    source = read_source(medmnist_file(tmp_path, findings=4), 0)
    assert source.multi_label
    assert source.labels.shape == (10, 4)


def test_medmnist_refuses_volumes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allowed is uint8"):
        read_source(medmnist_file(tmp_path, (8, 8, 8)), 0)


def test_phantom_sites_and_labels(tmp_path: Path) -> None:
    from mediffusion_core.data import phantom

    source = read_source(phantoms(tmp_path), 3)
    assert source.centres == ("site-0",) * 3 + ("site-1",) * 2
    assert source.groups[4] == "site-1/patient-1"
    found = phantom.findings_of(3, 1, 1)
    assert {source.classes[k] for k in np.flatnonzero(source.labels[4])} == found
    assert np.array_equal(source.load(4), phantom.render(3, 1, 1, found, 32))


@pytest.mark.parametrize("name", ["isic2019", "chestxray14", "medmnist"])
def test_missing_root_is_named(name: str, tmp_path: Path) -> None:
    settings = DataSettings(source=name, root=tmp_path / "gone", image_size=16, channels=3)
    with pytest.raises(UserError, match=r"data.root=.*gone"):
        read_source(settings, 0)
    with pytest.raises(UserError, match=r"needs data.root"):
        read_source(settings.model_copy(update={"root": None}), 0)
    (tmp_path / "gone").mkdir()
    with pytest.raises(UserError, match=r"data.root=.*gone"):
        read_source(settings, 0)


def test_unknown_source_lists_the_known(tmp_path: Path) -> None:
    settings = phantoms(tmp_path).model_copy(update={"source": "mura"})
    with pytest.raises(UserError, match=r"mura.*isic2019"):
        read_source(settings, 0)


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("GroundTruth", "MEL", "LEM", "column 'MEL' is missing"),
        ("GroundTruth", "UNK", "UNK,ANGIOMA", "unknown class 'ANGIOMA'"),
        ("GroundTruth", "ISIC_0,1.0,0.0", "ISIC_0,1.0,1.0", "ISIC_0 is not one-hot"),
        ("GroundTruth", "ISIC_0,1.0", "ISIC_0,0.5", "ISIC_0 is not one-hot"),
        ("GroundTruth", "ISIC_0,1.0", "ISIC_0,yes", "yes"),
        ("GroundTruth", "ISIC_1,", "ISIC_0,", "listed twice"),
        ("GroundTruth", "ISIC_1,", "../ISIC_1,", "not a plain file name"),
        ("Metadata", "lesion_id", "lesion", "column 'lesion_id' is missing"),
        ("Metadata", "ISIC_3,", "isic_3,", "1 images are missing, the first is ISIC_3"),
        ("centers", "ISIC_3,", "ISIC_9,", "1 images have no centre, the first is ISIC_3"),
    ],
)
def test_isic_table_mistakes(tmp_path: Path, table: str, old: str, new: str, message: str) -> None:
    settings = isic_folder(tmp_path)
    (path,) = tmp_path.glob(f"*{table}*.csv")
    replace(path, old, new)
    with pytest.raises(UserError, match=message):
        read_source(settings, 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Effusion", "Efusion", "unknown finding 'Efusion'"),
        ("Patient ID", "Patient", "column 'Patient ID' is missing"),
        ("00000001_000.png", "../../x.png", "not a plain file name"),
        ("0,1\r\n", "0,\r\n", "has no Patient ID"),
    ],
)
def test_chest_table_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    settings = chest_folder(tmp_path)
    replace(tmp_path / "Data_Entry_2017_v2020.csv", old, new)
    with pytest.raises(UserError, match=message):
        read_source(settings, 0)


def of_centres(*centres: str) -> Source:
    """One patient's images at the given centres."""
    return Source(
        name="x",
        classes=("a",),
        multi_label=True,
        image_ids=tuple(str(index) for index in range(len(centres))),
        labels=np.zeros((len(centres), 1), np.float32),
        groups=("g",) * len(centres),
        centres=centres,
        load=lambda index: np.zeros((2, 2), np.uint8),
        fingerprint="",
    )


def test_a_source_that_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="two centres"):
        of_centres("here", "there")


@pytest.mark.parametrize(
    "name",
    ["../../elsewhere", "/tmp/elsewhere", "Radiology/CT", "a\\b", ".hidden", "a\nb", "x" * 101],
)
def test_a_site_whose_name_leads_elsewhere_is_refused(name: str) -> None:
    """A site's name names its folder and its manifest."""
    with pytest.raises(UserError, match="can't name a file"):
        of_centres(name)


def test_site_names_may_have_spaces_and_accents() -> None:
    assert of_centres("St. Anna, Zürich (Nord)").centres
